"""Methods and benchmarks of a user's own, from files and folders that no package holds."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import sys
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path
from types import ModuleType

from catekv import methods
from catekv.errors import UserError
from catekv.tasks import registry

#: The file that makes a folder a benchmark.
FAMILY_FILE = "family.py"


#: What was loaded: its path as it was given, and a hash of its text.
_LOADED: dict[str, str] = {}


def loaded_plugins() -> dict[str, str]:
    """SHA-256 of the file of every plugin that was loaded, by its path: what a record of a run says
    about code that no version names."""
    return dict(_LOADED)


def load_plugins(paths: Iterable[str]) -> None:
    """Make known what files and folders hold; each is run once.

    Args:
        paths: Python files that register methods (:func:`catekv.methods.register`), and folders
            whose ``family.py`` has a ``FAMILY`` of tasks.

    Raises:
        UserError: no such thing, what it raised and in which line, or nothing that it adds.
    """
    for path in map(Path, paths):
        if (path / FAMILY_FILE).is_file():
            _load_family(path)
            _note(path, path / FAMILY_FILE)
        elif path.is_file() and path.suffix == ".py":
            _load_methods(path)
            _note(path, path)
        else:
            raise UserError(
                f"--plugin {path}: give a Python file with a method, or a folder with {FAMILY_FILE}"
            )


def _note(path: Path, file: Path) -> None:
    _LOADED[str(path)] = hashlib.sha256(file.read_bytes()).hexdigest()


def _load_methods(path: Path) -> None:
    name = _module_name(path)
    if name in sys.modules:
        return
    before = methods.available()
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    loader = spec.loader
    _run(path, module, lambda: loader.exec_module(module))
    if methods.available() == before:
        del sys.modules[name]
        raise UserError(
            f"plugin {path} registers no method; write @register above @dataclass(frozen=True) of "
            "its class (from catekv.methods import register)"
        )


def _load_family(folder: Path) -> None:
    name = _module_name(folder)
    if name in sys.modules:
        return
    package = ModuleType(name)
    # the files of the folder can import each other: from .rows import ...
    package.__path__ = [str(folder.resolve())]
    _run(folder, package, lambda: registry.register(registry.family_in(name)))


def _run(path: Path, module: ModuleType, action: Callable[[], object]) -> None:
    """Run a plugin as a module; what fails leaves no module behind."""
    sys.modules[module.__name__] = module
    try:
        action()
    except Exception as error:
        for name in [*sys.modules]:
            if name == module.__name__ or name.startswith(module.__name__ + "."):
                del sys.modules[name]
        said = " ".join(str(error).split())
        if isinstance(error, SyntaxError) and error.lineno is None:
            # other encodings are Python's own affair, which a first line can name
            said += "; save it as UTF-8"
        if isinstance(error, UserError):
            raise UserError(f"plugin {path}: {said}") from error
        raise UserError(
            f"plugin {path}{_line(path, error)}: {type(error).__name__}: {said}"
        ) from error


def _line(path: Path, error: Exception) -> str:
    """The line of the plugin that failed."""
    if isinstance(error, SyntaxError):
        return "" if error.lineno is None else f", line {error.lineno}"
    own = [
        frame.lineno
        for frame in traceback.extract_tb(error.__traceback__)
        if Path(frame.filename).resolve().is_relative_to(path.resolve())
    ]
    return f", line {own[-1]}" if own else ""


def _module_name(path: Path) -> str:
    digest = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:12]
    return f"catekv_plugin_{digest}"
