"""``catekv heads``: which heads of a model need their entries."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Mapping
from pathlib import Path

from catekv.calibration.heads.comparison import (
    RANDOM,
    columns_at_equal_bytes,
    compare_heads,
    measured_cells,
    table_of,
)
from catekv.calibration.heads.exchange import FORMATS, read_heads
from catekv.calibration.heads.formats.asked import Asked
from catekv.calibration.heads.formats.known_model import KnownModel
from catekv.commands.heads_arguments import COMPARED, EXPORTED, IMPORTED, KNOWN, Compared
from catekv.commands.heads_measured import ACTIONS, describe
from catekv.commands.schema import Action
from catekv.errors import UserError
from catekv.evaluation.options import refuse_unheeded
from catekv.evaluation.tables import plain_table
from catekv.files import check_name, write_json, write_table


def _asked(arguments: argparse.Namespace) -> Asked:
    known = KNOWN.read(arguments)
    own = ("trust_pickle", "group_size", "scope", "tokens")
    told = {name: getattr(arguments, name) for name in own if name in arguments}
    return Asked(KnownModel.of(known.model, known.shape), known.ratio, **told)


def _import(arguments: argparse.Namespace) -> int:
    asked = IMPORTED.read(arguments)
    scores = read_heads(asked.path, _asked(arguments), asked.form, asked.query_heads)
    print(describe(scores))
    print(f"Heads: {scores.save(asked.output)}")
    return 0


def _export(arguments: argparse.Namespace) -> int:
    asked = EXPORTED.read(arguments)
    if asked.form != "tangram":
        of_clusters = ("group_size", "scope", "tokens")
        refuse_unheeded(asked, of_clusters, f"{asked.form} has no clusters of heads")
    told = _asked(arguments)
    scores = read_heads(asked.path, told)
    written = FORMATS[asked.form].write(scores, asked.output, told)
    print(f"{asked.form}: {written}")
    return 0


def _compare(arguments: argparse.Namespace) -> int:
    asked = COMPARED.read(arguments)
    told = Asked(ratio=asked.ratio)
    files = {name: Path(path) for name, path in map(_named, asked.heads)}
    if len(files) < len(asked.heads):
        raise UserError("two head files have one name; give each another, NAME=FILE")
    budget = asked.budget or max(1, asked.length // 8)
    if budget >= asked.length:
        raise UserError(
            f"a head that is not full keeps {budget} of {asked.length} tokens, which is all; give "
            "a smaller --budget or a larger --length"
        )
    comparison = compare_heads(
        {name: read_heads(path, told) for name, path in files.items()}, asked.ratio
    )
    header, cells = table_of(comparison)
    columns, masks = columns_at_equal_bytes(comparison, files, asked.output / "masks", budget)
    methods = write_json(asked.output / "methods.json", columns)
    words = _measuring_words(asked, methods, masks)
    if asked.measure:
        from catekv.commands.cli import main

        for line in words.values():
            code = main(line)
            if code != 0:
                return code
        found = measured_cells(asked.output / "accuracy", asked.output / "fidelity")
        header += ["accuracy", "KL"]
        cells = [[*row, *found[row[0]]] for row in cells] + [
            [column["label"], column["name"], *[""] * (len(header) - 4), *found[column["label"]]]
            for column in columns
            if column["name"] == "curvekv"
        ]
    write_table(asked.output / "heads.csv", header, cells)
    rows = [row.to_dict() for row in comparison.rows]
    write_json(asked.output / "heads.json", {"ratio": asked.ratio, "heads": rows})
    print(plain_table(header, cells))
    print("Columns of names: correlation of ranks, and share of the full heads in common.")
    print(f"Table: {asked.output} (heads.csv, heads.json, masks, methods.json)")
    if not asked.measure:
        for what, line in words.items():
            print(f"{what.capitalize()}: {shlex.join(['catekv', *line])}")
    return 0


def _named(text: str) -> tuple[str, str]:
    """Name and path of ``[NAME=]FILE``; the name becomes a folder of masks and a label."""
    name, equals, path = text.rpartition("=")
    if not Path(path).name:
        raise UserError(f"{text!r} names no head file; write [NAME=]FILE")
    # the last parts of a path tell files of the same name apart
    parts = [part for part in Path(path).with_suffix("").parts[-2:] if part not in ("/", "..")]
    name = check_name("the name", name if equals else "-".join(parts))
    if name in ("full", *RANDOM):
        raise UserError(f"{name!r} is the name of a row of its own; write {text!r} as NAME=FILE")
    return name, path


def _measuring_words(
    asked: Compared, methods: Path, masks: Mapping[str, Path]
) -> dict[str, list[str]]:
    """The commands that measure accuracy and fidelity of all columns."""
    model = [] if asked.model is None else ["--model", asked.model]
    common = [*model, "--methods", str(methods), "--lengths", str(asked.length)]
    for item in masks.items():
        common += ["--mask", "=".join(map(str, item))]
    common += ["--samples", str(asked.samples), "--tasks", *asked.tasks]
    return {
        name: [command, *common, "--output", str(asked.output / name)]
        for name, command in (("accuracy", "evaluate"), ("fidelity", "fidelity"))
    }


OPTIONS = {
    **ACTIONS,
    "compare": Action(
        "several head files of one model side by side, at equal bytes", (COMPARED,), _compare
    ),
    "import": Action("a head file of another project", (IMPORTED, KNOWN), _import),
    "export": Action("heads for another project", (EXPORTED, KNOWN), _export),
}
