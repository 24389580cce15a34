"""Where a checkpoint lies: a folder, a GGUF file, or either of them on the hub."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from catekv.errors import UserError
from catekv.files import hub_answers

SUFFIX = ".gguf"
_PACKAGES = ("gguf", "accelerate")


@dataclass(frozen=True)
class ModelSource:
    """What transformers' ``from_pretrained`` methods are called with.

    Attributes:
        name: as the user wrote it. place: local folder or hub name.
        file: name of the GGUF file in it; None: weights and configuration as transformers saves
            them. local: whether the place is a folder of this machine.
    """

    name: str
    place: str
    file: str | None
    local: bool

    @property
    def options(self) -> dict[str, Any]:
        """Options of every ``from_pretrained`` (configuration, tokenizer, weights): a hub that does
        not answer is not tried, its cache is."""
        options: dict[str, Any] = {} if self.file is None else {"gguf_file": self.file}
        if not self.local and not hub_answers():
            options["local_files_only"] = True
        return options

    @property
    def path(self) -> Path:
        """The local folder, or the GGUF file; of a hub name it means nothing."""
        return Path(self.place) if self.file is None else Path(self.place) / self.file


def model_source(model: str | Path) -> ModelSource:
    """Where a model lies that somebody names.

    Args:
        model: folder of a checkpoint, hub name, path of a ``.gguf`` file, or ``REPOSITORY:FILE``
            with a GGUF file of a hub repository.

    Raises:
        UserError: no such folder or file, a file that is no GGUF file, or the packages that read
            GGUF files are not installed.
    """
    name = str(model)
    local = Path(name).expanduser()
    if local.is_dir():
        return ModelSource(name, str(local), None, True)
    if is_gguf(name):
        repository, colon, file = name.rpartition(":")
        if local.is_file():
            _require_packages(name)
            return ModelSource(name, str(local.parent), local.name, True)
        if not colon or _is_path(repository):
            raise UserError(
                f"there is no GGUF file {name}; pass the path of one, or REPOSITORY:FILE for one "
                "of the hub"
            )
        _require_packages(name)
        return ModelSource(name, repository, file, False)
    if local.exists():
        raise UserError(f"{name} is a file; pass the folder of a checkpoint or a {SUFFIX} file")
    if _is_path(name):
        raise UserError(f"there is no checkpoint folder {name}; pass a folder or a hub name")
    return ModelSource(name, name, None, False)


def is_gguf(model: str) -> bool:
    """Whether a name is that of a GGUF file."""
    return model.lower().endswith(SUFFIX)


def short_name(model: str | Path) -> str:
    """Name of a model for folders and tables: that of its folder, its repository or its GGUF file
    without the suffix."""
    name = Path(str(model)).name
    return name.rpartition(":")[2][: -len(SUFFIX)] if is_gguf(name) else name


def _is_path(name: str) -> bool:
    return name.startswith((".", "/", "~")) or name.count("/") > 1


def _require_packages(name: str) -> None:
    missing = [package for package in _PACKAGES if importlib.util.find_spec(package) is None]
    if missing:
        raise UserError(
            f"reading {name} needs the package {' and '.join(missing)}; install it with "
            "pip install 'catekv[gguf]'"
        )
