"""A request becomes words, and the words become the same request."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from catekv.commands import schema
from catekv.commands.cli import Parser
from catekv.evaluation.run.request import Request

CHANGES: list[dict[str, Any]] = [
    {},
    {"model": "folder", "dtype": "float32", "tasks": ("ruler/vt", "rows.jsonl")},
    {"lengths": (512, 4096), "samples": 3, "methods": ("full", "snapkv:budget=8,window=2")},
    {"masks": ("a=one.csv", "b=two,half.csv"), "ratio": 0.25, "budget": 64},
    {"questions": ("agnostic", "aware")},
    {"questions": ("aware",), "preset": "recommended", "seed": -1},
    {"task_options": {"num_hops": 2, "essay_path": "essays.txt"}, "joint_decode": True},
    {"output": Path("out"), "resume": False, "overwrite": True, "max_errors": 0.1},
    {"chunk_size": 256, "batch_size": 4, "max_new_tokens": 9, "parallel": "tensor"},
]


def parsed(words: list[str]) -> Request:
    parser = Parser(prog="test")
    schema.add_arguments(parser, Request)
    return schema.read(Request, parser.parse_args(words))


@pytest.mark.parametrize("changes", CHANGES)
def test_a_request_survives_the_command_line(changes: dict[str, Any]):
    request = dataclasses.replace(Request(), **changes)
    assert parsed(schema.words(request)) == request


def test_repeated_flags_replace_the_default_and_the_old_flag_is_read():
    assert parsed(["--mask", "a", "--mask", "b"]).masks == ("a", "b")
    assert parsed([]).masks == ()
    assert parsed(["--chunk-size", "16"]).chunk_size == 16
    assert parsed(["--lengths", "8,16", "32"]).lengths == (8, 16, 32)


@pytest.mark.parametrize(
    "words", [["--samples", "0"], ["--chunk-size", "-1"], ["--seed", "x"], ["--question", "no"]]
)
def test_values_out_of_range_are_refused(words: list[str], capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as stopped:
        parsed(words)
    assert stopped.value.code == 2
    assert words[0] in capsys.readouterr().err


def test_question_modes_have_words_that_explain_themselves_beside_those_of_papers() -> None:
    for word, modes in (
        ("after", ("agnostic",)),
        ("inside", ("aware",)),
        ("both", ("agnostic", "aware")),
        ("agnostic", ("agnostic",)),
        ("aware", ("aware",)),
    ):
        parser = Parser(prog="test")
        schema.add_arguments(parser, Request, ["questions"])
        request = schema.read(Request, parser.parse_args(["--question", word]))
        assert request.questions == modes
    assert schema.words(Request(questions=("aware",)), ["questions"]) == ["--question", "inside"]
