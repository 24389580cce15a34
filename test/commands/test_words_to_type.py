"""What complaints about the options of a method tell a user to type."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from catekv.commands import cli
from catekv.commands.words import explained
from catekv.errors import UserError
from catekv.evaluation.columns.specification import parse_method
from catekv.methods import available, create, method_class
from catekv.methods.options import rules_of


@pytest.mark.parametrize(
    ("command", "method", "words"),
    [
        ("generate", "snapkv:kernel=4", "--method snapkv:kernel=7"),
        ("evaluate", "adakv:flor=1", "--methods adakv:floor=0.2"),
        ("check", "h2o:budget=4,recent=9", "--methods h2o:budget=1024,recent=N"),
        ("plan", "snapkv:budgets=headkv", "--method snapkv:budgets=headkv,budgets.scores=FILE"),
        ("fidelity", "catekv:budget=0", "--budget 2048"),
        ("plan", "catekv:window=0", "--method catekv:window=N"),
        ("calibrate", "catekv:chunk_size=0", "--chunk-size 8"),
    ],
)
def test_a_complaint_about_an_option_says_what_to_type(
    command: str, method: str, words: str
) -> None:
    def made() -> object:
        written = parse_method(method)
        return create(written.name, **written.options)

    assert complaint(made, parser_of(command)).endswith(f"; write {words}")


@pytest.mark.parametrize("name", available())
def test_every_option_that_a_complaint_mentions_can_be_written(name: str) -> None:
    parser = parser_of("generate")
    for option in rules_of(method_class(name)):
        for value in (-1, 2.5, "nonsense"):
            said = complaint(partial(create, name, **{option: value}), parser)
            for text in re.findall(r"--method (\S+)$", said):
                assert set(parse_method(text).options) <= set(rules_of(method_class(name)))
            if f"{option} {value!r} " in said:
                flag = f"--{option.replace('_', '-')} "
                assert re.search(rf"[:,]{option}=|{flag}", said.partition("; write ")[2])


def complaint(action: Callable[[], object], parser: cli.Parser) -> str:
    try:
        return str(explained(lambda: int(bool(action())), parser))
    except UserError as error:
        return str(error)


def parser_of(command: str) -> cli.Parser:
    (commands,) = (
        action
        for action in cli.make_parser()._actions
        if isinstance(action, argparse._SubParsersAction)
    )
    parser = commands.choices[command]
    parser.add_later(parser)
    return parser


def test_sizes_of_another_method_are_not_passed_over(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text("the road is long . " * 40)
    ask = ["generate", "--context", "text.txt", "--question", "x", "--max-new-tokens", "1"]
    shares = []
    for words in (["snapkv:budget=16"], ["snapkv", "--budget", "16"]):
        assert cli.main([*ask, "--method", *words]) == 0
        shares.append(capsys.readouterr().err)
    assert shares[0] == shares[1]
    assert "100.0% kept" not in shares[0]
    assert cli.main([*ask, "--method", "full", "--budget", "16"]) == 2
    assert "--budget is no option of full" in capsys.readouterr().err
    words = ["--model", "absent", "--methods", "full", "snapkv", "--window", "16"]
    assert cli.main(["evaluate", *words]) == 2
    assert "--window is a size of catekv, which is not among" in capsys.readouterr().err
