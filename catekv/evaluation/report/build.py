"""A whole report from what was read: an overview, a section per group, manifests at the end."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from catekv.evaluation import tables
from catekv.evaluation.columns import defaults
from catekv.evaluation.report.benchmark_section import benchmark_section
from catekv.evaluation.report.colours import DEFAULT_SCALE
from catekv.evaluation.report.curve_section import curve_section
from catekv.evaluation.report.document import NOTE, WARNING, Block, Listing, Section, Table, Text
from catekv.evaluation.report.efficiency_section import efficiency_section
from catekv.evaluation.report.groups import Group, group_runs
from catekv.evaluation.report.head_section import folder_section, head_section
from catekv.evaluation.report.inputs import Inputs
from catekv.evaluation.report.kvpress_section import kvpress_section
from catekv.evaluation.report.names import file_stem
from catekv.evaluation.report.needle_files import read_needle_file
from catekv.evaluation.report.needle_section import needle_section
from catekv.evaluation.report.opening import opening
from catekv.evaluation.report.published_section import published_section
from catekv.evaluation.report.questions import question_word
from catekv.evaluation.report.score_section import score_section
from catekv.evaluation.report.styles import styles
from catekv.evaluation.report.summary import family_of
from catekv.evaluation.report.summary_text import (
    difference,
    notes_of,
    runs_of,
    score,
    with_interval,
)
from catekv.evaluation.report.untouched import column_name
from catekv.evaluation.report.validity_section import validity_section, without_checks
from catekv.models.source import short_name


@dataclass(frozen=True)
class Options:
    """How a report looks.

    Args:
        scale: colours of heat maps, a name in :data:`catekv.evaluation.report.colours.SCALES`.
        trained: tokens of the longest texts the model was trained on, for a line in the
            needle pictures; None: unknown.
    """

    scale: str = DEFAULT_SCALE
    trained: int | None = None


def build(inputs: Inputs, options: Options) -> tuple[Section, list[Group]]:
    """The document, and the groups of runs that its tables are of."""
    groups = group_runs(inputs.runs)
    document = Section(_page_title(inputs, groups))
    document.blocks += [Text(sentence) for sentence in inputs.verdicts]
    if inputs.problems:
        document.blocks.append(
            Text("Left out, because it could not be read: " + "; ".join(inputs.problems), WARNING)
        )
    if len(groups) > 1:
        document.sections.append(_overview(groups))
    stems: set[str] = set()
    for group in groups:
        stem = file_stem(group.title)
        while stem in stems:
            stem += "-x"
        stems.add(stem)
        own = group_section(group, options, inputs.masks, stem)
        own.blocks = [one for one in own.blocks if not _is_said(one, inputs.verdicts)]
        document.sections.append(own)
    for path in inputs.needles:
        section = needle_section(
            read_needle_file(path), f"file-{file_stem(path.stem)}", options.scale, options.trained
        )
        if section is not None:
            section.title = f"Needle results in {path.name}"
            document.sections.append(section)
    document.sections += [folder_section(folder, options.scale) for folder in inputs.masks]
    document.sections += [efficiency_section(result) for result in inputs.efficiency]
    if inputs.kvpress:
        document.sections.append(kvpress_section(inputs.kvpress))
    if inputs.runs:
        document.sections.append(_manifests(groups))
    return document, groups


def _is_said(block: Block, verdicts: Sequence[str]) -> bool:
    """Whether the page has opened with these words already."""
    return isinstance(block, Text) and any(block.text in verdict for verdict in verdicts)


def _page_title(inputs: Inputs, groups: Sequence[Group]) -> str:
    models = list(dict.fromkeys(str(group.manifest.get("model")) for group in groups))
    if models:
        names = dict.fromkeys(map(short_name, models))
        return f"Compressed caches: {', '.join(names if len(names) == len(models) else models)}"
    if inputs.efficiency:
        return f"Efficiency: {inputs.efficiency[0].name}"
    return "Report"


def _overview(groups: Sequence[Group]) -> Section:
    """One line per group, length, question mode and method; nothing is averaged across groups."""
    header = [
        "runs", "tokens", "question", "method", "benchmark", "tasks", "to full (95 %)",
        "score (95 %)", "kept", "samples", "errors",
    ]  # fmt: skip
    rows = []
    for group in groups:
        averages = without_checks(group.summary)["family_averages"]
        families = list(dict.fromkeys(row["family"] for row in averages))
        for row in sorted(averages, key=lambda one: families.index(one["family"])):
            rows.append(
                [
                    group.title,
                    str(row["length"] or "as in the file"),
                    question_word(row["question"]),
                    column_name(row),
                    row["family"],
                    str(row["tasks"]),
                    with_interval(difference(row), row["difference"]),
                    with_interval(score(row), row["official"]),
                    tables.percent(row["kept_share"]),
                    str(row["count"]),
                    str(row["errors"]),
                ]
            )
    warning = Text(
        f"{len(groups)} groups of runs that differ in model, settings or samples: compare lines "
        "within a group only. Full attention is that of the same group.",
        WARNING,
    )
    return Section("All runs", [warning, Table("Averages over tasks x 100", header, rows)])


def group_section(
    group: Group, options: Options, masks: Sequence[Path] = (), stem: str = "run"
) -> Section:
    """Everything about runs that may stand in one table."""
    section = Section(group.title)
    section.blocks.append(Text(_facts(group), NOTE))
    section.blocks += [Text(note, WARNING) for note in group.notes]
    add_summary(section, group.summary, options, masks, stem)
    return section


def add_summary(
    section: Section,
    summary: Mapping[str, Any],
    options: Options,
    masks: Sequence[Path] = (),
    stem: str = "run",
) -> None:
    """Add all parts that follow from a summary to a section."""
    full = summary["full"]
    validity = validity_section(summary)
    summary = without_checks(summary)
    section.blocks[:0] = [Text(sentence) for sentence in _openings(summary)]
    series = {
        label: str(method.get("variant_of", label)) for label, method in summary["methods"].items()
    }
    looks = styles(list(dict.fromkeys(series.values())), full)
    style = {label: looks[name] for label, name in series.items()}
    if full is None and summary["cells"]:
        section.blocks.append(
            Text("Full attention was not measured here: no differences to it.", WARNING)
        )
    for number, (title, cells, averages) in enumerate(_tables_of(summary)):
        section.sections.append(
            score_section(title, cells, averages, full, style, series, f"{stem}-{number}")
        )
    folders = [*masks, *_shipped(str(summary["model"]))]
    parts = [
        validity,
        curve_section(summary, style, stem),
        needle_section(summary.get("needles", []), stem, options.scale, options.trained),
        benchmark_section(summary),
        published_section(summary),
        head_section(summary["methods"], folders, options.scale, stem),
    ]
    section.sections += [part for part in parts if part is not None]
    section.blocks += [Text(line, NOTE) for line in notes_of(summary).splitlines()]


def _openings(summary: Mapping[str, Any]) -> Iterator[str]:
    """What a table says in a sentence, one per table, with its title where there are several."""
    tables = list(_tables_of(summary))
    for title, _, averages in tables:
        sentence = opening(averages, summary["methods"], summary["full"])
        if sentence is not None:
            yield f"{title}: {sentence}" if len(tables) > 1 else sentence


def _tables_of(summary: Mapping[str, Any]) -> Iterator[tuple[str, list[Any], list[Any]]]:
    """Title, cells and averages of every table: benchmarks are not averaged with each other."""
    rows = summary["family_averages"]
    for title, cells, _ in runs_of(summary):
        families = dict.fromkeys(family_of(row["task"]) for row in cells)
        for family in families:
            own = [
                row
                for row in rows
                if row["family"] == family
                and (row["length"], row["question"]) == (cells[0]["length"], cells[0]["question"])
            ]
            name = f"{family}, {title}" if len(families) > 1 else title
            yield name, [row for row in cells if family_of(row["task"]) == family], own


def _shipped(model: str) -> list[Path]:
    """Mask folders of a model, whose statistics go with masks of runs."""
    found = defaults.shipped_masks(short_name(model))
    return [] if found is None else [found]


def _facts(group: Group) -> str:
    own, manifest = group.configuration, group.manifest
    device = manifest.get("device", {})
    versions = manifest.get("versions", {})
    parts = [
        f"model {manifest.get('model')} ({own.get('model_hash')})",
        f"{own.get('dtype')} on {device.get('name') or own.get('device')}",
        f"seed {own.get('seed')}",
        f"samples {group.summary['data_hash']}",
        *([f"rows {', '.join(rows)}"] if (rows := _rows(manifest)) else []),
        *(
            f"{name} {versions[name]}"
            for name in ("catekv", "torch", "transformers")
            if name in versions
        ),
        f"{len(group.records)} records of {', '.join(run.name for run in group.runs)}",
    ]
    return "; ".join(parts) + "."


def _rows(manifest: Mapping[str, Any]) -> list[str]:
    """Where the tasks' rows come from."""
    return list(dict.fromkeys(map(str, manifest.get("data", {}).values())))


def _manifests(groups: Sequence[Group]) -> Section:
    """What is needed to repeat every run, the masks' heads left to the pictures."""
    section = Section("Manifests")
    header = ["run", "configuration", "commit", "device", "tasks", "samples", "started", "command"]
    rows = []
    for run in (run for group in groups for run in group.runs):
        manifest = run.manifest
        starts = manifest.get("starts", [])
        last = starts[-1] if starts else {}
        rows.append(
            [
                run.name,
                str(manifest.get("config_hash")),
                str(manifest.get("git_commit") or "-")[:12],
                str(manifest.get("device", {}).get("name", "-")),
                str(len(manifest.get("tasks", []))),
                str(manifest.get("samples", "-")),
                str(last.get("time", "-")),
                str(last.get("command", "-")),
            ]
        )
        section.blocks.append(
            Listing(f"Manifest of {run.name}", json.dumps(manifest, indent=1, ensure_ascii=False))
        )
    section.blocks.insert(0, Table("How each run was made", header, rows))
    return section
