"""The scripts that measure for hours: no command of theirs is refused before a model is read."""

from __future__ import annotations

import json
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from catekv.commands.cli import main, make_parser
from catekv.evaluation.run import session

REPOSITORY = Path(__file__).resolve().parents[2]
MODEL = "ckpt/SmolLM2-135M-Instruct.Q4_1.gguf"


class Reached(BaseException):
    """A model would be loaded now."""


def recorded(script: str, arguments: list[str], project: Path) -> list[list[str]]:
    """The arguments of every catekv command that a script calls, none of which does anything."""
    (project / "scripts").mkdir()
    shutil.copy(REPOSITORY / "scripts" / script, project / "scripts")
    python, calls = project / "python", project / "calls"
    python.write_text(
        f"#!{sys.executable}\n"
        "import json, sys\n"
        f"with open({str(calls)!r}, 'a') as file:\n"
        "    print(json.dumps(sys.argv[1:]), file=file)\n"
    )
    fetch = project / "scripts" / "real_model.sh"
    fetch.write_text("#!/usr/bin/env bash\n")
    for program in (python, fetch):
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
    (project / "scripts" / "environment.sh").write_text(
        (REPOSITORY / "scripts" / "environment.sh").read_text()
        + f"prepare_environment() {{ PYTHON={python}; }}\n"
    )
    subprocess.run([str(project / "scripts" / script), *arguments], cwd=project, check=True)
    called = [json.loads(line) for line in calls.read_text().splitlines()]
    return [words[words.index("catekv") + 1 :] for words in called]


@pytest.mark.parametrize(
    ("script", "arguments", "least"),
    [
        ("embedded_baselines.sh", [], 6),
        ("embedded_tables.sh", [], 4),
        ("real_model_tables.sh", [], 14),
        ("recent_methods.sh", ["embedded"], 12),
        ("recent_methods.sh", ["smollm2"], 20),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, list) else None,
)
def test_every_command_of_a_long_script_reaches_the_model(
    script: str,
    arguments: list[str],
    least: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    commands = recorded(script, arguments, tmp_path)
    (tmp_path / "ckpt").mkdir()
    (tmp_path / MODEL).write_bytes(b"GGUF")
    (tmp_path / "ckpt" / "embedded").symlink_to(REPOSITORY / "ckpt" / "embedded")
    (tmp_path / "select_headmask").symlink_to(REPOSITORY / "select_headmask")
    monkeypatch.chdir(tmp_path)

    def opened(*_: object, **__: object) -> None:
        raise Reached

    monkeypatch.setattr(session, "open_model", opened)
    assert len(commands) >= least
    outputs = [words[words.index("--output") + 1] for words in commands]
    assert len(set(outputs)) == len(outputs)  # two in one folder refuse each other, or worse
    for words in commands:
        make_parser().parse_args(words)
        if words[0] in ("evaluate", "fidelity"):
            try:
                code = main(words)
            except Reached:
                continue
            pytest.fail(f"{code}: {' '.join(words)}: {capsys.readouterr().err}")


@pytest.mark.parametrize(("writes", "calls"), [(True, 6), (False, 1)])
def test_a_run_that_ends_before_its_table_ends_the_script(
    writes: bool, calls: int, tmp_path: Path
) -> None:
    (tmp_path / "scripts").mkdir()
    script = tmp_path / "scripts" / "embedded_baselines.sh"
    shutil.copy(REPOSITORY / "scripts" / script.name, script)
    python = tmp_path / "python"
    python.write_text(
        f"#!{sys.executable}\n"
        "import pathlib, sys\n"
        "folder = pathlib.Path(sys.argv[sys.argv.index('--output') + 1])\n"
        "folder.mkdir(parents=True)\n"
        f"if {writes}:\n"
        "    (folder / 'summary.json').write_text('{}')\n"
        "sys.exit(1)\n"
    )
    python.chmod(python.stat().st_mode | stat.S_IXUSR)
    environment = (REPOSITORY / "scripts" / "environment.sh").read_text()
    script.with_name("environment.sh").write_text(
        environment + f"prepare_environment() {{ PYTHON={python}; }}\n"
    )
    done = subprocess.run([str(script)], cwd=tmp_path, check=False)
    assert (done.returncode == 0) is writes
    assert len(list((tmp_path / "results" / "embedded-baselines").iterdir())) == calls
