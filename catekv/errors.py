"""The one exception a user can cause and a command reports on a single line.

``UserError`` is a ``ValueError``: code that catches ``ValueError`` keeps working, and the command
line tells input mistakes (exit code 2) from defects of ours (a traceback).
"""

from __future__ import annotations


class UserError(ValueError):
    """Wrong input. The message names the cause and the remedy in one line."""
