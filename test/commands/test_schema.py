"""Options become words, and the words become the same options, for every command."""

from __future__ import annotations

import dataclasses
import importlib
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from catekv.commands import published_flags, ruler_files, schema
from catekv.commands.cli import COMMANDS, Parser
from catekv.commands.schema import Group
from catekv.evaluation.run.request import Request
from select_headmask import static

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


REQUEST = Group(Request)


def commands() -> Iterator[tuple[str, Sequence[Group[Any]]]]:
    """Every command and action, and both published scripts, with the groups of its options."""
    for name, _, module in COMMANDS:
        options = importlib.import_module(module).OPTIONS
        if name == "lm-eval":
            # the harness reads its words itself
            continue
        if isinstance(options, Mapping):
            for action, found in options.items():
                yield f"{name} {action}", found.options
        else:
            yield name, options
    yield "eval_acc.py", published_flags.ACCURACY
    yield "eval_efficiency.py", published_flags.EFFICIENCY
    yield "prepare.py", ruler_files.groups()
    yield "static.py", (static.VOTING,)


ALL = dict(commands())


def parsed(words: list[str]) -> Request:
    parser = Parser(prog="test")
    REQUEST.add(parser)
    return REQUEST.read(parser.parse_args(words))


def values_of(group: Group[Any], changed: bool) -> SimpleNamespace:
    """A value for every field of a group: what stands where nothing is said, or another one."""
    values = {}
    for option in group.options():
        values[option.name] = option.default
        if changed or option.required:
            values[option.name] = _another(option)
    return SimpleNamespace(**values)


def _another(option: Any) -> Any:
    if option.is_choice_of_values:
        return next(v for v in option.metadata["choices"].values() if v != option.default)
    if option.is_mapping:
        return {"hops": 2, "path": "x.txt"}
    if option.kind is bool:
        return not option.default
    if "choices" in option.metadata:
        found = next(word for word in option.metadata["choices"] if word != option.default)
    else:
        found = {int: 7, float: 0.375, Path: Path("a b"), str: "a=b"}[option.element]
    return (found,) if option.is_list else found


@pytest.mark.parametrize("changed", [False, True], ids=["required", "all"])
@pytest.mark.parametrize("command", ALL)
def test_the_options_of_every_command_survive_its_command_line(command: str, changed: bool):
    groups = ALL[command]
    given = [values_of(group, changed) for group in groups]
    lines = [group.words(values) for group, values in zip(groups, given, strict=True)]
    parser = Parser(prog=command)
    schema.add_options(parser, groups)
    arguments = parser.parse_args([word for line in lines for word in line])
    for group, values in zip(groups, given, strict=True):
        # not made into the dataclass, which may refuse what stands here for any value
        assert group.values(arguments) == vars(values)


@pytest.mark.parametrize("command", ALL)
def test_no_flag_of_a_command_is_declared_twice(command: str):
    fields = [option.name for group in ALL[command] for option in group.options()]
    assert len(fields) == len(set(fields))


def test_flags_are_declared_in_dataclasses_only():
    package = Path(schema.__file__).parents[1]
    by_hand = {
        path.name
        for path in package.rglob("*.py")
        if re.search(r"add_argument\(", path.read_text(encoding="utf-8"))
    }
    # the version of the command itself, and a check for developers that has no dataclass
    assert by_hand == {"schema.py", "cli.py", "compile_check.py"}


@pytest.mark.parametrize("changes", CHANGES)
def test_a_request_survives_the_command_line(changes: dict[str, Any]):
    request = dataclasses.replace(Request(), **changes)
    assert parsed(REQUEST.words(request)) == request


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
        group = schema.Group(Request, ["questions"])
        parser = Parser(prog="test")
        group.add(parser)
        assert group.read(parser.parse_args(["--question", word])).questions == modes
    assert group.words(Request(questions=("aware",))) == ["--question", "inside"]
