"""Predictions of other harnesses: reading their files, scoring them."""
