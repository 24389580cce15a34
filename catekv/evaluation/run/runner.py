"""Measure methods on tasks: one prefill per sample serves all methods, one record per result."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from catekv.errors import UserError
from catekv.evaluation.columns.settings import MethodSpec, RunSettings
from catekv.evaluation.records.records import MANIFEST, RunDirectory
from catekv.evaluation.report import report
from catekv.evaluation.run import sanity
from catekv.evaluation.run.cells import build_cells
from catekv.evaluation.run.distributed import Process
from catekv.evaluation.run.loop import Loop
from catekv.evaluation.run.manifest import make_manifest
from catekv.evaluation.run.progress import BAR, LINES, NONE
from catekv.files import write_json
from catekv.methods.equal_memory import keeps_everything

if TYPE_CHECKING:
    from catekv.model import CateKVModel

#: Share of failed measurements above which a run gives up.
MAX_ERRORS = 0.5


@dataclasses.dataclass(frozen=True)
class Outcome:
    """Result of a run.

    Attributes:
        summary: first process only.
        failed, measured: measurements of this run; skipped: samples it left out.
        invalid: what the validity columns found wrong, one sentence each.
        gave_up: whether so much failed that the rest was not tried.
    """

    summary: dict[str, Any] | None
    failed: int
    measured: int
    skipped: int = 0
    invalid: tuple[str, ...] = ()
    gave_up: bool = False


def evaluate(
    model: CateKVModel,
    settings: RunSettings,
    output: str | Path,
    *,
    resume: bool = True,
    overwrite: bool = False,
    process: Process | None = None,
    progress: bool = True,
    quiet: bool = False,
    max_errors: float = MAX_ERRORS,
    command: str = "",
    foretell: bool = True,
) -> Outcome:
    """Measure everything in ``settings`` that ``output`` does not hold yet, and summarise.

    Args:
        model: as loaded; its own method is not used.
        settings: what to measure; ``settings.model_hash`` must belong to ``model``.
        output: run directory; a run that was interrupted, even killed, goes on in it.
        resume, overwrite: see :meth:`RunDirectory.prepare`.
        process: this process of a run of several: each measures a part of the samples, or all
            share the model and measure the same ones.
        progress: show the running scores on stderr; quiet: as plain lines for a log, not as a bar.
        max_errors: share of failed measurements above which the rest is not tried.
        command: recorded in the manifest.
        foretell: say of a long run how long it will take.

    Raises:
        UserError: tasks, lengths or methods that do not fit the model, or a folder that may not
            hold the results. Nothing has been measured then. What goes wrong in one sample becomes
            an error record instead.
    """
    if not 0 < max_errors <= 1:
        raise UserError(f"max_errors {max_errors} is no share; give a number above 0, at most 1")
    process = process or Process()
    _validate_methods(model, settings)
    cells = build_cells(model, settings)
    directory = RunDirectory(output, *process.shard)
    manifest = make_manifest(settings, cells, command)
    manifest["starts"][-1]["processes"] = {"count": process.world, "parallel": process.parallel}
    with contextlib.ExitStack() as held:
        process.first_decides(lambda: held.enter_context(directory.claimed()))
        process.first_decides(
            lambda: directory.prepare(manifest, resume=resume, overwrite=overwrite)
        )
        if process.is_first and progress:
            for warning in (*manifest["warnings"], *_untouched(model, settings)):
                print(f"warning: {warning}", file=sys.stderr)
        process.barrier()
        shown = progress and process.is_first
        with directory if process.writes else contextlib.nullcontext():
            loop = Loop(model, settings, directory, process, max_errors)
            loop.run(cells, (LINES if quiet else BAR) if shown else NONE, foretell)
        process.barrier()
        outcome = _outcome(loop, process)
        return _concluded(outcome, directory, manifest) if process.is_first else outcome


def _validate_methods(model: CateKVModel, settings: RunSettings) -> None:
    for spec in settings.methods:
        method = spec.create()
        method.validate(model.shape)
        method.validate_model(settings.model_hash)


def _untouched(model: CateKVModel, settings: RunSettings) -> Iterator[str]:
    """A warning per length at which methods have nothing to compress, before it costs time."""

    def keeps(spec: MethodSpec, length: int) -> bool:
        try:
            method = spec.for_prompt(length, model.shape)
        except UserError:
            return False  # the records of its samples say why it cannot be measured
        return spec.name != "full" and keeps_everything(method, length, model.shape)

    for length in filter(None, settings.lengths):
        names = [spec.label for spec in settings.methods if keeps(spec, length)]
        if names:
            yield (
                f"nothing to compress: {', '.join(names)} keep the whole of {length} tokens, so "
                "their scores will be those of full; give longer --lengths or a smaller --budget"
            )


def _outcome(loop: Loop, process: Process) -> Outcome:
    """What all processes together did."""
    return Outcome(
        None,
        failed=process.total(loop.failed),
        measured=process.total(loop.measured),
        skipped=process.total(loop.skipped),
        gave_up=process.total(int(loop.hopeless)) > 0,
    )


def _concluded(outcome: Outcome, directory: RunDirectory, own: dict[str, Any]) -> Outcome:
    """Join the records of all processes and summarise them."""
    directory.consolidate()
    manifest = directory.read_manifest()
    if manifest is None:
        write_json(directory.path / MANIFEST, own)
        raise UserError(
            f"the manifest in {directory.path} was deleted during the run; it was written again, "
            f"the records are complete, `catekv report {directory.path}` makes the summary"
        )
    records = directory.records().values()
    summary = report.summarise(records, manifest)
    try:
        report.write_summary(directory.path, summary)
    except UserError as error:
        raise UserError(
            f"{error}; the records are complete, `catekv report {directory.path}` writes the "
            "summary"
        ) from error
    invalid = tuple(sanity.violations(records))
    return dataclasses.replace(outcome, summary=summary, invalid=invalid)
