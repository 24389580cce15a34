"""Needle in a haystack: one fact at a chosen depth of a text of a chosen length."""
