"""Relevance predictors (ATSKV): labels, training, and the files that the method loads.

The method itself is :mod:`catekv.methods.atskv`.
"""
