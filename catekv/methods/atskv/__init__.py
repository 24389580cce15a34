"""ATSKV: keys and values in tiers of precision, chosen by a relevance predictor; its baselines."""
