"""What README and documentation show works: every Python example runs, every command is one."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from own_plugins import forgetting

from catekv.commands.cli import make_parser

REPOSITORY = Path(__file__).resolve().parents[2]
PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").rglob("*.md"))]
PYTHON_BLOCK = re.compile(r"(<!-- sketch: [^\n]+ -->\n)?```python\n(.*?)```", re.DOTALL)
SHELL_BLOCK = re.compile(r"```(?:bash|console)\n(.*?)```", re.DOTALL)
MODEL = "path/or/hub-name"  # stands for the reader's; the embedded one takes its place here


def examples() -> list[object]:
    """All Python blocks that are not marked as sketches, with what that needs."""
    return [
        pytest.param(block[2], id=f"{page.stem}-{number}")
        for page in PAGES
        for number, block in enumerate(PYTHON_BLOCK.finditer(page.read_text()), 1)
        if not block[1]
    ]


def commands(page: Path) -> list[str]:
    """The commands of a page's shell blocks, without prompts and comments, lines joined."""
    lines = []
    for block in SHELL_BLOCK.finditer(page.read_text()):
        text = block[1].replace("\\\n", " ")
        # where a block shows what is printed, only what follows a $ was typed
        typed = re.findall(r"^\$ (.*)$", text, re.MULTILINE) or text.splitlines()
        lines += [
            line for line in (re.sub(r"(^|\s)#.*", "", each).strip() for each in typed) if line
        ]
    return lines


@pytest.fixture(autouse=True)
def _forgotten(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    yield from forgetting(monkeypatch)


@pytest.mark.parametrize("code", examples())
def test_every_example_runs_as_it_is_printed(
    code: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name in ("LICENSE", "ckpt", "docs", "select_headmask"):
        (tmp_path / name).symlink_to(REPOSITORY / name)
    monkeypatch.chdir(tmp_path)
    exec(compile(code.replace(MODEL, "ckpt/embedded"), "example", "exec"), {"__name__": "example"})
    # an example that prints says something
    assert ("print(" in code) <= bool(capsys.readouterr().out.strip())


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_catekv_command_of_the_documentation_is_one(page: Path) -> None:
    parser = make_parser()
    for line in commands(page):
        words = shlex.split(line.partition("|")[0])
        if words[:1] != ["catekv"] or words[1:2] == ["lm-eval"] or "..." in words or "[" in line:
            continue
        try:
            parser.parse_args(words[1:])
        except SystemExit as ended:
            if ended.code:
                pytest.fail(f"{page.name}: {line}")


def test_every_script_of_the_documentation_exists() -> None:
    named = set()
    for page in PAGES:
        named |= set(
            re.findall(
                r"(?<![\w/.-])(?:\./)?((?:\w+/)*\w+\.(?:sh|py))\b", "\n".join(commands(page))
            )
        )
    assert {"run_catekv.sh", "run_tests.sh", "test/eval_efficiency.py"} <= named
    own = {"short_keys.py"}  # the reader's
    for script in named - own:
        assert (REPOSITORY / script).is_file(), script
        if script.endswith(".sh"):
            assert os.access(REPOSITORY / script, os.X_OK), script


SCRIPTS = sorted(
    path
    for pattern in ("*.sh", "bench/*.sh", "scripts/*.sh", "data/ruler/*.sh", "experiments/*/*.sh")
    for path in REPOSITORY.glob(pattern)
    if os.access(path, os.X_OK)
)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_help_of_every_script_helps_and_does_nothing_else(script: Path, tmp_path: Path) -> None:
    tools = ("bash", "dirname", "sed", "grep", "cut", "basename")
    for tool in tools:  # no Python and no pip: what starts one fails
        found = subprocess.run(["which", tool], capture_output=True, text=True, check=True)
        (tmp_path / tool).symlink_to(found.stdout.strip())
    done = subprocess.run(
        ["bash", str(script), "--help"],
        env={"PATH": str(tmp_path)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) >= 2
    assert not done.stderr


@pytest.mark.parametrize(
    ("installed", "asked", "python"),
    [(False, "0", ".venv"), (True, "0", "active"), (False, "1", "active")],
)
def test_an_active_environment_is_filled_only_if_asked(
    tmp_path: Path, installed: bool, asked: str, python: str
) -> None:
    """``prepare_environment`` with interpreters that only note what they were called for."""
    for name in ("active", ".venv"):
        folder = tmp_path / name / "bin"
        folder.mkdir(parents=True)
        (folder / "python3").write_text(
            "#!/usr/bin/env bash\n"
            f'case "$*" in *"import catekv"*) exit {0 if installed else 1} ;;\n'
            f"*sys.prefix*) echo {tmp_path / name} ;;\n"
            f'*"pip install"*) echo {name} >>{tmp_path}/filled ;; esac\n'
        )
        (folder / "python3").chmod(0o755)
        (folder / "python").symlink_to("python3")
    for name in ("constraints.txt", "pyproject.toml"):
        (tmp_path / name).touch()
    shell = f'. {REPOSITORY}/scripts/environment.sh; prepare_environment; echo "$PYTHON"'
    done = subprocess.run(
        ["bash", "-euc", shell],
        env={
            "PATH": f"{tmp_path}/active/bin:/usr/bin:/bin",
            "REPOSITORY": str(tmp_path),
            "VIRTUAL_ENV": str(tmp_path / "active"),
            "CATEKV_USE_ACTIVE": asked,
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.splitlines()[-1]).parts[-3] == python
    filled = tmp_path / "filled"
    expected = [] if installed else [python]
    assert (filled.read_text().split() if filled.exists() else []) == expected


def test_every_link_of_the_documentation_leads_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#]+)(?:#[\w-]+)?\)", page.read_text()):
            if not target.startswith("http"):
                assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_readme_stays_short() -> None:
    assert len((REPOSITORY / "README.md").read_text().splitlines()) < 120


def test_records_of_measurements_hold_no_path_of_a_machine() -> None:
    # of a folder in somebody's home or of temporary ones: nobody else has them
    pattern = re.compile(r"""(?<![\w.~])/(?:home|root|tmp|work|Users|mnt)/""")
    told = [
        str(path.relative_to(REPOSITORY))
        for path in (REPOSITORY / "docs" / "results").rglob("*.*")
        if path.suffix in (".json", ".csv", ".md")
        and pattern.search(path.read_text(encoding="utf-8"))
    ]
    assert not told
