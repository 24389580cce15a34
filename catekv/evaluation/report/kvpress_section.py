"""Results that kvpress measured, beside ours and marked as theirs."""

from __future__ import annotations

from collections.abc import Sequence

from catekv.evaluation import tables
from catekv.evaluation.predictions.kvpress_runs import KvpressRun
from catekv.evaluation.report.document import NOTE, WARNING, Section, Table, Text

#: scores of a run that are shown one by one; of more their mean stands there
_MOST = 4


def kvpress_section(runs: Sequence[KvpressRun]) -> Section:
    """A table of all runs, the same model and data set together."""
    ordered = sorted(
        runs, key=lambda run: (run.model, run.dataset, run.data_dir or "", run.kept or 0)
    )
    header = ["model", "data", "press", "kept", "question", "their scores"]
    rows = [
        [
            run.model,
            run.dataset if run.data_dir is None else f"{run.dataset} {run.data_dir}",
            run.press_name,
            "-" if run.kept is None else tables.percent(run.kept),
            "inside" if run.query_aware else "after",
            _scores(run.scores),
        ]
        for run in ordered
    ]
    section = Section("Results of kvpress")
    caption = "Measured by kvpress, not here: its prompts, its scores, in its own units"
    section.blocks.append(Table(caption, header, rows, theirs=frozenset({5})))
    unfinished = [run.path.name for run in runs if not run.finished]
    if unfinished:
        names = ", ".join(unfinished)
        section.blocks.append(Text(f"Without config.yaml, so not finished: {names}.", WARNING))
    section.blocks.append(
        Text(
            "kept is 1 - compression_ratio, measured where the predictions say it; a press with a "
            "threshold has no other.",
            NOTE,
        )
    )
    return section


def _scores(scores: dict[str, float]) -> str:
    if not scores:
        return "-"
    if len(scores) <= _MOST:
        return ", ".join(f"{name} {value:g}" for name, value in scores.items())
    metrics = {name.rpartition("/")[2] for name in scores}
    mean = sum(scores.values()) / len(scores)
    if len(metrics) == 1:
        return f"{metrics.pop()} {mean:.2f} (mean of {len(scores)} tasks)"
    return f"{len(scores)} numbers, see metrics.json"
