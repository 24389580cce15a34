"""Head files of any kind in, and out again: the project's own and those of :mod:`.formats`."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

from catekv.calibration.heads.formats import (
    catekv_masks,
    cokv,
    duo_attention,
    headkv,
    kvzip,
    tangram,
)
from catekv.calibration.heads.formats.asked import Asked, Table
from catekv.calibration.heads.formats.known_model import QUERY_RULES
from catekv.calibration.heads.head_scores import HeadScores
from catekv.errors import UserError
from catekv.files import read_arrays
from catekv.methods.head_mask import HeadMask


class Format(Protocol):
    """A module that reads and writes one kind of file."""

    def matches(self, path: Path) -> bool:
        """Whether a path looks like one."""

    def read(self, path: Path, asked: Asked) -> Table:
        """Its scores; ``UserError`` names what is wrong, in text files the line."""

    def write(self, scores: HeadScores, path: Path, asked: Asked) -> Path:
        """Write scores, and return what was written."""


#: By the names that commands take; a file is read by the first one that it looks like.
FORMATS: dict[str, Format] = {
    "duo_attention": duo_attention,
    "kvzip": kvzip,
    "catekv": catekv_masks,
    "cokv": cokv,
    "tangram": tangram,
    "headkv": headkv,
}


def format_of(path: Path) -> str:
    """The format of a file or folder.

    Raises:
        UserError: nothing there, or nothing that is known.
    """
    if not path.exists():
        raise UserError(f"there is nothing at {path}; check the name")
    for name, form in FORMATS.items():
        if form.matches(path):
            return name
    raise UserError(
        f"{path} is no head file that is known; say its format with `catekv heads import --from`: "
        f"{', '.join(FORMATS)}"
    )


def read_heads(
    path: Path, asked: Asked, form: str | None = None, query_rule: str = QUERY_RULES[0]
) -> HeadScores:
    """Scores of a file of any format, the project's own included.

    Args:
        form: name of the format; None: what the file looks like.
        query_rule: how scores of query heads become one of their KV head.

    Raises:
        UserError: a file that is damaged or of another model, or scores that are all equal where a
            share of the heads is asked for.
    """
    if form is None and path.suffix == ".npz" and path.is_file() and "samples" in read_arrays(path):
        own = HeadScores.load(path)
        if asked.model.layers:
            own.check_model(asked.model, asked.model.config_hash)
        return own
    name = form or format_of(path)
    table = FORMATS[name].read(path, asked)
    scores, done = asked.model.fitted(table.scores, query_rule)
    recipe: dict[str, Any] = {
        "kind": name,
        "source": path.name,
        **table.says,
        **done,
        "ratio": asked.ratio if asked.ratio is not None else table.says.get("ratio"),
        "ties": "lower layer and head first",
    }
    if asked.model.config_hash:
        recipe.update(model=asked.model.name, config_hash=asked.model.config_hash)
    found = HeadScores(scores, recipe)
    if asked.ratio is not None:
        found.mask(asked.ratio)  # refuses scores that tell no head from another
    return found


def mask_from(path: Path, ratio: float) -> HeadMask:
    """The mask of a share of the heads: masks, statistics and DuoAttention's patterns by their own
    rules, other head files by their scores.

    Raises:
        UserError: nothing there, nothing that says which heads are worth most, or a format that
            counts query heads.
    """
    if path.is_file() and path.suffix == ".npz":
        return read_heads(path, Asked(ratio=ratio)).mask(ratio)
    form = format_of(path) if path.exists() else "catekv"
    if form in ("catekv", "duo_attention"):
        return HeadMask.load(path, ratio)
    if form == "headkv":
        raise UserError(
            f"{path} counts query heads, and only the model says which KV heads they belong to; "
            "make a head file of it: catekv heads import FILE --model MODEL --output heads.npz"
        )
    return read_heads(path, Asked(ratio=ratio)).mask(ratio)
