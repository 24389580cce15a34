"""Build RULER JSONL files; see ``--help``. :mod:`catekv.commands.ruler_files` does the work."""

from __future__ import annotations

import sys
from pathlib import Path

# the package may not be installed
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from catekv.commands.ruler_files import main

if __name__ == "__main__":
    sys.exit(main())
