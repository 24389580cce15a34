"""``catekv plan``: what it prints follows from the configuration alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from catekv import HeadMask
from catekv.commands import cli
from catekv.methods.base import Method
from catekv.methods.budgeted import Budgeted
from catekv.methods.snapkv import SnapKV
from catekv.prefill.devices import GIB

LLAMA = ["plan", "llama3-8b-1m"]


def rows_of(text: str) -> dict[str, list[str]]:
    """Rows of the tables that end in a ratio: name -> full, method, ratio."""
    return {
        line.rsplit(maxsplit=3)[0].strip(): line.split()[-3:]
        for line in text.splitlines()
        if line.endswith("x")
    }


def planned(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    assert cli.main([*words, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_the_published_memory_arithmetic(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([*LLAMA, "--length", "131072", "--bandwidth", "4800"]) == 0
    rows = rows_of(capsys.readouterr().out)
    assert rows["cache GiB"] == ["16.00", "6.55", "2.44x"]
    assert rows["cache and weights GiB"] == ["30.96", "21.51", "1.44x"]
    assert rows["GB read per decode step"] == ["32.19", "22.05", "1.46x"]
    assert rows["ms per decode step, at least"] == ["6.71", "4.59", "1.46x"]


def test_half_a_million_tokens(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--length", "512000", "--ratio", "0.3", "--retention", "0.7", "--device", "a100-80g"]
    assert cli.main([*LLAMA, *words]) == 0
    text = capsys.readouterr().out
    assert "llama3-8b-1m: 512000 tokens, batch 1, bfloat16; catekv r 0.3 eta 0.7 b 2048" in text
    assert "A decode step cannot become more than 2.80x faster." in text
    assert "On a100-80g (79.15 GiB)" in text
    for term in ("weights", "kept cache", "one dense layer", "hidden states", "chunk temporaries"):
        assert f"\n{term}: " in text
    content = planned(capsys, *LLAMA, *words)
    full, ours = content["sides"]
    # full attention just fits while it decodes, but its prefill does not
    assert (full["fits"], full["fits_loaded"]) == (False, True)
    assert ours["fits"]
    assert full["longest_context"] < 512_000 < ours["longest_context"]
    assert (full["largest_batch_loaded"], ours["largest_batch"]) == (1, 3)
    assert content["ideal_ratio"] == pytest.approx(2.803, abs=1e-3)


def test_terms_add_up_to_the_peak(capsys: pytest.CaptureFixture[str]) -> None:
    content = planned(capsys, *LLAMA, "--length", "40960", "--batch-size", "4", "--device",
                      "h200-141g")  # fmt: skip
    for side in content["sides"]:
        peak = side["prefill_peak"]
        assert sum(term["bytes"] for term in peak["terms"]) == pytest.approx(peak["bytes"], abs=1)
        assert peak["bytes"] > side["weight_bytes"] + 4 * 40_960 * 4096 * 2


def test_a_mask_counts_its_own_heads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    HeadMask.random((32, 8), 103 / 256, 0).save(tmp_path)
    words = [*LLAMA, "--length", "131072", "--mask", str(next(tmp_path.glob("*.csv")))]
    content = planned(capsys, *words)
    kept = (103 * 131_072 + 153 * 2080) / 256
    assert content["sides"][1]["kept_tokens_per_head"] == pytest.approx(kept)
    assert content["method"]["head_mask"]["ratio"] == 103 / 256


@pytest.mark.parametrize(
    ("words", "kept"),
    [
        (["--method", "snapkv:budget=1000,window=24"], 1024),
        (["--method", "snapkv", "--budget", "1000", "--option", "window=24"], 1024),
        (["--method", "few=streaming_llm:budget=500"], 500),
        (["--method", "full"], 65_536),
        (["--ratio", "1.0"], 65_536),
    ],
)
def test_any_method_by_its_budgets(
    words: list[str], kept: float, capsys: pytest.CaptureFixture[str]
) -> None:
    content = planned(capsys, *LLAMA, "--length", "65536", *words)
    full, ours = content["sides"]
    assert ours["kept_tokens_per_head"] == kept
    assert ours["cache_bytes"] == pytest.approx(full["cache_bytes"] * kept / 65_536)
    assert full["kept_tokens_per_head"] == 65_536


@pytest.mark.parametrize(("store", "bytes_per_key"), [("int8", 132), ("fp8", 132), ("int4", 72)])
def test_plans_count_bits(
    store: str, bytes_per_key: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of 256 bytes of a key; of four bits the residual stays, and a key has two numbers per channel
    and group, which is as much as the four of a value."""
    words = [*LLAMA, "--length", "65568", "--method", f"full:store={store}"]
    full, ours = planned(capsys, *words)["sides"]
    share = ours["cache_bytes"] / full["cache_bytes"]
    assert share == pytest.approx(bytes_per_key / 256, rel=1.5e-3)
    assert ours["step_bytes"] < full["step_bytes"]
    assert (
        cli.main([*LLAMA, "--length", "65568", "--ratio", "0.4", "--option", f"store={store}"]) == 0
    )
    assert f"catekv r 0.4 eta 1 b 2048 {store}" in capsys.readouterr().out


def test_what_the_numbers_do_not_know_is_said(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [*LLAMA, "--length", "65536"]
    assert cli.main([*words, "--method", "quest"]) == 0
    assert "quest stores everything and reads a part of it" in capsys.readouterr().out
    assert cli.main([*words, "--method", "shadowkv"]) == 0
    assert "shadowkv moves entries to host memory" in capsys.readouterr().out
    monkeypatch.setattr(SnapKV, "budget_table", Method.budget_table)
    monkeypatch.setattr(Budgeted, "budget_table", Method.budget_table)
    monkeypatch.setattr(Budgeted, "given_table", Method.given_table)
    assert cli.main([*words, "--method", "snapkv"]) == 0
    assert "snapkv decides by the prompt's content" in capsys.readouterr().out


def test_beyond_the_window_only_memory_means_anything(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert cli.main(["plan", "phi3-mini-128k", "--length", "184320"]) == 0
    assert "made for 131072 tokens" in capsys.readouterr().out
    assert cli.main(["plan", "phi3-mini-128k", "--length", "131072"]) == 0
    assert "made for" not in capsys.readouterr().out


def test_memory_of_a_device_by_size(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "plan.json"
    words = [*LLAMA, "--length", "4096", "--device-memory", "48GiB", "--output", str(path)]
    assert cli.main(words) == 0
    assert "On a device of 48GiB (48.00 GiB)" in capsys.readouterr().out
    content = json.loads(path.read_text())
    assert content["device"]["memory_bytes"] == 48 * GIB
    assert content["sides"][0]["step_seconds_at_least"] is None
    known = planned(capsys, *LLAMA, "--length", "4096", "--device-memory", "48GiB", "--device",
                    "h200-141g")  # fmt: skip
    assert known["device"]["memory_bytes"] == 48 * GIB
    assert known["sides"][0]["step_seconds_at_least"] > 0


def test_no_weights_are_allocated(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    devices = set()
    original = torch.nn.Linear.__init__

    def noted(self: Any, *arguments: Any, **options: Any) -> None:
        original(self, *arguments, **options)
        devices.add(self.weight.device.type)

    monkeypatch.setattr(torch.nn.Linear, "__init__", noted)
    planned(capsys, "plan", "yi-34b-200k", "--length", "200000")
    assert devices == {"meta"}


@pytest.mark.parametrize(
    "words", [["--batch-size", "0"], ["--chunk-size", "0"], ["--new-tokens", "-1"]]
)
def test_counts_out_of_range_are_one_line(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main([*LLAMA, "--length", "9", *words])
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert words[0] in error
    assert "give a whole number from" in error


@pytest.mark.parametrize(
    ("words", "cause"),
    [
        ([*LLAMA, "--length", "9", "--dtype", "int3"], "unknown dtype 'int3'; use bfloat16"),
        ([*LLAMA, "--length", "9", "--retention", "0"], "retention 0.0 is outside (0, 1]"),
        (
            [*LLAMA, "--length", "9", "--budget", "12", "--option", "init_tokens=13"],
            "smaller than the edges",
        ),
        ([*LLAMA, "--length", "9", "--method", "none"], "unknown method 'none'; available: "),
        ([*LLAMA, "--length", "9", "--method", "full", "--budget", "9"], "leave --budget out"),
        ([*LLAMA, "--length", "9", "--option", "window"], "--option takes NAME=VALUE"),
        ([*LLAMA, "--length", "9", "--option", "wnidow=3"], "wnidow"),
        ([*LLAMA, "--length", "9", "--device", "abacus"], "unknown device 'abacus'; use auto"),
        ([*LLAMA, "--length", "9", "--device-memory", "much"], "as in 80GiB"),
        ([*LLAMA, "--length", "9", "--bandwidth", "-1"], "must be positive"),
        ([*LLAMA, "--length", "9", "--model", "phi4"], "named twice"),
        ([*LLAMA, "--length", "9", "--output", "/dev/null/plan.json"], "cannot write"),
        (
            ["plan", "absent", "--length", "9"],
            "neither a folder, a GGUF file nor a known shape; known: ",
        ),
    ],
)
def test_wrong_input_is_one_line(
    words: list[str], cause: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(words) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert cause in error


@pytest.mark.parametrize("method", ["catekv:keep=0.25", "snapkv:keep=0.25"])
def test_a_share_is_planned_at_every_length(
    method: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for length, kept in ((32768, "8192"), (65536, "16384")):
        words = ["plan", "--model", "llama3.1-8b", "--length", str(length), "--method", method]
        assert cli.main(words) == 0
        said = capsys.readouterr().out
        assert "keep 0.25" in said.splitlines()[0]
        assert kept in next(line for line in said.splitlines() if "tokens kept" in line).split()
    assert cli.main([*words[:-1], "catekv:keep=0.01"]) == 2
    assert "entries do not hold the" in capsys.readouterr().err
