"""A report as plain values: sections of tables, figures and paragraphs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from catekv.evaluation.report.pictures import Drawing

#: Kinds of paragraphs: plain text, a small note below something, or a warning that must be seen.
PLAIN, NOTE, WARNING = "plain", "note", "warning"


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    text: str
    kind: str = PLAIN


@dataclass(frozen=True)
class Table:
    """A table with a caption; the first column names the rows.

    Args:
        caption: what the numbers are, with their unit.
        header: column names. rows: cells as text, as many per row as the header has.
        folded: hidden until opened (HTML), for tables that are looked up and not read.
        theirs: columns, counted from 0, whose numbers are somebody else's; they are set apart.
    """

    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    folded: bool = False
    theirs: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Figure:
    """A picture.

    Args:
        name: stem of its file among the Markdown's figures; unique in the page.
        drawing: what is drawn, once it is needed.
        caption: what is to be seen, read aloud too where the picture cannot be seen.
        table: the numbers in it as CSV beside the picture's file; None where a table of the page
            holds them already.
    """

    name: str
    drawing: Drawing
    caption: str
    table: Table | None = None

    @cached_property
    def svg(self) -> str:
        """A whole ``svg`` element."""
        return self.drawing.svg(self.name)


@dataclass(frozen=True)
class Listing:
    """Text with its line breaks, folded away: a manifest."""

    title: str
    text: str


Block = Text | Table | Figure | Listing


@dataclass
class Section:
    """A heading and what stands below it."""

    title: str
    blocks: list[Block] = field(default_factory=list)
    sections: list[Section] = field(default_factory=list)

    def figures(self) -> Iterator[Figure]:
        """All figures in the order of the page."""
        yield from (block for block in self.blocks if isinstance(block, Figure))
        for section in self.sections:
            yield from section.figures()

    @property
    def is_empty(self) -> bool:
        return not self.blocks and all(section.is_empty for section in self.sections)
