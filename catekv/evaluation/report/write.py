"""Report files: one HTML page, Markdown with its figures, and all numbers as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from catekv.errors import UserError
from catekv.evaluation import tables
from catekv.evaluation.report import html, markdown
from catekv.evaluation.report.document import Section
from catekv.evaluation.report.groups import Group
from catekv.evaluation.report.summary_files import as_csv
from catekv.files import read_text, refuse_foreign, write_atomically

PAGE, MARKDOWN, NUMBERS = "report.html", "report.md", "report.csv"


def write(folder: Path, document: Section, groups: Sequence[Group]) -> list[Path]:
    """Write the report into a folder, made if absent.

    Pictures lie in ``figures/`` as SVG, and the numbers of heat maps beside them as CSV; what an
    earlier report left there is replaced.

    Raises:
        UserError: the folder cannot be written, or holds files of these names that are no report's.
    """
    figures = folder / markdown.FIGURES
    earlier = _earlier_figures(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / PAGE, html.page(document))
        write_atomically(folder / MARKDOWN, markdown.page(document))
        written = [folder / PAGE, folder / MARKDOWN]
        if groups:
            write_atomically(folder / NUMBERS, numbers(groups))
            written.append(folder / NUMBERS)
        for old in earlier:
            for file in (figures / f"{old}.svg", figures / f"{old}.csv"):
                file.unlink(missing_ok=True)
        for figure in document.figures():
            figures.mkdir(exist_ok=True)
            write_atomically(figures / f"{figure.name}.svg", figure.svg + "\n")
            if figure.table is not None:
                content = tables.csv_table(figure.table.header, figure.table.rows)
                write_atomically(figures / f"{figure.name}.csv", content)
    except OSError as error:
        raise UserError(
            f"cannot write the report to {folder}: {error.strerror}; choose another folder with "
            "--output or change its permissions"
        ) from error
    return written


def _earlier_figures(folder: Path) -> list[str]:
    """Names of the figures of the report in a folder; ``UserError`` if it is somebody else's."""
    refuse_foreign(folder, (MARKDOWN, NUMBERS), PAGE)
    if not (folder / PAGE).exists():
        return []
    if html.MARK not in read_text(folder / PAGE):
        raise UserError(
            f"{folder / PAGE} is no report of this toolkit; move it away or choose another --output"
        )
    if not (folder / MARKDOWN).exists():
        return []
    return markdown.figure_names(read_text(folder / MARKDOWN))


def numbers(groups: Sequence[Group]) -> str:
    """Every cell and average of all groups in one table, the group in the first column."""
    parts = [list(csv.DictReader(io.StringIO(as_csv(group.summary)))) for group in groups]
    header = list(dict.fromkeys(name for part in parts for row in part for name in row))
    rows = [
        [group.title, *(row.get(name, "") for name in header)]
        for group, part in zip(groups, parts, strict=True)
        for row in part
    ]
    return tables.csv_table(["runs", *header], rows)
