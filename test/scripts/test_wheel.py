"""Installed from a wheel, without a clone: the default commands find their model and its masks."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
#: what a distribution is made of
SOURCES = ("LICENSE", "MANIFEST.in", "README.md", "catekv", "ckpt", "pyproject.toml",
           "select_headmask", "setup.py")  # fmt: skip
SHIPPED = ("ckpt/embedded", "select_headmask/embedded")
BUILD = "import sys; from setuptools import build_meta as b; print(b.build_{}(sys.argv[1]))"

pytestmark = pytest.mark.slow


def run(words: list[str], folder: Path) -> str:
    """Output of a command that succeeds, without any of this process's paths."""
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        words, cwd=folder, env=clean, capture_output=True, text=True, timeout=1500
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def build(kind: str, tree: Path, output: Path) -> Path:
    """``sdist`` or ``wheel`` of a source tree."""
    said = run([sys.executable, "-c", BUILD.format(kind), str(output)], tree)
    return output / said.splitlines()[-1]


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy: what earlier builds left in the clone says nothing."""
    folder = tmp_path_factory.mktemp("sources")
    for name in SOURCES:
        source = REPOSITORY / name
        if source.is_dir():
            unwanted = shutil.ignore_patterns("__pycache__", "*.egg-info")
            shutil.copytree(source, folder / name, ignore=unwanted)
        else:
            shutil.copy(source, folder)
    return build("sdist", folder, tmp_path_factory.mktemp("sdist"))


@pytest.fixture(scope="module")
def wheel(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from the source distribution alone."""
    folder = tmp_path_factory.mktemp("unpacked")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder)
    (tree,) = folder.iterdir()
    return build("wheel", tree, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def command(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """``catekv`` of a new environment that borrows the dependencies of this one, not the clone."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, symlinks=True)
    python = str(folder / "bin" / "python")
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    packages = folder / "lib" / version / "site-packages"
    # a path in a .pth file is searched, but the .pth files in it (the clone's among them) are not
    borrowed = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    (packages / "dependencies.pth").write_text("\n".join(sorted(borrowed)))
    run(
        [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-index",
         "--no-deps", "--ignore-installed", str(wheel)], folder,
    )  # fmt: skip
    found = run([python, "-c", "import catekv; print(catekv.__file__)"], folder)
    assert Path(found.strip()).is_relative_to(packages)
    return str(folder / "bin" / "catekv")


def test_distributions_hold_the_model_and_its_masks(sdist: Path, wheel: Path) -> None:
    wanted = {
        file.relative_to(REPOSITORY).as_posix()
        for name in SHIPPED
        for file in (REPOSITORY / name).rglob("*")
        if file.is_file()
    }
    assert "ckpt/embedded/model.safetensors" in wanted
    with tarfile.open(sdist) as archive:
        assert wanted <= {name.partition("/")[2] for name in archive.getnames()}
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert {f"catekv/shipped/{name}" for name in wanted} <= set(names)
    # nothing of the tests or tools around the package lies in it
    assert {name.split("/")[0].split("-")[0] for name in names} == {"catekv"}


def test_the_default_evaluation_runs_in_an_empty_folder(command: str, tmp_path: Path) -> None:
    said = run([command, "evaluate", "--samples", "1", "--quiet", "--device", "cpu"], tmp_path)
    assert "score x 100" in said
    (folder,) = (tmp_path / "results").iterdir()
    summary = json.loads((folder / "summary.json").read_text())
    assert {row["method"] for row in summary["averages"]} >= {"full", "catekv"}
    assert all(row["errors"] == 0 for row in summary["averages"])
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["model"] == "embedded"
    assert manifest["git_commit"] is None
    chosen = manifest["methods"]["catekv"]["options"]["head_mask"]["adaptive"]
    shipped = (REPOSITORY / "select_headmask/embedded/chosen/head_type_p40.csv").read_text()
    assert chosen == shipped.replace(",", "").split()


def test_generate_answers_in_an_empty_folder(command: str, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("the key of anna is 4 . " * 40)
    words = ["generate", "--context", "text.txt", "--question", "the key of anna is"]
    said = run([command, *words, "--device", "cpu", "--max-new-tokens", "2"], tmp_path)
    assert said.strip()
    assert [file.name for file in tmp_path.iterdir()] == ["text.txt"]
