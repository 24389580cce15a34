"""From what somebody asks for on a command line to a loaded model, settings and a run."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from catekv.errors import UserError
from catekv.evaluation.columns import defaults
from catekv.evaluation.columns.settings import (
    PAPER_BUDGET,
    PAPER_LENGTH,
    PAPER_RATIO,
    PAPER_RETENTION,
    PAPER_SAMPLES,
    PAPER_TASKS,
    MethodSpec,
    RunSettings,
    stable_hash,
)
from catekv.evaluation.columns.specification import (
    lacks_mask,
    method_specs,
    parse_masks,
    parse_methods,
    refuse_without_masks,
)
from catekv.evaluation.records import environment
from catekv.evaluation.records.records import RunDirectory
from catekv.evaluation.run import suites
from catekv.evaluation.run.distributed import Process, process_group
from catekv.evaluation.run.overlap import reference_contexts
from catekv.evaluation.run.request import CATEKV, EDGES, Request
from catekv.evaluation.run.request import split_list as split_list
from catekv.methods import available
from catekv.methods.head_mask import HeadMask
from catekv.models.compat import context_window
from catekv.models.source import model_source, short_name
from catekv.tasks.core.prompt import template_name

if TYPE_CHECKING:
    from catekv.evaluation.run.runner import Outcome
    from catekv.model import CateKVModel

RESULTS = Path("results")
#: Without a wish: what a model of unknown window surely takes and a small machine can run.
DEFAULT_LENGTH = 4096
DEFAULT_SAMPLES = 20


def open_model(
    request: Request, process: Process | None = None, *, for_text: bool = False
) -> CateKVModel:
    """Load the model that a request names (the embedded one without a name).

    Raises:
        UserError: it cannot be loaded, or has no tokenizer although it is wanted ``for_text``.
    """
    from transformers.utils import logging

    from catekv.model import CateKVModel

    # its bar would stand between a user and the one line that says what is wrong
    logging.disable_progress_bar()
    process = process or Process()
    model = CateKVModel.from_pretrained(
        request.model_path,
        method="full",
        dtype=request.dtype,
        device=process.device(request.device),
        attention=request.attention,
        tensor_parallel=process.shares_model,
    )
    if for_text and model.tokenizer is None:
        raise UserError(
            f"{request.model_path} has no tokenizer; tasks are text: add its files to the "
            "checkpoint"
        )
    return model


def check_methods(request: Request) -> None:
    """Refuse, before a model is loaded, what cannot be: unknown methods, those whose head mask
    nobody made, and sizes of catekv where neither it nor a method of equal memory runs.

    Raises:
        UserError: with what to do.
    """
    written = parse_methods(request.methods)
    if request.masks or default_masks(request):
        return
    path = request.model_path
    model_source(path)  # a name that leads nowhere is the first thing to say
    refuse_without_masks(written, path)
    sizes = [name for name in CATEKV if getattr(request, name) is not None]
    if sizes and not any(item.name == "catekv" for item in written):
        flag, label = "--" + sizes[0].replace("_", "-"), written[-1].name if written else "snapkv"
        raise UserError(
            f"{flag} is a size of catekv, which is not among the methods; write those of others "
            f"with their name, e.g. {label}:budget=256 (`catekv methods {label}`)"
        )


def lacks_masks(request: Request) -> bool:
    """Whether a method of the request needs a head mask and its model has none."""
    if request.masks or default_masks(request):
        return False
    return any(map(lacks_mask, parse_methods(request.methods)))


def settings_for(request: Request, model: CateKVModel) -> RunSettings:
    """Fill in every default and read the masks.

    Raises:
        UserError: unknown tasks, methods or options, unreadable masks, numbers out of range.
    """
    request = suites.applied(request)
    path = request.model_path
    tasks, lengths, samples = request.tasks, request.lengths, request.samples
    if request.paper:
        tasks = tasks or PAPER_TASKS
        lengths = lengths or (PAPER_LENGTH,)
        samples = PAPER_SAMPLES if samples is None else samples
    if request.embedded:
        tasks = tasks or defaults.EMBEDDED_TASKS
        lengths = lengths or (defaults.EMBEDDED_LENGTH,)
        samples = defaults.EMBEDDED_SAMPLES if samples is None else samples
    if tasks and not lengths and all(_is_natural(task) for task in tasks):
        lengths = (context_window(model.config) or 0,)
    masks = request.masks or default_masks(request)
    return RunSettings(
        model="embedded" if request.embedded else path,
        model_hash=environment.model_identity(path, revision_of(model)),
        tasks=tuple(tasks or PAPER_TASKS),
        lengths=tuple(lengths or (DEFAULT_LENGTH,)),
        samples=DEFAULT_SAMPLES if samples is None else samples,
        methods=method_specs_for(request, model),
        questions=request.questions or (("aware",) if request.paper else ("agnostic",)),
        seed=request.seed,
        chat_template=template_name(request.chat_template),
        dtype=str(model.dtype).removeprefix("torch."),
        device=str(model.device).split(":")[0],
        attention=request.attention,
        max_new_tokens=request.max_new_tokens,
        answers=request.answers,
        temperature=request.temperature,
        top_p=request.top_p,
        task_options=dict(request.task_options),
        prefill=request.prefill,
        chunk_size=request.chunk_size,
        joint_decode=request.joint_decode,
        batch_size=request.batch_size,
        sanity=request.sanity,
        paper=request.paper,
        suite=request.suite,
        reference_contexts=frozenset().union(*map(contexts_behind, masks)),
    )


def _is_natural(task: str) -> bool:
    from catekv.evaluation.run.cells import is_file
    from catekv.tasks.registry import find

    return not is_file(task) and find(task).natural


def contexts_behind(mask: str) -> frozenset[str]:
    """Hashes of the contexts that a mask ``[NAME=]SOURCE`` was made from; empty if nobody knows."""
    source = mask.rpartition("=")[2]
    if source.partition(":")[0] in ("random", "reversed"):
        return frozenset()
    path = Path(source)
    return frozenset(reference_contexts(path if path.is_dir() else path.parent))


def method_specs_for(request: Request, model: CateKVModel) -> tuple[MethodSpec, ...]:
    """The methods of a request with their masks read and their defaults filled in."""
    ratio, retention, budget = request.ratio, request.retention, request.budget
    if request.paper:
        ratio = PAPER_RATIO if ratio is None else ratio
        retention = PAPER_RETENTION if retention is None else retention
        budget = PAPER_BUDGET if budget is None else budget
    edges = defaults.mask_edges(request.embedded)
    sources = request.masks or default_masks(request)

    def masks_at(ratio: float | None) -> dict[str, HeadMask]:
        masks = parse_masks(sources, model.shape, ratio, edges)
        for name, mask in masks.items():
            _check_made_with(name, mask, request.made_with)
        return masks

    masks = masks_at(ratio)
    options = defaults.method_defaults(request.embedded)
    chosen = {
        "retention": retention,
        "budget": budget,
        **{name: getattr(request, name) for name in EDGES},
    }
    options["catekv"] = {
        **options.get("catekv", {}),
        **{name: value for name, value in chosen.items() if value is not None},
    }
    for name, extra in request.options.items():
        options[name] = {**options.get(name, {}), **extra}
    if request.preset != "published":
        for name in available():
            options[name] = {"preset": request.preset, **options.get(name, {})}
    return method_specs(request.methods, masks, options, masks_at)


def _check_made_with(name: str, mask: HeadMask, wanted: Mapping[str, float]) -> None:
    recipe = mask.meta.get("recipe")
    for option, value in wanted.items():
        known = recipe.get(option) if isinstance(recipe, dict) else None
        if isinstance(known, int | float) and abs(known - value) > 1e-9:
            raise UserError(
                f"head mask {name!r} was made with {option} {known:g}, not {value:g}; leave the "
                "flag out, or make a mask with ./run_headmask.sh"
            )


def revision_of(model: CateKVModel) -> str | None:
    """Commit of a hub model, None for a local folder."""
    commit = getattr(model.config, "_commit_hash", None)
    return str(commit) if commit else None


def default_masks(request: Request) -> tuple[str, ...]:
    """The masks that come with the model or were made for it; empty if there are none."""
    folder = defaults.shipped_masks(request.model_name)
    return () if folder is None else (str(folder),)


def default_output(settings: RunSettings) -> Path:
    """``results/<model>-<hash>``: the same command finds its folder again and goes on there.

    The number of samples is not part of the hash: asking for more adds to what is there.
    """
    name = re.sub(r"[^\w.-]+", "_", short_name(settings.model)) or "model"
    parts = [
        settings.configuration(),
        list(settings.tasks),
        list(settings.lengths),
        list(settings.questions),
        [[spec.label, spec.to_dict()] for spec in settings.methods],
    ]
    return RESULTS / f"{name}-{stable_hash(parts)[:8]}"


def run(
    request: Request,
    *,
    command: str = "",
    quiet: bool = False,
    make_masks: Callable[[CateKVModel], None] | None = None,
) -> int:
    """Evaluate, print the table, and return the exit code.

    1: a sample failed, or what must score 100 or 0 does not.

    Args:
        quiet: progress as plain lines.
        make_masks: called where :func:`lacks_masks` says so; puts masks where
            :func:`default_masks` looks. None, in a run of several processes and with published
            settings, which want masks made as published: methods that lack them are refused.

    Raises:
        UserError: as the model, :func:`settings_for` and the evaluation do.
    """
    from catekv.evaluation.report.report import render
    from catekv.evaluation.run.cells import build_cells
    from catekv.evaluation.run.runner import evaluate

    with process_group(request.parallel) as process:
        if process.world > 1 or request.paper or not lacks_masks(request):
            make_masks = None
        if make_masks is None:
            check_methods(request)
        model = open_model(request, process)
        if make_masks is not None:
            # what is wrong with the request is said before minutes of work
            build_cells(model, settings_for(replace(request, masks=("random:0",)), model))
            make_masks(model)
        settings = settings_for(request, model)
        output = request.output or default_output(settings)
        outcome = evaluate(
            model,
            settings,
            output,
            resume=request.resume,
            overwrite=request.overwrite,
            process=process,
            quiet=quiet,
            max_errors=request.max_errors,
            command=command,
        )
    if outcome.summary is None:
        # torchrun ends all processes as soon as one fails: the first speaks for the run, after it
        # has joined the records
        return 0
    print(render(outcome.summary))
    _print_where(output, outcome)
    if outcome.failed or outcome.invalid or outcome.gave_up:
        process.outlive_siblings()
        return 1
    return 0


def _print_where(output: Path, outcome: Outcome) -> None:
    print(f"Results: {output} (summary.md, report.html, summary.csv, summary.json, samples.jsonl)")
    if not outcome.measured:
        print("All of this had been measured before; --overwrite measures it again.")
    if outcome.skipped:
        print(f"{outcome.skipped} records say why their sample was left out.")
    for sentence in outcome.invalid:
        print(f"error: validity check: {sentence}", file=sys.stderr)
    if outcome.failed:
        more = (
            "the rest was not tried (--max-errors)"
            if outcome.gave_up
            else "the same command tries them again"
        )
        print(
            f"error: {outcome.failed} measurements failed, the first with {_first_error(output)}; "
            f"see the error records in {output}, {more}",
            file=sys.stderr,
        )


def _first_error(output: Path) -> str:
    """Type and message of the first error record of a run directory, on one line."""
    for record in RunDirectory(output).records().values():
        if record.error is not None and not record.skipped:
            return " ".join(f"{record.error['type']}: {record.error['message']}".split())
    return "an error"
