"""The report of a sweep: every candidate, the chosen mask, a picture of the heads."""

from __future__ import annotations

import json
import shlex
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from catekv.calibration.head_masks.contrast import sentence
from catekv.evaluation import figures, tables
from catekv.evaluation.report.questions import question_word
from catekv.files import refuse_foreign, write_atomically, write_table
from catekv.methods.head_votes import count_votes
from catekv.models.source import short_name

if TYPE_CHECKING:
    from catekv.calibration.head_masks.result import Candidate, SweepResult

#: The name under which the embedded model is calibrated.
EMBEDDED = "embedded"

REPORT = "report.json"
OWN_NAMES = ("report.md", "candidates.csv", "heads.png")

RULE = (
    "Best: highest mean accuracy over the held-out tasks that the full cache solves (at least 90 % "
    "right, or all tasks if there are none); ties: higher log probability of the full cache's "
    "answers, then the earlier line."
)


def write(result: SweepResult, output: Path, picture: bool = True) -> None:
    """``report.md``, ``report.json``, ``candidates.csv`` and ``heads.png`` in ``output``."""
    refuse_foreign(output, OWN_NAMES, REPORT)
    output.mkdir(parents=True, exist_ok=True)
    write_atomically(output / REPORT, json.dumps(as_dict(result), indent=2) + "\n")
    _write_csv(result, output / "candidates.csv")
    write_atomically(output / "report.md", markdown(result, picture))
    if picture:
        chosen = result.chosen
        samples = chosen.cvs.shape[0]
        panels = {
            "mean CV": chosen.cvs.mean(dim=0),
            "votes (share of samples)": count_votes(chosen.cvs, result.settings.ratio) / samples,
        }
        if result.oracle is not None:
            recipe = result.oracle.meta["recipe"]
            panels["ablation: log-probability loss"] = torch.tensor(recipe["log_probability_loss"])
        title = (
            f"{short_name(result.model)}: {_name(chosen)}\n"
            f"dots: adaptive heads (r = {result.settings.ratio:g})"
        )
        figures.draw_heads(output / "heads.png", panels, chosen.mask, title)


def as_dict(result: SweepResult) -> dict[str, Any]:
    """Everything but the CVs, as plain values."""
    settings = result.settings
    return {
        "model": result.model,
        "config_hash": result.config_hash,
        "rule": RULE,
        "ratio": settings.ratio,
        "length": settings.length,
        "reference_samples": settings.samples,
        "held_out_samples": settings.held_out_samples,
        "held_out_tasks": list(settings.held_out_tasks),
        "deciding_tasks": list(result.deciding_tasks),
        "questions": list(settings.questions),
        "seed": settings.seed,
        "method_options": dict(settings.method_options),
        "chosen": _row(result.chosen, result),
        "candidates": [_row(candidate, result) for candidate in result.candidates],
        "contrasts": {name: asdict(one) for name, one in result.contrasts.items()},
        "controls": {label: dict(scores) for label, scores in result.controls.items()},
        "masks": {candidate.label: candidate.mask.to_dict() for candidate in result.candidates},
        "oracle": None if result.oracle is None else result.oracle.to_dict(),
        "reference_contexts": {task: list(h) for task, h in result.reference_hashes.items()},
    }


def _row(candidate: Candidate, result: SweepResult) -> dict[str, Any]:
    return {
        "reference": candidate.reference,
        "k": candidate.config.k,
        "alpha": candidate.config.alpha,
        "mask": candidate.label,
        "adaptive_heads": int(candidate.mask.adaptive.sum()),
        "accuracy": candidate.accuracy,
        "log_probability": candidate.log_probability,
        "chosen": candidate is result.chosen,
        **candidate.by_task,
    }


def _write_csv(result: SweepResult, path: Path) -> None:
    rows = [_row(candidate, result) for candidate in result.candidates]
    write_table(path, list(rows[0]), [list(row.values()) for row in rows])


def summary(result: SweepResult) -> str:
    """A short table: controls, the best candidate of every reference, the worst, the chosen."""
    tasks = list(result.settings.held_out_tasks)
    lines: list[tuple[str, dict[str, float], str]] = []
    for label, scores in result.controls.items():
        lines.append((label, dict(scores), ""))
    for task, candidate in result.best_of.items():
        mark = "chosen" if candidate is result.chosen else ""
        lines.append((f"best of {task}", dict(candidate.by_task), f"{_name(candidate)} {mark}"))
        worst = min((c for c in result.candidates if c.reference == task), key=lambda c: c.accuracy)
        lines.append((f"worst of {task}", dict(worst.by_task), _name(worst)))
    table = [["mask", *(_short(task) for task in tasks), "mean", ""]]
    for label, by_task, note in lines:
        values = [by_task[task] for task in tasks]
        mean = sum(by_task[task] for task in result.deciding_tasks) / len(result.deciding_tasks)
        table.append([label, *(f"{100 * v:.1f}" for v in values), f"{100 * mean:.1f}", note])
    return f"{_table(table)}\n\n{sentence(result.contrasts)}"


def evaluate_command(result: SweepResult, folder: Path) -> str:
    """The words that evaluate the chosen mask beside its controls on new samples of the tasks that
    chose it, as sizes and prompts were here."""
    settings = result.settings
    options = ",".join(f"{name}={value}" for name, value in settings.method_options.items())
    words = ["catekv", "evaluate"]
    if result.model != EMBEDDED:
        words += ["--model", result.model]
    words += ["--methods", "full", f"catekv:{options}" if options else "catekv"]
    words += ["--mask", f"chosen={folder}", "--mask", "random:0", "--mask", "reversed"]
    words += ["--ratio", f"{settings.ratio:g}", "--tasks", *settings.held_out_tasks]
    words += ["--lengths", str(settings.length), "--seed", str(settings.seed)]
    words += [
        "--question",
        "both" if len(settings.questions) > 1 else question_word(settings.questions[0]),
    ]
    if settings.chat_template != "auto":
        words += ["--chat-template", settings.chat_template]
    if settings.max_new_tokens is not None:
        words += ["--max-new-tokens", str(settings.max_new_tokens)]
    return shlex.join(words)


def markdown(result: SweepResult, picture: bool) -> str:
    settings = result.settings
    left_out = [task for task in settings.held_out_tasks if task not in result.deciding_tasks]
    parts = [
        f"# Head masks of {short_name(result.model)}",
        f"Chosen: **{_name(result.chosen)}**, held-out accuracy "
        f"{100 * result.chosen.accuracy:.1f} % at r = {settings.ratio:g}.",
        f"{settings.samples} reference samples per text and {settings.held_out_samples} held-out "
        f"samples per task of {settings.length} tokens, drawn from streams of their own (seed "
        f"{settings.seed}); questions {' and '.join(settings.questions)}.",
        RULE,
    ]
    if left_out:
        parts.append(f"Not solved by the full cache, so not deciding: {', '.join(left_out)}.")
    parts += [
        "Accuracy in per cent; *mean* over the deciding tasks.",
        summary(result),
        "## The chosen mask",
        f"```\n{result.chosen.mask.show()}\n```",
    ]
    if picture:
        parts.append("![Mean CV and votes, adaptive heads dotted](heads.png)")
    parts += ["## All candidates", _all_candidates(result)]
    return "\n\n".join(parts) + "\n"


def _all_candidates(result: SweepResult) -> str:
    tasks = list(result.settings.held_out_tasks)
    table = [["reference", "k", "alpha", "mask", *map(_short, tasks), "mean", "log p"]]
    for candidate in result.candidates:
        table.append(
            [
                candidate.reference,
                f"{candidate.config.k:g}",
                f"{candidate.config.alpha:g}",
                candidate.label + (" (chosen)" if candidate is result.chosen else ""),
                *(f"{100 * candidate.by_task[task]:.1f}" for task in tasks),
                f"{100 * candidate.accuracy:.1f}",
                f"{candidate.log_probability:.3f}",
            ]
        )
    return _table(table)


def _table(rows: list[list[str]]) -> str:
    return tables.markdown_table(rows[0], rows[1:], padded=True)


def _name(candidate: Candidate) -> str:
    return f"{candidate.reference}, k {candidate.config.k:g}, alpha {candidate.config.alpha:g}"


def _short(task: str) -> str:
    return task.rpartition("/")[2]
