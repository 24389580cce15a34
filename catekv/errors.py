"""The one exception a user can cause and a command reports on a single line.

``UserError`` is a ``ValueError``: code that catches ``ValueError`` keeps working, and the command
line tells input mistakes (exit code 2) from defects of ours (a traceback).
"""

from __future__ import annotations


class UserError(ValueError):
    """Wrong input. The message names the cause and the remedy in one line."""


class NeedsAllHeadsError(UserError):
    """A method decides on all KV heads of a layer together, so that a part of them is no part of
    the decision. Tensor-parallel processes then gather the layer's heads and decide alike."""
