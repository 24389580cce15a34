"""``catekv kvzap train | show``."""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from catekv.calibration.kvzip.training import GateSettings, train_gates
from catekv.commands.arguments import PROGRESS, TEXTS
from catekv.commands.described import described
from catekv.commands.progress import counted
from catekv.commands.schema import Action, Group
from catekv.errors import UserError
from catekv.evaluation.options import REQUIRED, option, refuse_unheeded
from catekv.evaluation.run.request import MODEL, Request
from catekv.files import check_folder
from catekv.methods.kvzap.gates import CONFIG_FILE, TENSOR_FILE, Gates

#: share of the pieces that gates are measured on and never learn from
HELD_OUT = 0.05


@dataclass(frozen=True)
class Trained:
    """Where gates go."""

    output: Path = option(REQUIRED, "folder of the gates")
    overwrite: bool = option(False, "replace what is there")


@dataclass(frozen=True)
class Shown:
    """Gates to show."""

    folder: Path = option(REQUIRED, "folder of the gates", positional=True)


REQUEST = Group(Request, (*MODEL, "chunk_size"))
TRAINED = Group(Trained)
SETTINGS = Group(GateSettings)


def _train(arguments: argparse.Namespace) -> int:
    from catekv.evaluation.records import environment
    from catekv.evaluation.run.session import open_model, revision_of

    asked, settings = TRAINED.read(arguments), SETTINGS.read(arguments)
    request = REQUEST.read(arguments)
    if settings.kind == "linear":
        steps = ("hidden", "epochs", "learning_rate", "batch_tokens")
        refuse_unheeded(settings, steps, "linear gates are solved for, not trained in steps")
    if not asked.overwrite and any((asked.output / f).exists() for f in (CONFIG_FILE, TENSOR_FILE)):
        raise UserError(f"{asked.output} holds gates; use --overwrite or another --output")
    check_folder(asked.output)
    model = open_model(request, for_text=True)
    clock = time.perf_counter()
    pieces = TEXTS.read(arguments).pieces(model.tokenizer, settings.seed)
    if len(pieces) < 2:
        raise UserError(
            f"{len(pieces)} piece of text is too little, one is needed to measure on; give more "
            "text, or a smaller --length"
        )
    # spread over the texts
    every = min(len(pieces), round(1 / HELD_OUT))
    path = request.model_path
    found = train_gates(
        model,
        [piece for index, piece in enumerate(pieces) if index % every != every - 1],
        pieces[every - 1 :: every],
        settings,
        meta={
            "model": "embedded" if request.embedded else path,
            "model_hash": environment.model_identity(path, revision_of(model)),
            "texts": list(arguments.text),
            "pieces": len(pieces),
            "length": arguments.length,
        },
        chunk_size=request.chunk_size,
        progress=(lambda text: None) if arguments.quiet else counted(),
    )
    found.save(asked.output)
    if not arguments.quiet:
        print(file=sys.stderr)
    print(describe(Gates.load(asked.output)))
    print(f"\nGates: {asked.output} ({time.perf_counter() - clock:.0f} s)")
    print(f"Try it: catekv evaluate --methods full kvzap:predictor={asked.output},threshold=-4")
    return 0


def describe(gates: Gates) -> str:
    """What a folder of gates says, for people."""
    inputs, outputs, hidden = gates.sizes
    kind = "linear" if hidden is None else f"mlp of {hidden} hidden units"
    lines = [
        f"{len(gates.layers)} layers, {kind}, {inputs} inputs, {outputs} KV heads, model "
        f"{gates.meta.get('model', 'unknown')}"
    ]
    if "pieces" in gates.meta:
        lines.append(
            f"trained on {gates.meta['pieces']} pieces of {gates.meta['length']} tokens of "
            f"{', '.join(gates.meta['texts'])}"
        )
    if gates.meta.get("explained"):
        lines.append("layer  share of the held-out scores' variance foretold")
        lines += [f"{layer:5}  {share:.3f}" for layer, share in enumerate(gates.meta["explained"])]
    return "\n".join(lines)


def _show(arguments: argparse.Namespace) -> int:
    folder = arguments.folder
    print(described(describe, Gates.load(folder), folder, "gates", "catekv kvzap train"))
    return 0


OPTIONS = {
    "train": Action(
        "train gates that foretell KVzip+ scores, on your text",
        (REQUEST, TRAINED, TEXTS, SETTINGS, PROGRESS),
        _train,
    ),
    "show": Action("print how gates were made and how good", (Group(Shown),), _show),
}
