"""What a user adds: forgotten after a test; and the example of the documentation."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from catekv.evaluation import plugins
from catekv.methods import registry as methods
from catekv.tasks import registry as tasks

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "methods.md"


def forgetting(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Undo after a test what it registers and loads; a fixture yields from this."""
    monkeypatch.setattr(methods, "_REGISTRY", dict(methods._REGISTRY))
    monkeypatch.setattr(tasks, "_REGISTERED", dict(tasks._REGISTERED))
    monkeypatch.setattr(plugins, "_LOADED", {})
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if name.startswith(("catekv_plugin_", "short_keys")):
            del sys.modules[name]


def documented_method(folder: Path) -> Path:
    """The first Python example of the page on methods, saved under the name it has there."""
    text = DOCUMENT.read_text(encoding="utf-8").split("```python\n")[1].split("```")[0]
    path = folder / "short_keys.py"
    path.write_text(text, encoding="utf-8")
    return path
