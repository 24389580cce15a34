"""Benchmarks made of rows with lengths of their own: where they come from, how they are cut."""
