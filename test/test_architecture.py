"""The order in which the parts of the repository stand on each other; see docs/architecture.md.

Every import counts, those in function bodies and under ``TYPE_CHECKING`` too: what a file needs to
be understood is the same, wherever the import stands.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]

#: From the ground up; a part imports what stands below it, and what lies in itself.
FLOORS: tuple[tuple[str, ...], ...] = (
    ("catekv.errors", "catekv.version"),
    ("catekv.files",),
    ("catekv.kernels",),
    ("catekv.models",),
    ("catekv.methods",),
    ("catekv.cache",),
    ("catekv.prefill",),
    ("catekv.tasks",),
    ("catekv.decode",),
    ("catekv.loading",),
    ("catekv.model",),
    ("catekv.evaluation",),
    ("catekv.calibration",),
    ("catekv.commands",),
    ("catekv", "catekv.__main__"),
    (
        "experiments.atskv",
        "experiments.cokv",
        "experiments.embedded",
        "experiments.simcalkv",
        "bench",
        "select_headmask",
        "data",
    ),
    ("test",),
)
#: Parts that know less than the floor they stand on would let them.
KNOWS_ONLY = {
    "catekv.tasks": {"catekv.errors", "catekv.files"},
    "catekv.kernels": {"catekv.errors", "catekv.files"},
}
#: What stands at the top of the package: the tree is the first page of the documentation.
FOLDERS = {
    "cache", "calibration", "commands", "decode", "evaluation", "kernels", "methods", "models",
    "prefill", "tasks",
}  # fmt: skip
MODULES = {"__init__", "__main__", "errors", "files", "loading", "model", "version"}
#: Folders at the root that hold no code of the project.
NO_CODE = {"build", "ckpt", "dist", "docs", "examples", "results", "scripts"}

Imports = Mapping[str, set[str]]


def source_files(root: Path) -> dict[str, Path]:
    """Module name -> file, of every Python file of the repository."""
    files = {}
    for folder in sorted(root.iterdir()):
        if not folder.is_dir() or folder.name in NO_CODE or not folder.name.isidentifier():
            continue
        for path in sorted(folder.rglob("*.py")):
            parts = path.relative_to(root).with_suffix("").parts
            files[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return files


def imported(name: str, is_package: bool, source: str, known: Iterable[str]) -> Iterator[str]:
    """Those of the ``known`` modules that a module imports, wherever in its text."""
    known = set(known)
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)
        elif isinstance(node, ast.ImportFrom):
            origin = node.module or ""
            if node.level:
                above = name.split(".")[: len(name.split(".")) - node.level + is_package]
                origin = ".".join([*above, *filter(None, [origin])])
            for alias in node.names:
                found = f"{origin}.{alias.name}"
                if found in known or origin in known:
                    yield found if found in known else origin


def imports_of(root: Path) -> dict[str, set[str]]:
    """For every module of the repository, the modules that it imports; itself left out."""
    files = source_files(root)
    return {
        name: set(
            imported(name, path.name == "__init__.py", path.read_text(encoding="utf-8"), files)
        )
        - {name}
        for name, path in files.items()
    }


def part_of(module: str) -> str:
    """The part that a module belongs to: the longest name that begins its own."""
    parts = [part for floor in FLOORS for part in floor]
    holding = [part for part in parts if module == part or module.startswith(part + ".")]
    # only the face of the package itself is the part `catekv`
    holding = [part for part in holding if part != "catekv" or module == "catekv"]
    if not holding:
        raise ValueError(f"{module} has no place: give it one in FLOORS and in the documentation")
    return max(holding, key=len)


def wrong_arrows(imports: Imports) -> list[str]:
    """Imports that run against the order, as ``importer -> imported``."""
    height = {part: floor for floor, parts in enumerate(FLOORS) for part in parts}
    wrong = []
    for module, targets in imports.items():
        for target in sorted(targets):
            above, below = part_of(module), part_of(target)
            allowed = KNOWS_ONLY.get(above)
            if above != below and (
                height[below] >= height[above] or (allowed is not None and below not in allowed)
            ):
                wrong.append(f"{module} -> {target}")
    return wrong


def circles(imports: Imports) -> list[list[str]]:
    """Groups of modules that import each other in a loop."""
    reach: dict[str, set[str]] = {}
    for start in imports:
        seen: set[str] = set()
        waiting = list(imports[start])
        while waiting:
            module = waiting.pop()
            if module not in seen:
                seen.add(module)
                waiting += imports.get(module, ())
        reach[start] = seen
    groups = {
        tuple(sorted(other for other in reach[start] if start in reach[other]))
        for start in imports
        if start in reach[start]
    }
    return [list(group) for group in sorted(groups)]


@pytest.fixture(scope="module")
def imports() -> dict[str, set[str]]:
    return imports_of(REPOSITORY)


def test_no_files_import_each_other_in_a_circle(imports: Imports) -> None:
    assert circles(imports) == []


def test_every_import_points_down(imports: Imports) -> None:
    assert wrong_arrows(imports) == []


def test_the_tree_shows_the_parts() -> None:
    package = REPOSITORY / "catekv"
    folders = {path.parent.name for path in package.glob("*/__init__.py")}
    assert folders == FOLDERS
    assert {path.stem for path in package.glob("*.py")} <= MODULES


def test_the_document_names_every_folder() -> None:
    text = (REPOSITORY / "docs" / "architecture.md").read_text(encoding="utf-8")
    assert [name for name in sorted(FOLDERS) if f"`{name}/`" not in text] == []


@pytest.mark.parametrize(
    "source",
    [
        "from catekv.model import CateKVModel",
        "import catekv.model",
        "def f():\n    from catekv import model",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from catekv.model import X",
        "from ..model import CateKVModel",
    ],
)
def test_an_import_is_found_wherever_it_stands(source: str) -> None:
    known = ["catekv", "catekv.model", "catekv.kernels.pack"]
    found = list(imported("catekv.kernels.pack", False, source, known))
    assert found == ["catekv.model"]
    assert wrong_arrows({"catekv.kernels.pack": set(found)}) == [
        "catekv.kernels.pack -> catekv.model"
    ]


def test_circles_and_wrong_arrows_are_seen() -> None:
    loop = {"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"a"}}
    assert circles(loop) == [["b", "c"]]
    assert wrong_arrows({"experiments.cokv.x": {"experiments.atskv.y", "catekv.model"}}) == [
        "experiments.cokv.x -> experiments.atskv.y"
    ]
    assert wrong_arrows({"catekv.tasks.x": {"catekv.models.shape"}}) != []
    assert wrong_arrows({"catekv.model": {"catekv.decode.step", "catekv.errors"}}) == []
    with pytest.raises(ValueError, match="no place"):
        part_of("catekv.somewhere")


def test_functions_are_short() -> None:
    """Outside the kernels a function fits on a screen: at most 60 lines with its docstring."""
    long = []
    for folder in ("catekv", "experiments", "bench", "select_headmask", "data"):
        for path in sorted((REPOSITORY / folder).rglob("*.py")):
            if "kernels" in path.parts:
                continue
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                    lines = (node.end_lineno or node.lineno) - node.lineno + 1
                    if lines > 60:
                        long.append(f"{path.relative_to(REPOSITORY)}: {node.name} ({lines})")
    assert not long
