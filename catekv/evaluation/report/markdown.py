"""A document as Markdown, with its figures as files beside it."""

from __future__ import annotations

import re

from catekv.evaluation import tables
from catekv.evaluation.report.document import NOTE, WARNING, Block, Figure, Listing, Section, Text

#: Folder of the pictures, beside the Markdown file.
FIGURES = "figures"


def page(document: Section) -> str:
    """The whole document; figures are linked as ``figures/NAME.svg``."""
    return "\n\n".join(_section(document, 1)) + "\n"


def figure_names(text: str) -> list[str]:
    """Names of the figures that a page of :func:`page` links."""
    return re.findall(rf"\]\({FIGURES}/([^/()]+)\.svg\)", text)


def _section(section: Section, level: int) -> list[str]:
    parts = [f"{'#' * min(level, 6)} {_plain(section.title)}"]
    parts += [_block(block) for block in section.blocks]
    for sub in section.sections:
        parts += _section(sub, level + 1)
    return parts


def _block(block: Block) -> str:
    if isinstance(block, Text):
        words = _plain(block.text)
        return {NOTE: f"*{words}*", WARNING: f"> **Note:** {words}"}.get(block.kind, words)
    if isinstance(block, Figure):
        return f"![{_plain(block.caption)}]({FIGURES}/{block.name}.svg)"
    if isinstance(block, Listing):
        return f"{_plain(block.title)}:\n\n```json\n{block.text}\n```"
    header = [
        f"*{name}*" if column in block.theirs else name
        for column, name in enumerate(map(_cell, block.header))
    ]
    rows = [
        [
            f"*{cell}*" if column in block.theirs and cell.strip("- ") else cell
            for column, cell in enumerate(map(_cell, row))
        ]
        for row in block.rows
    ]
    return f"{_plain(block.caption)}\n\n{tables.markdown_table(header, rows)}"


def _plain(text: str) -> str:
    """Text in which Markdown sees no markup of its own."""
    for letter in "\\`*_<>[]|":
        text = text.replace(letter, f"\\{letter}")
    return text


def _cell(text: str) -> str:
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("<", "\\<")
