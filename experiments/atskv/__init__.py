"""ATSKV's experiment: methods at several context sizes, hosted models beside them, checks.

The method itself is :mod:`catekv.methods.atskv`, the training of its predictors
:mod:`catekv.calibration.relevance`.
"""
