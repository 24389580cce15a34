"""A document as one HTML page: no scripts, no outside references, well-formed XML."""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import escape

from catekv.evaluation.report.document import PLAIN, Block, Figure, Listing, Section, Table, Text
from catekv.evaluation.report.style import STYLE

#: Pictures wider than this many pixels take a row of their own and scroll on narrow screens.
_WIDE = 520
_DEEPEST_HEADING = 4


def page(document: Section) -> str:
    """The whole page; the outermost section's title is the page's."""
    title = escape(document.title)
    body = _blocks(document.blocks) + _contents(document.sections)
    body += "".join(_section(section, 2, "") for section in document.sections)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8"/>\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1"/>\n'
        f"<title>{title}</title>\n<style>{escape(STYLE, quote=False)}</style>\n</head>\n"
        f"<body>\n<main>\n<h1>{title}</h1>\n{body}</main>\n</body>\n</html>\n"
    )


def _anchor(title: str, parent: str) -> str:
    return (f"{parent}-" if parent else "") + re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")


def _contents(sections: Sequence[Section]) -> str:
    if len(sections) < 2:
        return ""
    entries = []
    for section in sections:
        anchor = _anchor(section.title, "")
        inner = "".join(
            f'<li><a href="#{_anchor(sub.title, anchor)}">{escape(sub.title)}</a></li>'
            for sub in section.sections
        )
        inner = f"<ul>{inner}</ul>" if inner else ""
        entries.append(f'<li><a href="#{anchor}">{escape(section.title)}</a>{inner}</li>\n')
    return f'<nav aria-label="contents"><ul>\n{"".join(entries)}</ul></nav>\n'


def _section(section: Section, level: int, parent: str) -> str:
    anchor = _anchor(section.title, parent)
    heading = f"h{min(level, _DEEPEST_HEADING)}"
    inner = "".join(_section(sub, level + 1, anchor) for sub in section.sections)
    return (
        f'<section aria-labelledby="{anchor}">\n<{heading} id="{anchor}">{escape(section.title)}'
        f"</{heading}>\n{_blocks(section.blocks)}{inner}</section>\n"
    )


def _blocks(blocks: Sequence[Block]) -> str:
    """All blocks; figures that follow each other stand side by side where there is room."""
    parts: list[str] = []
    row: list[str] = []
    for block in blocks:
        if isinstance(block, Figure):
            row.append(_figure(block))
            continue
        parts += _row(row)
        row = []
        parts.append(_block(block))
    return "".join([*parts, *_row(row)])


def _row(figures: Sequence[str]) -> list[str]:
    return [f'<div class="figures">\n{"".join(figures)}</div>\n'] if figures else []


def _block(block: Text | Table | Listing) -> str:
    if isinstance(block, Text):
        kind = "" if block.kind == PLAIN else f' class="{block.kind}"'
        return f"<p{kind}>{escape(block.text)}</p>\n"
    if isinstance(block, Listing):
        return (
            f"<details><summary>{escape(block.title)}</summary>\n"
            f"<pre>{escape(block.text)}</pre></details>\n"
        )
    return table(block)


def _figure(figure: Figure) -> str:
    found = re.search(r'viewBox="0 0 (\d+)', figure.svg)
    width = int(found.group(1)) if found else 0
    wide = width > _WIDE
    if wide:
        svg = f'<div class="scroll" tabindex="0">{figure.svg}</div>'
    else:
        # small pictures grow a little, so that letters in all pictures are of about one size
        svg = f'<div style="max-width:{1.2 * width:.0f}px">{figure.svg}</div>'
    kind = ' class="wide"' if wide else ""
    return f"<figure{kind}>{svg}\n<figcaption>{escape(figure.caption)}</figcaption></figure>\n"


def table(content: Table) -> str:
    """A table in a box of its own that scrolls sideways where it is too wide."""

    def mark(column: int) -> str:
        return ' class="theirs"' if column in content.theirs else ""

    head = "".join(
        f'<th scope="col"{mark(column)}>{_breakable(name)}</th>'
        for column, name in enumerate(content.header)
    )
    rows = []
    for row in content.rows:
        cells = "".join(
            f"<td{mark(column)}>{_unbroken(cell)}</td>"
            for column, cell in enumerate(row[1:], start=1)
        )
        rows.append(f'<tr><th scope="row">{_breakable(row[0])}</th>{cells}</tr>\n')
    caption = escape(content.caption)
    inner = (
        f'<div class="scroll" tabindex="0"><table>\n<caption><span>{caption}</span></caption>\n'
        f"<thead><tr>{head}</tr></thead>\n<tbody>\n{''.join(rows)}</tbody></table></div>\n"
    )
    if content.folded:
        return f"<details><summary>{caption}</summary>\n{inner}</details>\n"
    return inner


def _unbroken(cell: str) -> str:
    """An interval whose ends stay in one line."""
    return escape(cell).replace(" .. ", "\N{NO-BREAK SPACE}..\N{NO-BREAK SPACE}")


def _breakable(name: str) -> str:
    """A name that may go on in the next line behind its underscores."""
    return escape(name).replace("_", "_<wbr/>")
