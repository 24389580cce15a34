"""Printed numbers beside ours: only where everything that is printed agrees, and marked."""

from __future__ import annotations

from typing import Any

import pytest

from catekv.evaluation.report import html, markdown
from catekv.evaluation.report.document import Section, Table
from catekv.evaluation.report.published_section import (
    paper_name,
    published_section,
    published_tables,
)
from catekv.methods import available
from catekv.tasks.metrics.longbench_tables import CHINESE, ENGLISH

MODEL = "models/Llama-3-8B-Instruct-Gradient-1048k"
OPTIONS = {"name": "catekv", "ratio": 0.4, "retention": 1.0, "budget": 2048, "read": "all"}


def summary(model: str = MODEL, **changes: Any) -> dict[str, Any]:
    cell = {
        "task": "ruler/vt",
        "length": 131072,
        "question": "aware",
        "method": "mine",
        "official": {"mean": 80.0, "low": 70.0, "high": 90.0},
        "metrics": {"catekv": 86.0},
        "asked_share": 0.4095,
        "kept_share": 0.4095,
        **changes.pop("cell", {}),
    }
    options = {**OPTIONS, **changes.pop("options", {})}
    return {
        "model": model,
        "methods": {"mine": {"name": changes.pop("name", "catekv"), "options": options}},
        "cells": [cell],
        "averages": [],
        "wordings": ["english-1"],
        **changes,
    }


def rows(section: Section | None) -> list[Any]:
    if section is None:
        return []
    return [row for block in section.blocks if isinstance(block, Table) for row in block.rows]


def test_the_same_cell_is_shown_with_its_source() -> None:
    section = published_section(summary())
    assert section is not None
    (table,) = (block for block in section.blocks if isinstance(block, Table))
    assert "CateKV (ICML 2025" in table.caption
    assert "not measured here" in table.caption
    assert list(table.rows[0]) == [
        "mine (CateKV 41%)", "ruler/vt", "128K", "inside", "86.0", "-", "85.63", "+0.4",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "changes",
    [
        {"model": "embedded"},
        {"model": "models/Llama-3.2-1B"},
        {"options": {"ratio": 0.3}},
        {"options": {"read": "quest"}},
        {"name": "h2o"},
        {"cell": {"length": 4096}},
        {"cell": {"question": "agnostic"}},
        {"cell": {"asked_share": 0.3}},
        {"cell": {"task": "ruler/vt_dense"}},
    ],
)
def test_anything_else_is_another_cell(changes: dict[str, Any]) -> None:
    assert rows(published_section(summary(**changes))) == []


def test_theirs_are_set_apart_in_both_forms() -> None:
    section = published_section(summary())
    assert section is not None
    document = Section("t", sections=[section])
    assert '<td class="theirs">85.63</td>' in html.page(document)
    assert "| *85.63* |" in markdown.page(document)


def test_own_prompts_are_warned_of() -> None:
    section = published_section(summary())
    assert "wordings and contexts of their own" in markdown.page(Section("t", sections=[section]))
    official = published_section(summary(wordings=["official-2024"]))
    assert "of their own" not in markdown.page(Section("t", sections=[official]))


def test_names_of_models_are_those_of_their_repositories() -> None:
    assert paper_name("gradientai/Llama-3-8B-Instruct-Gradient-1048k") == "Llama-3-8B-1M"
    assert paper_name("01-ai/Yi-9B-200K") == "Yi-9B-200K"
    assert paper_name("embedded") is None


def test_the_tables_name_known_methods_and_tasks_and_reasonable_numbers() -> None:
    tables = published_tables()
    assert len(tables) == 5
    longbench = {f"longbench/{task}" for task in (*ENGLISH, *CHINESE)}
    for table in tables:
        assert table["source"]
        known = set(table["tasks"])
        if table["id"].endswith("longbench"):
            assert known <= longbench
        for row in table["rows"]:
            assert row["method"] in available()
            assert set(row["scores"]) <= known | {"average"}
            assert all(0 <= value <= 100 for value in row["scores"].values())


def test_printed_averages_follow_from_their_tasks() -> None:
    # all but one row of the paper's table average to what it prints
    (table,) = (t for t in published_tables() if t["id"] == "catekv-ruler-128k")
    off = []
    for row in table["rows"]:
        scores = dict(row["scores"])
        printed = scores.pop("average")
        assert len(scores) == 12
        if abs(sum(scores.values()) / 12 - printed) > 0.0101:
            off.append((row["model"], row["shown"]))
    assert off == [("Phi-3-Mini-128K", "ShadowKV")]
