"""Tables of cells: one function makes all that are Markdown."""

from __future__ import annotations

import re
from pathlib import Path

from catekv.evaluation import tables
from catekv.evaluation.tables import markdown_table

ROOT = Path(tables.__file__).parents[2]
#: The kernels lie below the evaluation and cannot import from it.
BY_HAND = {"compile_check.py", "tables.py"}


def test_numbers_stand_on_the_right_and_words_where_they_are_wanted() -> None:
    rows = [["full", "1.0", "the model itself"], ["snapkv", "0.25", ""]]
    assert markdown_table(["method", "kept", "note"], rows, left=(0, -1)) == (
        "| method | kept | note |\n"
        "| --- | ---: | --- |\n"
        "| full | 1.0 | the model itself |\n"
        "| snapkv | 0.25 |  |"
    )


def test_padded_columns_line_up() -> None:
    table = markdown_table(["a", "count"], [["first", "1"], ["b", "22"]], padded=True)
    assert table == (
        "| a     | count |\n"
        "| ----- | ----: |\n"
        "| first |     1 |\n"
        "| b     |    22 |"
    )  # fmt: skip
    narrow = markdown_table(["a", "b"], [], padded=True)
    assert narrow.splitlines()[1] == "| --- | ---: |"


def test_no_other_module_writes_markdown_tables_by_hand() -> None:
    rule = re.compile(r"""["'|]---:?\|?["'|]|\|-{3}|"\| " \+""")
    sources = [
        path
        for folder in ("catekv", "experiments", "bench", "select_headmask")
        for path in (ROOT / folder).rglob("*.py")
    ]
    assert len(sources) > 100
    found = {path.name for path in sources if rule.search(path.read_text(encoding="utf-8"))}
    assert found == BY_HAND
