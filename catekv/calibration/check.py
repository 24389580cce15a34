"""A first answer to "does it hurt my model": masks, a small evaluation, fidelity, one sentence.

Every step is one that a command of its own does at leisure, with the same files; a check that was
interrupted goes on in its folder.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from catekv.calibration import CVConfig
from catekv.calibration.first_sample import FirstSample, sweep_seconds
from catekv.calibration.head_masks import report as mask_report
from catekv.calibration.head_masks.result import QUICK, SweepSettings
from catekv.calibration.head_masks.sweep import sweep, write_masks
from catekv.evaluation.columns import defaults
from catekv.evaluation.columns.specification import parse_methods
from catekv.evaluation.fidelity import command_settings
from catekv.evaluation.fidelity.run import fidelity
from catekv.evaluation.fidelity.settings import FULL, NONE, PROSE
from catekv.evaluation.fidelity.summary import Row
from catekv.evaluation.records import environment
from catekv.evaluation.records.recipe import refuse_other
from catekv.evaluation.report.inputs import VERDICT
from catekv.evaluation.report.opening import opening
from catekv.evaluation.report.write import MARKDOWN, NUMBERS, PAGE
from catekv.evaluation.run import runner, session
from catekv.evaluation.run.request import CHECKED_METHODS, CHECKED_TASKS, Request
from catekv.files import read_object, refuse_foreign, write_json
from catekv.methods.catekv import DEFAULT_RATIO

if TYPE_CHECKING:
    from catekv.model import CateKVModel

SETTINGS = "check.json"
#: Folders of the steps.
MASKS, EVALUATION, FIDELITY = "masks", "evaluation", "fidelity"
#: A consistent head keeps this share of the prompt, about half of the cache is kept in all.
_BUDGET_SHARE = 8


@dataclass(frozen=True)
class Extent:
    """How much a check measures.

    Args:
        length: tokens of all prompts.
        samples: of every task. passages: of text. references, held_out: samples that make masks.
        ks: percentiles that are tried for them.
        new_tokens: most tokens of an answer to the usual tasks, whose answers come first or not at
            all; None: what the tasks allow.
        reverse: whether the reverse of the chosen mask is scored too, which the verdict leaves out.
    """

    length: int
    samples: int
    passages: int
    references: int
    held_out: int
    ks: tuple[float, ...]
    new_tokens: int | None = None
    reverse: bool = True


USUAL = Extent(2048, 30, 12, 12, 6, (0.984, 0.988, 0.992, 0.996))
SMALL = Extent(
    QUICK["length"], 10, 6, QUICK["samples"], QUICK["held_out_samples"], QUICK["ks"], 32, False
)


@dataclass(frozen=True)
class Outcome:
    """What a check found: the sentence, and how many measurements failed."""

    sentence: str
    failed: int


def check(
    model: CateKVModel,
    request: Request,
    extent: Extent,
    output: Path,
    *,
    quiet: bool = False,
    new_masks: bool = False,
    say: Callable[[str], None] = lambda line: None,
) -> Outcome:
    """Measure what ``output`` does not hold yet, and say what it means.

    Args:
        model: as loaded. request: names it; its tasks, methods, lengths and seed hold.
        new_masks: make masks even where the model has some.
        say: told how long it will take.

    Raises:
        UserError: a model that cannot be measured, or a folder with a check of other settings.
    """
    request = _completed(request, extent)
    _claim(
        output,
        request,
        extent,
        environment.model_identity(request.model_path, session.revision_of(model)),
    )
    there = () if new_masks else session.default_masks(request)
    making = not there and not (output / MASKS / "report.json").is_file()
    say(_estimate(model, request, extent, making))
    masks = there or (str(_masks(model, request, extent, output / MASKS, quiet)),)
    request = dataclasses.replace(request, masks=masks)
    plain = dataclasses.replace(request, tasks=(NONE,), samples=extent.passages)
    # made before anything is measured: it refuses methods that cannot be compared
    closeness = command_settings.settings_for(plain, model, (PROSE,), (), 64)
    evaluated = runner.evaluate(
        model,
        session.settings_for(request, model),
        output / EVALUATION,
        quiet=quiet,
        foretell=False,
    )
    measured = fidelity(
        model,
        closeness,
        output / FIDELITY,
        quiet=quiet,
        foretell=False,
    )
    summary = evaluated.summary
    assert summary is not None  # there is one process
    told = opening(summary["averages"], summary["methods"], summary["full"])
    sentence = f"{told or 'No sample could be compared with full.'} {text_clause(measured.rows)}"
    write_json(output / VERDICT, {"sentence": sentence})
    return Outcome(sentence, evaluated.failed)


def text_clause(rows: Sequence[Row]) -> str:
    """Which method is closest to full on plain text, and whether the passages tell."""
    best, *others = sorted(rows, key=lambda row: row.divergence.mean)
    words = f"On plain text {best.method} is closest to full (KL {best.divergence.mean:.4f}"
    if others:
        words += f", next {others[0].method} {others[0].divergence.mean:.4f}"
    count = best.divergence.count
    if others and others[0].divergence.low <= best.divergence.high:
        return f"{words}; {count} passages hardly tell them apart)."
    return f"{words}; {count} passages)."


def _completed(request: Request, extent: Extent) -> Request:
    """The request with the sizes of a check; what was given holds."""
    options = defaults.short_prompts()
    edges = defaults.mask_edges(embedded=True)
    least = 2 * (edges["init_tokens"] + edges["recent_tokens"])
    budget = max(extent.length // _BUDGET_SHARE, least)
    options["catekv"] = {**options["catekv"], **edges, "budget": budget}
    methods = request.methods or CHECKED_METHODS
    if not any(method.name == FULL for method in parse_methods(methods)):
        # what everything is compared with
        methods = (FULL, *methods)
    return dataclasses.replace(
        request,
        tasks=request.tasks or CHECKED_TASKS,
        lengths=(extent.length,),
        samples=extent.samples,
        methods=methods,
        ratio=DEFAULT_RATIO if request.ratio is None else request.ratio,
        options=options,
        questions=("agnostic",),
        max_new_tokens=None if request.tasks else extent.new_tokens,
        # a check shows no decode times, which are all that this leaves out
        joint_decode=True,
    )


def _claim(output: Path, request: Request, extent: Extent, identity: str) -> None:
    """Note the settings in the folder, or refuse one with others."""
    wanted = {
        "model_hash": identity,
        "dtype": request.dtype,
        "seed": request.seed,
        "ratio": request.ratio,
        "tasks": list(request.tasks),
        **dataclasses.asdict(extent),
    }
    path = output / SETTINGS
    if path.exists():
        there = read_object(path, f"delete {output} and start again")
        refuse_other(output, there, wanted, "choose another --output or delete it", "a check")
        return
    refuse_foreign(output, (PAGE, MARKDOWN, NUMBERS), SETTINGS)
    write_json(path, wanted)


def _sweep_settings(request: Request, extent: Extent) -> SweepSettings:
    """How masks are made where there are none."""
    options = dict(request.options["catekv"])
    edges = ("window", "init_tokens", "recent_tokens", "budget")
    return SweepSettings(
        references=QUICK["references"],
        length=extent.length,
        samples=extent.references,
        ks=extent.ks,
        alphas=QUICK["alphas"],
        ratio=request.ratio or DEFAULT_RATIO,
        cv=CVConfig(**{key: options[key] for key in edges}),
        method_options=options,
        held_out_tasks=request.tasks,
        held_out_samples=extent.held_out,
        questions=request.questions,
        max_new_tokens=request.max_new_tokens,
        reverse=extent.reverse,
        seed=request.seed,
        chat_template=request.chat_template,
        chunk_size=request.chunk_size,
    )


def _masks(model: CateKVModel, request: Request, extent: Extent, folder: Path, quiet: bool) -> Path:
    """The chosen mask's folder; made unless it is there."""
    chosen = folder / "chosen"
    if (folder / "report.json").is_file():
        return chosen
    name = request.model or mask_report.EMBEDDED
    settings = _sweep_settings(request, extent)
    identity = environment.model_identity(request.model_path, session.revision_of(model))
    result = sweep(
        model, settings, folder, model_name=name, model_hash=identity, progress=not quiet
    )
    write_masks(result, folder)
    mask_report.write(result, folder)
    return chosen


def _estimate(model: CateKVModel, request: Request, extent: Extent, making: bool) -> str:
    """How long the check will take, from one sample that is read and answered here and now."""
    first = FirstSample.of(
        model, request.tasks[0], extent.length, request.seed, request.chat_template,
        request.chunk_size, request.max_new_tokens,
    )  # fmt: skip
    read, answered = first.read, first.answered
    tasks, columns = len(request.tasks), len(request.methods)
    seconds = tasks * extent.samples * (read + columns * answered)
    seconds += extent.passages * (read + columns * answered)
    if making:
        seconds += sweep_seconds(first, _sweep_settings(request, extent))
    quick = "--quick; or " if extent.length > SMALL.length else ""
    return first.foretell(seconds, f"{quick}fewer --samples, --passages or --methods")
