"""Checks of results, for the suite's stage ``correctness``."""
