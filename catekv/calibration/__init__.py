"""Artefacts that a method needs: head masks, CoKV scores, relevance predictors.

``observe`` and ``vote`` are stateless and exact: see :mod:`catekv.calibration.observation`.
"""
