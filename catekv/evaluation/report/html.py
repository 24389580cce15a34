"""A document as one HTML page: no scripts, no outside references, well-formed XML.

The page is the template ``templates/page.html``; here is what it asks for.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

from markupsafe import Markup, escape

from catekv.evaluation.report.document import Block, Section

if TYPE_CHECKING:
    from jinja2 import Template

#: Stands in every page, also in those of earlier versions.
MARK = "</head>\n<body>\n<main>\n<h1>"
#: Pictures wider than this many pixels take a row of their own and scroll on narrow screens.
_WIDE = 520
#: Small pictures grow a little, so that letters in all pictures are of about one size.
_GROWTH = 1.2


def page(document: Section) -> str:
    """The whole page; the outermost section's title is the page's."""
    return _template().render(document=document, wide=_WIDE, growth=_GROWTH).lstrip() + "\n"


@cache
def _template() -> Template:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    for function in (anchor, breakable, runs, unbroken):
        environment.filters[function.__name__] = function
    return environment.get_template("page.html")


def anchor(title: str, parent: str) -> str:
    """The id of a section's heading, below that of the section around it ("" for none)."""
    return (f"{parent}-" if parent else "") + re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")


def runs(blocks: Sequence[Block]) -> Iterator[tuple[str, list[Block]]]:
    """Blocks of one kind that follow each other: figures then stand side by side."""
    for kind, group in groupby(blocks, lambda block: type(block).__name__):
        yield kind, list(group)


def unbroken(cell: str) -> str:
    """An interval whose ends stay in one line."""
    return cell.replace(" .. ", "\N{NO-BREAK SPACE}..\N{NO-BREAK SPACE}")


def breakable(name: str) -> Markup:
    """A name that may go on in the next line behind its underscores."""
    return Markup("_<wbr/>").join(map(escape, name.split("_")))
