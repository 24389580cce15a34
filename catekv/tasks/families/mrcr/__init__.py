"""MRCR: which of several equal requests of a long conversation is meant."""
