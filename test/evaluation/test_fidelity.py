"""``catekv fidelity``: what it writes, going on after a kill, and what it refuses."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
from tiny_checkpoint import save_tiny_checkpoint

from catekv.commands.cli import main
from catekv.evaluation.fidelity import page
from catekv.evaluation.fidelity.records import FidelityRecord, read_records
from catekv.evaluation.fidelity.summary import rows_of

SIZES = ["--lengths", "192", "--samples", "2", "--forced", "8"]
METHODS = ["--methods", "full", "snapkv:window=16", "h2o", "streaming_llm:sinks=4"]
RATIOS = ["--ratios", "0.25", "1"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_checkpoint(tmp_path_factory.mktemp("model"))


def words(checkpoint: Path, output: Path, *more: str) -> list[str]:
    return [
        "fidelity", "--model", str(checkpoint), "--device", "cpu", "--quiet", *SIZES, *METHODS,
        *RATIOS, "--output", str(output), *more,
    ]  # fmt: skip


@pytest.fixture(scope="module")
def finished(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    assert main(words(checkpoint, folder)) == 0
    return folder


def numbers(folder: Path) -> list[dict[str, Any]]:
    return sorted(
        (vars(record) for record in read_records(folder / "fidelity.jsonl")),
        key=lambda record: (record["passage"], record["column"]),
    )


def test_every_passage_under_every_method_and_share(checkpoint: Path, finished: Path) -> None:
    records = read_records(finished / "fidelity.jsonl")
    # prose and two tasks, two samples each; three methods at two shares
    assert len(records) == len({record.key for record in records}) == 3 * 2 * 3 * 2
    assert {record.kind for record in records} == {"text", "answers"}
    for record in records:
        assert record.refused is None
        assert record.kept_share == pytest.approx(record.ratio, abs=0.02)
        if record.kind == "text":
            assert (record.tokens, record.context_tokens) == (8, 184)
        if record.ratio == 1.0 and record.method != "h2o":
            assert (record.divergence, record.agreement) == (0.0, 1.0)
            assert record.loss == record.full_loss
        if record.ratio == 0.25:
            assert record.divergence > 0.0
    # the full model's own answer is its first choice, which is as likely as any other at least
    vocabulary = json.loads((checkpoint / "config.json").read_text())["vocab_size"]
    assert all(r.full_loss <= math.log(vocabulary) for r in records if r.kind == "answers")


def test_summary_and_report(finished: Path) -> None:
    summary = json.loads((finished / "summary.json").read_text())
    sources = {(row["kind"], row["source"]) for row in summary["rows"]}
    assert sources == {
        ("text", "prose"), ("answers", "all"), ("answers", "ruler/niah_multikey_1"),
        ("answers", "ruler/vt"),
    }  # fmt: skip
    for row in summary["rows"]:
        for name in ("divergence", "agreement", "perplexity", "perplexity_change"):
            estimate = row[name]
            assert estimate["low"] - 1e-9 <= estimate["mean"] <= estimate["high"] + 1e-9
    page = (finished / "report.html").read_text()
    # three curves for every source and length
    assert page.count("<svg") == 3 * len(sources)
    assert "Continuation of texts" in page
    assert "own answers" in page


def test_means_of_the_summary() -> None:
    def record(source: str, index: int, loss: float, divergence: float) -> FidelityRecord:
        return FidelityRecord(
            "text", source, 64, index, f"{source}{index}", "snapkv", 0.5, "c", kept_share=0.5,
            divergence=divergence, agreement=1.0, loss=loss, full_loss=1.0,
        )  # fmt: skip

    single = record("b", 0, 3.0, 0.9)
    rows = rows_of([record("a", 0, 1.0, 0.2), record("a", 1, 2.0, 0.4), single])
    together = next(row for row in rows if row.source == "all")
    assert together.divergence.mean == pytest.approx((0.3 + 0.9) / 2)  # sources weigh alike
    assert together.perplexity.mean == pytest.approx(math.exp((1.5 + 3.0) / 2))
    assert together.perplexity_change.mean == pytest.approx(math.exp(2.25) - math.e)
    assert together.divergence.count == 3
    # one passage of a source bounds nothing
    assert together.to_dict()["perplexity_change"]["low"] is None
    assert page.plain(rows).splitlines()[-1].split()[-1] == f"{math.exp(2.25) - math.e:+.2f}"


def test_intervals_of_few_passages_are_those_of_student_s_t() -> None:
    losses = [1.0, 1.1, 1.2, 1.3]
    (row,) = rows_of(
        FidelityRecord(
            "text", "a", 64, index, f"a{index}", "snapkv", 0.5, "c", kept_share=0.5,
            divergence=loss, agreement=1.0, loss=loss, full_loss=1.0,
        )
        for index, loss in enumerate(losses)
    )  # fmt: skip
    # t(3; 0.975) s / 2 = 3.182 x 0.1291 / 2
    assert row.divergence.high - 1.15 == pytest.approx(0.205, abs=0.04)
    assert row.perplexity_change.low > math.exp(0.9) - math.e
    assert row.agreement.low == row.agreement.high == 1.0


@pytest.mark.filterwarnings("error")
def test_a_difference_of_perplexities_beyond_all_numbers_has_no_interval() -> None:
    (row,) = rows_of(
        FidelityRecord(
            "text", "a", 64, index, f"a{index}", "snapkv", 0.5, "c", kept_share=0.5,
            divergence=0.1, agreement=1.0, loss=loss, full_loss=loss,
        )
        for index, loss in enumerate((5.0, 300.0))
    )  # fmt: skip
    assert row.to_dict()["perplexity_change"]["low"] is None
    assert row.to_dict()["perplexity"]["high"] is None


def test_a_batch_with_padding_measures_what_single_passages_do(
    checkpoint: Path, finished: Path, tmp_path: Path
) -> None:
    assert main(words(checkpoint, tmp_path, "--batch-size", "2")) == 0
    for alone, batched in zip(numbers(finished), numbers(tmp_path), strict=True):
        assert batched["divergence"] == pytest.approx(alone["divergence"], abs=1e-5)
        assert batched["loss"] == pytest.approx(alone["loss"], abs=1e-4)
        assert batched["kept_share"] == pytest.approx(alone["kept_share"])


def test_the_same_command_measures_only_what_is_missing(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words(checkpoint, tmp_path, "--tasks", "none")) == 0
    first = numbers(tmp_path)
    assert main(words(checkpoint, tmp_path, "--tasks", "none")) == 0
    assert "measured before" in capsys.readouterr().out
    assert numbers(tmp_path) == first
    assert main(words(checkpoint, tmp_path, "--tasks", "none", "--ratios", "0.5")) == 0
    assert len(numbers(tmp_path)) == len(first) + 2 * 3
    assert main(words(checkpoint, tmp_path, "--seed", "7")) == 2
    assert "another configuration, different: seed (" in capsys.readouterr().err


@pytest.mark.slow
def test_a_run_that_was_cut_short_goes_on(checkpoint: Path, finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    (tmp_path / "summary.json").unlink()
    path = tmp_path / "fidelity.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:3]) + lines[3][:20])
    assert main(words(checkpoint, tmp_path)) == 0
    assert numbers(tmp_path) == numbers(finished)
    assert (tmp_path / "summary.json").read_text() == (finished / "summary.json").read_text()


def test_files_are_cut_into_passages(checkpoint: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("the " * 500)
    folder = tmp_path / "run"
    more = ["--text", str(text), "--tasks", "none"]
    assert main(words(checkpoint, folder, *more)) == 0
    records = read_records(folder / "fidelity.jsonl")
    assert {record.source for record in records} == {str(text)}


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--ratios", "0"], "--ratios 0 is no share"),
        (["--ratios", "1.5"], "--ratios 1.5 is no share"),
        (["--lengths", "8"], "leaves no context before 8 forced"),
        (["--lengths", "4096"], "exceeds the model's context window of 1024"),
        (["--text", "none", "--tasks", "none"], "nothing to measure on"),
        (["--methods", "full"], "nothing to compare with the full cache"),
        (["--methods", "snapkw"], "unknown method 'snapkw'"),
        (["--tasks", "ruler/none"], "unknown task"),
        (["--ratios", "0.001", "--methods", "snapkv"], "no method can be measured"),
        (["--ratios", "0.5", "0.50"], "--ratios holds 0.5 twice"),
        (["--methods", "snapkv:budget=32"], "budget of snapkv and --ratios both say how much"),
        (["--methods", "snapkv:keep=0.2"], "keep of snapkv and --ratios both say how much"),
        (["--text", "prose", "prose"], "--text holds prose twice"),
        (["--text", "LICENSE", "docs/../LICENSE"], "LICENSE twice"),
        (["--tasks", "ruler/vt", "ruler/vt"], "--tasks holds ruler/vt twice"),
        (["--lengths", "64", "64"], "--lengths holds 64 twice"),
    ],
)
def test_refusals_are_one_line(
    checkpoint: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    more: list[str],
    message: str,
) -> None:
    assert main(words(checkpoint, tmp_path / "run", *more)) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ")
    assert message in error


def test_a_text_shorter_than_the_length_is_refused(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = tmp_path / "short.txt"
    text.write_text("the " * 20)
    assert main(words(checkpoint, tmp_path / "run", "--text", str(text))) == 2
    assert "fewer than the length of 192" in capsys.readouterr().err
    assert main(words(checkpoint, tmp_path / "run", "--text", str(tmp_path / "absent"))) == 2


def test_a_method_that_refuses_the_prompt_stops_no_other(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    strict = "strict=decoding:base=keydiff,budget=64,every=16,protect_prompt=true"
    command = words(checkpoint, tmp_path, "--tasks", "none")
    command[command.index("--methods") : command.index("--output")] = [
        "--methods", strict, "snapkv:window=8,budget=64",
    ]  # fmt: skip
    assert main(command) == 0
    assert "strict" in capsys.readouterr().err
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert [row["method"] for row in summary["rows"]] == ["snapkv"]
    (reason,) = summary["refused"].values()
    assert "64" in reason


def test_columns_that_keep_everything_are_no_result(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ("--tasks", "none", "--methods", "snapkv:window=8", "--ratios", "1.0", "0.5")
    assert main(words(checkpoint, tmp_path, *more)) == 0
    printed = capsys.readouterr().out
    assert "snapkv at 100 % (nothing compressed)" in printed
    assert "snapkv at 50 % (nothing" not in printed
    assert "Nothing compressed: snapkv, 192 tokens" in printed
    assert "(nothing compressed)" in (tmp_path / "report.md").read_text()
    rows = json.loads((tmp_path / "summary.json").read_text())["rows"]
    assert [row["untouched"] for row in rows] == [True, False]


def test_equal_methods_under_two_names_are_two_columns(checkpoint: Path, tmp_path: Path) -> None:
    """Each has its own row, whatever they were called when they were measured."""
    more = ("--tasks", "none", "--ratios", "0.5", "--methods")
    for names in (("a", "b"), ("c",)):
        methods = [f"{name}=snapkv:window=8" for name in names]
        assert main(words(checkpoint, tmp_path, *more, *methods)) == 0
        rows = json.loads((tmp_path / "summary.json").read_text())["rows"]
        found = [(row["method"], row["divergence"]["count"]) for row in rows]
        assert found == [(name, 2) for name in names]


def test_a_full_cache_in_fewer_bits_is_compared(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The shipped model on prose: its keys are large, so that four bits are far from eight. A full
    cache in the model's type is compared with itself by no column."""
    stores = ("int8", "fp8", "int4")
    columns = ["full", *(f"{store}=full:store={store}" for store in stores)]
    sizes = ("--lengths", "512", "--samples", "2", "--forced", "32", "--tasks", "none")
    command = ("fidelity", "--device", "cpu", "--quiet", *sizes, "--output", str(tmp_path))
    assert main([*command, "--methods", *columns]) == 0
    capsys.readouterr()
    rows = json.loads((tmp_path / "summary.json").read_text())["rows"]
    assert [row["method"] for row in rows] == list(stores)
    assert [row["untouched"] for row in rows] == [False] * 3
    eight, floats, four = (row["divergence"]["mean"] for row in rows)
    assert 0 < eight < min(floats, four)
    assert max(floats, four) < 0.5
