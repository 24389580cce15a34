"""RULER: structures (plans) and their words (wordings)."""
