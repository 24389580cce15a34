"""ATSKV beyond the method: training of relevance predictors, experiments, checks.

The method itself is :mod:`catekv.methods.atskv`.
"""
