"""``catekv heads``: which heads of a model need their entries."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from catekv.calibration.heads.curves import CurveSettings, measure_curves, read_texts, selector_of
from catekv.calibration.heads.head_scores import HeadScores
from catekv.commands.arguments import PROGRESS
from catekv.commands.schema import Action, Group
from catekv.evaluation.run.request import Request
from catekv.options import REQUIRED, option


@dataclass(frozen=True)
class Measured:
    """Whose heads are measured, and where the result goes."""

    output: Path = option(REQUIRED, "npz file of curves and importance", metavar="FILE")
    model: str | None = option(
        None,
        "local folder, .gguf file or hub name (default: the embedded model)",
        positional=True,
        metavar="MODEL",
    )


REQUEST = Group(Request, ("dtype", "device", "attention", "chat_template"))
MEASURED, CURVES = Group(Measured), Group(CurveSettings)


def _curves(arguments: argparse.Namespace) -> int:
    from catekv.evaluation.records import environment
    from catekv.evaluation.run.session import model_path, open_model, revision_of

    asked, settings = MEASURED.read(arguments), CURVES.read(arguments)
    request = REQUEST.read(arguments, model=asked.model)
    selector_of(settings.selector)  # refused before a model is loaded
    model = open_model(request, for_text=True)
    texts = read_texts(model, settings, request.chat_template)
    path = model_path(request)
    origin = {
        "model": "embedded" if request.embedded else path,
        "model_hash": environment.model_identity(path, revision_of(model)),
    }
    with tqdm(total=len(texts), disable=arguments.quiet, desc="curves", unit="text") as bar:
        scores = measure_curves(model, texts, settings, origin=origin, advance=bar.update)
    scores.save(asked.output)
    print(describe(scores))
    print(f"Curves: {asked.output}")
    print(f"Use them: --methods curvekv:curves={asked.output},keep=0.25")
    return 0


def describe(scores: HeadScores, shown: int = 5) -> str:
    """The heads that are worth most and least, with their intervals."""
    values, bounds = scores.scores, scores.intervals()
    order = values.argsort(axis=None, kind="stable")[::-1].tolist()

    def line(place: int) -> str:
        head = divmod(place, scores.shape[1])
        text = f"  layer {head[0]} head {head[1]}: {values[head]:.4g}"
        return (
            text if bounds is None else f"{text} ({bounds[0][head]:.4g} .. {bounds[1][head]:.4g})"
        )

    title = (
        f"{values.size} heads ({scores.shape[0]} layers x {scores.shape[1]}), "
        f"{len(scores.samples)} samples, {scores.recipe.get('seconds', '?')} s"
    )
    most, least = map(line, order[:shown]), map(line, order[-shown:])
    return "\n".join([title, "most", *most, "least", *least])


OPTIONS = {
    "curves": Action(
        "measure what every head loses at every share of its entries",
        (MEASURED, CURVES, REQUEST, PROGRESS),
        _curves,
    ),
}
