"""Scores, budgets and merges that the methods of several papers share."""
