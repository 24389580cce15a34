"""How many files somebody opens who follows a prompt to its packed rows, or a sample to its record.

The files are those whose functions run on the way. What only checks, counts or adapts is listed
here with its reason, and docs/architecture.md shows the rest.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from catekv.commands import cli
from catekv.evaluation.run.loop import Loop
from catekv.model import CateKVModel

PACKAGE = Path(cli.__file__).resolve().parents[1]
#: checks, arithmetic for refusals and messages, differences between transformers releases: a
#: prompt's way is understood without them
ASIDE = {
    "cache/sharded.py", "decode/sharded_sizes.py", "kernels/logits.py", "kernels/workspace.py",
    "methods/options.py", "models/compat.py", "models/finite.py", "models/kinds.py",
    "models/padding.py", "models/shape.py", "models/sharding.py", "models/weights_identity.py",
    "prefill/capacity.py", "prefill/devices.py", "prefill/peak.py", "prefill/sizes.py",
}  # fmt: skip
#: how the text of a sample is made is a way of its own
MAKING = ("tasks/building.py", "tasks/core/", "tasks/drawing/", "tasks/registry.py",
          "tasks/small/", "tasks/wording/", "methods/registry.py")  # fmt: skip


@contextmanager
def files_read() -> Iterator[set[str]]:
    """The files of the package in which a function is called."""
    names: set[str] = set()

    def seen(frame: object, event: str, argument: object) -> None:
        name = frame.f_code.co_filename  # type: ignore[attr-defined]
        if event == "call" and name.startswith(str(PACKAGE)):
            names.add(str(Path(name).relative_to(PACKAGE)))

    before = sys.getprofile()
    sys.setprofile(seen)
    try:
        yield names
    finally:
        sys.setprofile(before)


def prompt_path(ids: torch.Tensor) -> set[str]:
    from transformers import LlamaConfig

    config = LlamaConfig(
        hidden_size=64, intermediate_size=64, num_hidden_layers=2, num_attention_heads=8,
        num_key_value_heads=4, vocab_size=100,
    )  # fmt: skip
    model = CateKVModel.from_config(config, "snapkv", budget=16, dtype="float32", device="cpu")
    model.prefill(ids)  # what is found out once is not on the way
    with files_read() as files:
        model.prefill(ids)
    return files


def test_a_prompt_becomes_packed_rows_in_twenty_files() -> None:
    files = prompt_path(torch.arange(64)[None] % 100)
    path = files - ASIDE - {"decode/generation.py"}  # of which a prompt uses the clock alone
    assert len(path) <= 20, sorted(path)
    assert {"model.py", "cache/attention.py", "cache/layer.py", "kernels/packing.py"} <= path
    shown = (PACKAGE.parent / "docs" / "architecture.md").read_text()
    missing = [name for name in sorted(path) if f"`{name}`" not in shown]
    assert not missing, "docs/architecture.md does not show the whole way of a prompt"


def test_a_sample_becomes_a_record_in_thirty_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measure: Callable[..., int] = Loop._unit
    files: list[set[str]] = []

    def watched(self: Loop, *arguments: object) -> int:
        with files_read() as seen:
            result = measure(self, *arguments)
        files.append(seen)
        return result

    monkeypatch.setattr(Loop, "_unit", watched)
    words = ["evaluate", "--tasks", "ruler/vt", "--lengths", "256", "--samples", "2", "--quiet"]
    words += ["--methods", "full", "snapkv:budget=32,window=8", "--output", str(tmp_path / "run")]
    assert cli.main(words) == 0
    shown = {"evaluation/run/progress.py"}  # how far the run is
    path = {name for name in files[-1] - ASIDE - shown if not name.startswith(MAKING)}
    path -= prompt_path(torch.arange(64)[None] % 100) - {"decode/generation.py"}
    assert len(path) <= 30, sorted(path)
    assert {"evaluation/run/measuring.py", "decode/generation.py"} <= path
