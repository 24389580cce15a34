"""Summaries and reports of runs: from records to files. No model is needed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from catekv.errors import UserError
from catekv.evaluation.records.records import MANIFEST, RunDirectory
from catekv.evaluation.report import build, html, write
from catekv.evaluation.report.document import Section
from catekv.evaluation.report.groups import Group
from catekv.evaluation.report.inputs import read_inputs, read_run
from catekv.evaluation.report.official import export_official as export_official
from catekv.evaluation.report.rescoring import rescored
from catekv.evaluation.report.summary import AVERAGE as AVERAGE
from catekv.evaluation.report.summary import summarise as summarise
from catekv.evaluation.report.summary import without_times as without_times
from catekv.evaluation.report.summary_files import write_tables
from catekv.evaluation.report.summary_text import render as render
from catekv.files import write_atomically
from catekv.models.source import short_name


@dataclass(frozen=True)
class Written:
    """What :func:`report_on` made."""

    folder: Path
    files: list[Path]
    groups: list[Group]
    problems: list[str]


def render_html(summary: Mapping[str, Any]) -> str:
    """A summary's tables and plots as one HTML page without outside references."""
    document = Section(f"Compressed caches: {short_name(str(summary['model']))}")
    build.add_summary(document, summary, build.Options())
    return html.page(document)


def write_summary(folder: Path, summary: Mapping[str, Any]) -> None:
    """Write ``summary.{json,csv,md}`` and ``report.html`` into a run directory."""
    write_tables(folder, summary)
    write_atomically(folder / write.PAGE, render_html(summary))


def report(folder: str | Path, *, rescore: bool = False) -> dict[str, Any]:
    """Summarise a run directory and write its summary files.

    Args:
        folder: of an earlier run, finished or not.
        rescore: score the stored predictions again with this version's metrics first.

    Raises:
        UserError: if the folder holds no run, or its files cannot be read or written.
    """
    path = Path(folder)
    if rescore:
        rescore_run(path)
    run = read_run(path)
    summary = summarise(run.records, run.manifest)
    try:
        write_summary(path, summary)
    except OSError as error:
        raise _unwritable(path, error) from error
    return summary


def _unwritable(path: Path, error: OSError) -> UserError:
    return UserError(
        f"cannot write summary files to {path}: {error.strerror}; change its permissions"
    )


def rescore_run(path: Path) -> None:
    """Give the stored predictions of a run directory the scores of this version's metrics."""
    if not (path / MANIFEST).is_file():
        raise UserError(f"{path} is no run directory (no {MANIFEST}); give one that evaluate made")
    directory = RunDirectory(path)
    with directory.claimed():
        # from here on there is one file, which is replaced in one step
        directory.consolidate()
        directory.replace_records([rescored(r) for r in directory.records().values()])


def report_on(
    paths: Sequence[str | Path],
    *,
    output: str | Path | None = None,
    rescore: bool = False,
    options: build.Options | None = None,
) -> Written:
    """One report of runs, folders of runs, efficiency results, head masks and needle results.

    Args:
        paths: see :func:`catekv.evaluation.report.inputs.read_inputs`.
        output: folder for ``report.{html,md,csv}`` and ``figures/``; default: the first path, or
            the folder that it is in.
        rescore: score the stored predictions of all runs again first.

    Run directories that are given themselves get their own summary files anew.

    Raises:
        UserError: nothing to report on, or files that cannot be read or written.
    """
    inputs = read_inputs(paths)
    if rescore:
        if not inputs.runs:
            raise UserError("there is no run to score again; leave out --rescore")
        for run in inputs.runs:
            rescore_run(run.path)
        inputs = read_inputs(paths)
    first = Path(paths[0])
    folder = Path(output) if output is not None else first if first.is_dir() else first.parent
    document, groups = build.build(inputs, options or build.Options())
    files = write.write(folder, document, groups)
    given = {Path(path).resolve() for path in paths}
    for group in groups:
        for run in group.runs:
            if run.path.resolve() in given:
                own = (
                    group.summary if len(group.runs) == 1 else summarise(run.records, run.manifest)
                )
                try:
                    write_tables(run.path, own)
                except OSError as error:
                    raise _unwritable(run.path, error) from error
    return Written(folder, files, groups, inputs.problems)
