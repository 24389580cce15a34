"""The README's example runs as it is printed."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]


def test_the_example_on_the_embedded_model_answers_right(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (REPOSITORY / "README.md").read_text()
    found = re.search(r"<!-- tested -->\n```python\n(.*?)```", text, re.DOTALL)
    assert found, "README.md has no example marked as tested"
    monkeypatch.chdir(REPOSITORY)
    names: dict[str, object] = {}
    exec(compile(found[1], "README.md", "exec"), names)
    sample = names["sample"]
    assert all(name in str(names["answer"]) for name in sample.outputs)  # type: ignore[attr-defined]
    assert "% kept" in capsys.readouterr().out


def test_every_command_of_the_readme_exists() -> None:
    text = (REPOSITORY / "README.md").read_text()
    scripts = set(re.findall(r"(?:\./|python )([\w/]+\.(?:sh|py))", text))
    assert {"run_catekv.sh", "run_tests.sh", "test/eval_acc.py"} <= scripts
    for script in scripts:
        assert (REPOSITORY / script).is_file(), script
        if script.endswith(".sh"):
            assert os.access(REPOSITORY / script, os.X_OK), script


def test_every_link_of_the_documentation_leads_somewhere() -> None:
    for page in [REPOSITORY / "README.md", *(REPOSITORY / "docs").rglob("*.md")]:
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
            if not target.startswith("http"):
                assert (page.parent / target).exists(), f"{page.name}: {target}"
