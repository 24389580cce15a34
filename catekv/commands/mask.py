"""The command ``catekv mask``."""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

from catekv.commands.arguments import PROGRESS, TEXTS
from catekv.commands.progress import counted
from catekv.commands.schema import Action, Group
from catekv.evaluation.run.request import MODEL, Request
from catekv.options import MOST_HEADS, MOST_LAYERS, REQUIRED, option


@dataclass(frozen=True)
class Shown:
    """A mask to show."""

    path: Path = option(REQUIRED, "mask file or folder of masks", positional=True)
    ratio: float | None = option(None, "which mask of a folder")


@dataclass(frozen=True)
class Converted:
    """What is written as masks."""

    path: Path = option(REQUIRED, "DuoAttention pattern or stored statistics", positional=True)
    output: Path = option(REQUIRED, "folder of the masks", positional=True)
    ratios: tuple[float, ...] = option(REQUIRED, "shares of adaptive heads, a mask each")


@dataclass(frozen=True)
class Drawn:
    """A mask of random heads."""

    output: Path = option(REQUIRED, "folder of the mask", positional=True)
    layers: int = option(REQUIRED, "layers of the model", least=1, most=MOST_LAYERS)
    kv_heads: int = option(REQUIRED, "KV heads of a layer", least=1, most=MOST_HEADS)
    ratio: float = option(REQUIRED, "share of adaptive heads")
    seed: int = option(0, "of the draw (default: {default})")


@dataclass(frozen=True)
class Repeated:
    """Masks by what heads look at while the model writes texts once more (KVzip)."""

    output: Path = option(REQUIRED, "folder of the masks", positional=True)
    ratios: tuple[float, ...] = option(
        (0.4, 0.6), "shares of adaptive heads, a mask each (default: {default}; published: 0.6)"
    )
    strict: bool = option(False, "count heads as released: one fewer")


REQUEST = Group(Request, (*MODEL, "chunk_size", "seed"))
REPEATED = Group(Repeated)


def _kvzip(arguments: argparse.Namespace) -> int:
    from catekv.calibration.kvzip.heads import mask_of, score_heads
    from catekv.evaluation.run.session import model_path, open_model
    from catekv.methods.formulas.repeat import Repeat
    from catekv.methods.head_mask import save_gates
    from catekv.models.shape import config_hash

    asked, request, texts = (
        REPEATED.read(arguments), REQUEST.read(arguments), TEXTS.read(arguments),
    )  # fmt: skip
    model = open_model(request, for_text=True)
    pieces = texts.pieces(model.tokenizer, request.seed)
    show = (lambda text: None) if arguments.quiet else counted()
    scores = score_heads(model, pieces, Repeat(), request.chunk_size, show)
    meta = {
        "model": "embedded" if request.embedded else model_path(request),
        "config_hash": config_hash(model.config),
        "recipe": {
            "kind": "kvzip", "texts": list(texts.text), "pieces": len(pieces),
            "length": texts.length, "strict": asked.strict,
        },
    }  # fmt: skip
    if not arguments.quiet:
        print(file=sys.stderr)
    for ratio in asked.ratios:
        mask = mask_of(scores, ratio, texts.length if asked.strict else None, **meta)
        print(mask.save(asked.output))
    print(save_gates(asked.output, scores.amax(dim=0)))
    return 0


def _show(arguments: argparse.Namespace) -> int:
    from catekv.methods.head_mask import HeadMask

    print(HeadMask.load(arguments.path, arguments.ratio).show())
    return 0


def _convert(arguments: argparse.Namespace) -> int:
    from catekv.methods.head_mask import HeadMask

    for ratio in arguments.ratios:
        print(HeadMask.load(arguments.path, ratio).save(arguments.output))
    return 0


def _random(arguments: argparse.Namespace) -> int:
    from catekv.methods.head_mask import HeadMask

    shape = (arguments.layers, arguments.kv_heads)
    print(HeadMask.random(shape, arguments.ratio, arguments.seed).save(arguments.output))
    return 0


OPTIONS = {
    "show": Action("print which heads are adaptive", (Group(Shown),), _show),
    "convert": Action(
        "DuoAttention pattern or stored statistics to mask files", (Group(Converted),), _convert
    ),
    "kvzip": Action(
        "score heads by a repetition of texts", (REQUEST, REPEATED, TEXTS, PROGRESS), _kvzip
    ),
    "random": Action("a mask of random heads, for comparison", (Group(Drawn),), _random),
}
