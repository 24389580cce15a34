"""The report's averages as the benchmarks define them."""

from __future__ import annotations

import pytest

from catekv.evaluation.report.benchmark_section import benchmark_section
from catekv.evaluation.report.document import Table, Text
from catekv.tasks.families.ruler.tasks import RULER


def cells(names, means):
    """Rows of a summary: every task with the same mean per length."""
    return [
        {
            "task": f"ruler/{name}",
            "length": length,
            "question": "agnostic",
            "method": "full",
            "official": {"mean": mean},
        }
        for name in names
        for length, mean in means.items()
    ]


def ruler_blocks(names, means):
    section = benchmark_section({"cells": cells(names, means)})
    return [] if section is None else section.blocks


def warnings(blocks):
    return [block.text for block in blocks if isinstance(block, Text)]


def test_all_thirteen_tasks_of_ruler_give_its_averages_without_a_warning():
    blocks = ruler_blocks(RULER, {4096: 90.0, 8192: 60.0, 16384: 30.0})
    (table,) = (block for block in blocks if isinstance(block, Table))
    shown = dict(zip(table.header, table.rows[0], strict=True))
    assert float(shown["wAvg(inc)"]) == pytest.approx(50.0)
    assert float(shown["wAvg(dec)"]) == pytest.approx(70.0)
    assert shown["effective"] == "4K"
    assert warnings(blocks) == []


def test_thirteen_tasks_that_are_not_rulers_are_marked():
    names = [name for name in RULER if name != "cwe"] + ["vt_dense"]
    (warning,) = warnings(ruler_blocks(names, {4096: 90.0, 8192: 60.0}))
    assert warning.startswith("13 tasks here, not the 13 of RULER")


def test_part_of_ruler_at_one_length_needs_no_table_of_averages():
    assert ruler_blocks(["vt"], {4096: 90.0}) == []
    assert ruler_blocks(RULER, {4096: 90.0}) != []
