"""A model shared by two processes answers and keeps what one process does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tensor_parallel_cases as shared
import torch
from tiny_models import LAYERS, tiny_model

from catekv.errors import UserError
from catekv.model import CateKVModel

# evaluation/test_torchrun.py shares a model in the fast suite
pytestmark = pytest.mark.slow

RANKS = 2
REPOSITORY = Path(__file__).resolve().parents[2]
NAMES = [
    *shared.cases(shared.ModelShape(LAYERS, 8, 4, 8)),
    *(f"{name}, from a shared prefill" for name in shared.SHARED_PREFILL),
    *(f"{name}, padded" for name in shared.BATCHES),
]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoints")
    for family in shared.FAMILIES:
        tiny_model(family, attention="sdpa").save_pretrained(folder / family)
    return folder


@pytest.fixture(scope="module")
def single(checkpoints: Path) -> dict[str, Any]:
    """What one process finds, by family."""
    return {
        family: shared.answers(
            CateKVModel.from_pretrained(checkpoints / family, method="full", device="cpu")
        )
        for family in shared.FAMILIES
    }


@pytest.fixture(scope="module")
def ranks(checkpoints: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What each of two processes finds, by family."""
    pytest.importorskip("accelerate", reason="tensor parallelism needs the package accelerate")
    output = tmp_path_factory.mktemp("ranks")
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node",
        str(RANKS), shared.__file__, str(checkpoints), str(output),
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return {
        family: [
            json.loads((output / f"{family}.{rank}.json").read_text()) for rank in range(RANKS)
        ]
        for family in shared.FAMILIES
    }


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("family", shared.FAMILIES)
def test_all_processes_answer_like_a_single_one(
    single: dict[str, Any], ranks: dict[str, Any], family: str, name: str
) -> None:
    wanted = single[family][name]
    for found in ranks[family]:
        answer = found["answers"][name]
        torch.testing.assert_close(
            torch.tensor(answer["logits"]), torch.tensor(wanted["logits"]), rtol=1e-4, atol=1e-4
        )
        assert answer["tokens"] == wanted["tokens"]


@pytest.mark.parametrize("name", NAMES)
def test_each_process_keeps_its_heads_part(
    single: dict[str, Any], ranks: dict[str, Any], name: str
) -> None:
    """[layers][batch][kv_heads]: the processes' heads in order are the single process's."""
    parts = [found["answers"][name]["kept"] for found in ranks["llama"]]
    joined = [
        [first + second for first, second in zip(*layers, strict=True)]
        for layers in zip(*parts, strict=True)
    ]
    assert joined == single["llama"][name]["kept"]


@pytest.mark.parametrize("name", NAMES)
def test_replicated_heads_keep_the_same_everywhere(
    single: dict[str, Any], ranks: dict[str, Any], name: str
) -> None:
    for found in ranks["phi3"]:
        assert found["answers"][name]["kept"] == single["phi3"][name]["kept"]


def test_budgets_really_differ_between_the_heads(single: dict[str, Any]) -> None:
    for name in ("catekv", "adakv", "adakv with heads as in the mask"):
        assert any(len(set(layer[0])) > 1 for layer in single["llama"][name]["kept"]), name


def test_what_goes_on_deciding_over_all_heads_is_refused(ranks: dict[str, Any]) -> None:
    for found in ranks["llama"]:
        assert "a total is split over all heads" in found["refusals"]["h2o"]
        assert "use expected=true" in found["refusals"]["cam"]


def test_replicated_heads_need_no_refusal(ranks: dict[str, Any]) -> None:
    assert all(found["refusals"] == {} for found in ranks["phi3"])


def test_one_process_alone_is_told_to_use_torchrun(checkpoints: Path) -> None:
    with pytest.raises(UserError, match="torchrun --nproc_per_node"):
        CateKVModel.from_pretrained(
            checkpoints / "llama", method="full", device="cpu", tensor_parallel=True
        )


def test_heads_that_cannot_be_shared_evenly_are_refused(
    checkpoints: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("catekv.loading.group_position", lambda: (0, 3))
    with pytest.raises(UserError, match="4 KV heads cannot be shared evenly by 3 processes"):
        CateKVModel.from_pretrained(
            checkpoints / "llama", method="full", device="cpu", tensor_parallel=True
        )


def test_models_without_a_plan_are_refused(
    checkpoints: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import LlamaConfig

    monkeypatch.setattr("catekv.loading.group_position", lambda: (0, 2))
    monkeypatch.setattr(LlamaConfig, "base_model_tp_plan", None)
    with pytest.raises(UserError, match="no tensor-parallel plan for LlamaConfig"):
        CateKVModel.from_pretrained(
            checkpoints / "llama", method="full", device="cpu", tensor_parallel=True
        )
