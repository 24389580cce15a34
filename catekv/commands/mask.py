"""The command ``catekv mask``."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

from catekv.commands.schema import Action, Group
from catekv.errors import UserError
from catekv.evaluation.options import MOST_HEADS, MOST_LAYERS, REQUIRED, option, refuse_twice


@dataclass(frozen=True)
class Shown:
    """A mask to show."""

    path: Path = option(REQUIRED, "mask file or folder of masks", positional=True)
    ratio: float | None = option(None, "which mask of a folder")


@dataclass(frozen=True)
class Converted:
    """What is written as masks."""

    path: Path = option(
        REQUIRED, "stored statistics, or a head file of any format", positional=True
    )
    output: Path = option(REQUIRED, "folder of the masks", positional=True)
    ratios: tuple[float, ...] = option(REQUIRED, "shares of adaptive heads, a mask each")
    strict: bool = option(False, "count heads as KVzip's released code does: one fewer")


@dataclass(frozen=True)
class Drawn:
    """A mask of random heads."""

    output: Path = option(REQUIRED, "folder of the mask", positional=True)
    layers: int = option(REQUIRED, "layers of the model", least=1, most=MOST_LAYERS)
    kv_heads: int = option(REQUIRED, "KV heads of a layer", least=1, most=MOST_HEADS)
    ratio: float = option(REQUIRED, "share of adaptive heads")
    seed: int = option(0, "of the draw (default: {default})")


def _show(arguments: argparse.Namespace) -> int:
    from catekv.methods.head_mask import HeadMask

    print(HeadMask.load(arguments.path, arguments.ratio).show())
    return 0


def _convert(arguments: argparse.Namespace) -> int:
    from catekv.calibration.heads.exchange import mask_from
    from catekv.calibration.kvzip.heads import released_mask
    from catekv.methods.head_mask import mask_file_name, refuse_other_mask

    masks = []
    for ratio in arguments.ratios:
        mask = mask_from(arguments.path, ratio)
        if arguments.strict:
            mask = released_mask(mask, ratio)
            if not mask.adaptive.any():
                raise UserError(
                    f"--strict leaves no adaptive head at a ratio of {ratio:g}; give a larger one"
                )
        masks.append(mask)
    # nothing is written where one cannot be
    refuse_twice("the list of files", [mask_file_name(mask.nominal_ratio) for mask in masks])
    for mask in masks:
        refuse_other_mask(arguments.output, mask)
    for mask in masks:
        print(mask.save(arguments.output))
    return 0


def _random(arguments: argparse.Namespace) -> int:
    from catekv.methods.head_mask import HeadMask, refuse_other_mask

    shape = (arguments.layers, arguments.kv_heads)
    mask = HeadMask.random(shape, arguments.ratio, arguments.seed)
    refuse_other_mask(arguments.output, mask)
    print(mask.save(arguments.output))
    return 0


OPTIONS = {
    "show": Action("print which heads are adaptive", (Group(Shown),), _show),
    "convert": Action(
        "stored statistics, or a head file of any format, to masks", (Group(Converted),), _convert
    ),
    "random": Action("a mask of random heads, for comparison", (Group(Drawn),), _random),
}
