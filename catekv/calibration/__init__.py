"""Artefacts that a method needs: head masks, CoKV scores, relevance predictors.

``observe`` and ``vote`` are stateless and exact: see :mod:`catekv.calibration.observation`.
"""

from __future__ import annotations

from catekv.calibration.observation import CVConfig, Observation, observe, observe_attention
from catekv.methods.head_mask import vote

__all__ = ["CVConfig", "Observation", "observe", "observe_attention", "vote"]
