"""``python -m catekv``."""

from __future__ import annotations

import sys

from catekv.commands.cli import main

if __name__ == "__main__":
    sys.exit(main())
