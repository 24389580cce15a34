"""Sweeps: many runs over models, methods, ratios, tasks and lengths, on one machine or many."""
