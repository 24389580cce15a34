"""A run: from its request over cells and samples to records."""
