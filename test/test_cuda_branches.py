"""Every branch that is taken on a CUDA device only, taken: on a pretended one, with real numbers.

A walk names the functions whose questions it answers with yes. A question of ``catekv/`` that no
walk names fails the first test; a walk that does not get to a CUDA side fails itself.
"""

from __future__ import annotations

import functools
import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from cuda_branches import branches, taken
from scenarios import random_ids
from tiny_models import RandomKeep, tiny_model
from torch import Tensor

pytest.importorskip("triton", reason="triton has no package for this platform")

from pretend_cuda import CUDA, Pretended, pretend_cuda

from catekv import CateKVModel, kernels, methods
from catekv.decode.step import DecodeStep
from catekv.kernels.ragged import from_rows

sys.path.insert(0, str(Path(__file__).parent / "methods"))
from test_method_matrix import CASES

QUESTIONS = branches()
Walk = Callable[[Pretended, pytest.MonkeyPatch], None]
WALKS: dict[Walk, tuple[str, ...]] = {}
PROMPT, STEPS = 32, 3


def walk(*keys: str) -> Callable[[Walk], Walk]:
    """The questions of these functions are answered with yes."""

    def add(function: Walk) -> Walk:
        WALKS[function] = keys
        return function

    return add


def close(found: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(found.cpu(), wanted, atol=2e-4, rtol=1e-3)


def model_on(device: Any, layers: int = 1, **changes: Any) -> CateKVModel:
    changes = {"num_attention_heads": 4, "num_key_value_heads": 2, **changes}
    return CateKVModel(tiny_model("llama", num_hidden_layers=layers, **changes).to(device))


@functools.cache
def on_cpu(name: str, layers: int) -> Tensor:
    return steps_of(name, model_on("cpu", layers), "off", "off")[0]


@torch.no_grad()
def steps_of(
    name: str, model: CateKVModel, graph: str, fused: str, steps: int = STEPS
) -> tuple[Tensor, DecodeStep]:
    """Logits of a prompt and of tokens behind it."""
    method = methods.create(name.split("/")[0], **CASES[name].options("small", model.shape))
    context = model.prefill(random_ids(1, PROMPT, seed=0).to(model.device), method=method)
    step = DecodeStep(model.model, context.cache.fork(), 2, graph=graph, fused_step=fused)
    found = [context.last_logits]
    for number in range(steps):
        found.append(step(random_ids(1, 1, seed=1 + number).to(model.device)).clone())
    return torch.stack(found), step


# --- kernels -------------------------------------------------------------------------------------


def decode_inputs(dtype: torch.dtype, device: Any) -> list[Any]:
    torch.manual_seed(0)
    rows = ((0, 40), (40, 3))
    keys, values, tail = torch.randn(43, 64), torch.randn(43, 64), torch.randn(1, 2, 5, 64)
    queries, *rest = (x.to(device, dtype) for x in (torch.randn(1, 4, 1, 64), keys, values, tail))
    return [queries, from_rows(rest[0], rest[1], None, rows, 2), rest[2], rest[2], 0.125]


@walk(
    "kernels/dispatch.py: choose",
    "kernels/dispatch.py: _launching",
    "kernels/dispatch.py: _why_no_triton",
    "kernels/ragged_decode.py: _product",
    "kernels/ragged_decode_triton.py: _processors",
    "methods/stores/block_reader.py: product",
)
def kernels_are_chosen(device: Pretended, monkeypatch: pytest.MonkeyPatch) -> None:
    from catekv.kernels.ragged_decode_triton import _processors
    from catekv.methods.stores.block_reader import product

    _processors.cache_clear()
    kernels.dispatch._launching.cache_clear()  # type: ignore[attr-defined]
    inputs = decode_inputs(torch.float16, CUDA)
    wanted = kernels.ragged_decode(*decode_inputs(torch.float32, "cpu"))
    for backend in ("auto", "triton", "torch"):
        found = kernels.ragged_decode(*inputs, backend=backend)
        torch.testing.assert_close(found.cpu().float(), wanted, atol=3e-3, rtol=1e-2)
    assert device.kernels() == {"_decode", "_reduce"}
    halves = torch.ones(1, 2, 3, dtype=torch.float16, device=CUDA)
    assert product(halves, halves.transpose(1, 2)).dtype == torch.float32


@walk("cache/attention.py: _past_and_self")
def flash_attention_reads_chunks(device: Pretended, monkeypatch: pytest.MonkeyPatch) -> None:
    from catekv.cache import attention

    torch.manual_seed(0)
    shapes = ((1, 4, 5, 16), (1, 2, 12, 16), (1, 2, 12, 16))
    given = [torch.randn(shape) for shape in shapes]
    wanted = attention._past_and_self(*given, 0.25)
    monkeypatch.setattr(attention, "_flash_serves", lambda *_: True)
    close(attention._past_and_self(*(x.to(CUDA) for x in given), 0.25), wanted)


# --- a model -------------------------------------------------------------------------------------


@walk(
    "cache/attention.py: _past_is_causal",
    "decode/fused.py: chosen_step",
    "decode/fused.py: _found",
    "decode/graph.py: why_not",
    "decode/step.py: DecodeStep._drop",
)
def a_step_is_fused_and_recorded(device: Pretended, monkeypatch: pytest.MonkeyPatch) -> None:
    found, step = steps_of("snapkv", model_on(CUDA), "auto", "auto")
    assert step.captured, step.reason
    assert step.fused, step.fused_reason
    # the tail had room for two tokens: the step was recorded again
    assert device.runtime.replays == STEPS
    close(found, on_cpu("snapkv", 1))
    assert {"_rms_norm", "_rotary_append", "_silu_multiply", "_pack"} <= device.kernels()


@walk(
    "decode/generation.py: synchronize",
    "decode/generation.py: Session.open",
    "decode/generation.py: _Mail.__init__",
    "loading.py: resolve_device",
    "loading.py: random_model",
)
def a_model_answers(device: Pretended, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import LlamaConfig

    config = LlamaConfig(
        vocab_size=97, hidden_size=64, intermediate_size=96, num_hidden_layers=1,
        num_attention_heads=4, num_key_value_heads=2,
    )  # fmt: skip
    answers = []
    for place in ("cpu", "auto", "cuda"):
        name = "cpu" if place == "cpu" else "cuda"
        model = CateKVModel.from_config(config, dtype="float32", device=place)
        assert model.device.type == name
        context = model.prefill(random_ids(1, 20, seed=0).to(name), method=RandomKeep())
        answers.append(model.generate_ids([5], context, 3, []).tokens)
    assert answers[1:] == answers[:1] * 2


# --- stores --------------------------------------------------------------------------------------


@walk(
    "methods/stores/host.py: to_host",
    "methods/stores/offload.py: OffloadedPrefix.build",
    "methods/stores/offload.py: OffloadedPrefix.read",
    "methods/stores/shadow_reader.py: ShadowReader.__init__",
    "methods/atskv/passive.py: PassivePlace.hold",
    "methods/atskv/passive.py: Passive.build",
    "methods/atskv/passive.py: to_device",
)
def entries_wait_on_the_host(device: Pretended, monkeypatch: pytest.MonkeyPatch) -> None:
    """Methods decode as they do on a CPU, recorded where that is possible; one model serves all,
    because examining it takes longest."""
    from catekv.methods.stores.host import copy_stream

    copy_stream.cache_clear()
    names = ("snapkv/offload", "catekv/shadowkv", "atskv/top")
    layers = max(CASES[name].layers for name in names)
    model = model_on(CUDA, layers)
    for name in names:
        close(steps_of(name, model, "auto", "off")[0], on_cpu(name, layers))


# --- measuring -----------------------------------------------------------------------------------


@walk(
    "evaluation/efficiency/clock.py: step_times",
    "evaluation/efficiency/clock.py: cold_times",
    "evaluation/efficiency/clock.py: copy_bandwidth",
    "evaluation/efficiency/clock.py: _kind",
)
def clocks_tick(device: Pretended, monkeypatch: pytest.MonkeyPatch) -> None:
    from catekv.evaluation.efficiency import clock

    small = {"cuda": 1 << 12, "cpu": 1 << 12}
    monkeypatch.setattr(clock, "FLUSH_BYTES", small)
    monkeypatch.setattr(clock, "_COPY_BYTES", small)
    ones = torch.ones(3, device=CUDA)
    assert clock.step_times(lambda: ones * 2, 3, CUDA)[0] == [1e-3] * 3
    assert clock.cold_times(lambda: ones * 2, 3, CUDA) == [1e-3] * 3
    assert device.runtime.replays == 3
    assert clock.copy_bandwidth(CUDA, 2) == 2 * (1 << 12) / 1e-3
    assert device.kernels() == {"_copy"}


@walk(
    "evaluation/efficiency/dense.py: Reader.write",
    "evaluation/efficiency/dense.py: Library.absent",
    "evaluation/efficiency/memory.py: Peak.__init__",
    "evaluation/efficiency/memory.py: Peak.highest",
    "evaluation/efficiency/memory.py: allocated_bytes",
    "evaluation/efficiency/memory.py: free",
    "prefill/devices.py: free_memory_bytes",
    "evaluation/records/environment.py: device_description",
)
def memory_is_measured(device: Pretended, monkeypatch: pytest.MonkeyPatch) -> None:
    from catekv.evaluation.efficiency import dense, memory
    from catekv.evaluation.records.environment import device_description

    assert dense.LIBRARIES["flex"].absent(CUDA) == ""
    peak = memory.Peak(CUDA)
    reader = dense.Sdpa(1, 2, 8, 16, torch.float32, CUDA, 0)
    before, newest = reader.keys.cpu(), torch.ones(1, 2, 1, 16, device=CUDA)
    reader.write(newest, newest)
    assert torch.equal(reader.keys[:, :, 7].cpu(), torch.ones(1, 2, 16))
    assert torch.equal(reader.keys[:, :, :7].cpu(), before[:, :, :7])
    assert device.kernels() == {"_append"}
    assert (peak.since_start() or 0) >= reader.keys.nbytes + reader.values.nbytes
    assert (memory.allocated_bytes(CUDA) or 0) > 0
    memory.free()
    assert 0 < (memory.usable_bytes(CUDA) or 0) < device_description("cuda")["memory_bytes"]


@walk(
    "commands/doctor_report.py: _devices",
    "evaluation/run/loop.py: _free",
    "evaluation/run/measured.py: reset_peak",
    "evaluation/run/measured.py: peak",
    "prefill/devices.py: find_device",
)
def the_device_is_described(device: Pretended, monkeypatch: pytest.MonkeyPatch) -> None:
    from catekv.commands import doctor_report
    from catekv.evaluation.run import loop, measured
    from catekv.prefill.devices import find_device

    assert "sm_90, 80 GiB" in doctor_report._devices()["cuda:0"]
    assert find_device("auto").kind == "cuda"
    loop._free()
    measured.reset_peak("cuda:0")
    assert measured.peak("cuda:0") is not None


@walk("evaluation/run/distributed.py: process_group", "loading.py: sharing_options")
def processes_share_a_model(device: Pretended, monkeypatch: pytest.MonkeyPatch) -> None:
    from catekv import loading
    from catekv.errors import UserError
    from catekv.evaluation.run import distributed

    for name, value in (("WORLD_SIZE", "2"), ("RANK", "0"), ("LOCAL_RANK", "0")):
        monkeypatch.setenv(name, value)
    begun: list[str] = []

    def refuse(backend: str, **_: Any) -> None:
        begun.append(backend)
        raise ValueError("nobody answers")

    module = importlib.import_module("torch.distributed.rendezvous")
    monkeypatch.setattr(module, "rendezvous", lambda *_, **__: iter([(None, 0, 2)]))
    monkeypatch.setattr("torch.distributed.init_process_group", refuse)
    with (
        pytest.raises(UserError, match="nobody answers"),
        distributed.process_group(distributed.TENSOR),
    ):
        pass
    assert begun == ["cpu:gloo,cuda:nccl"]
    monkeypatch.setattr(loading, "group_position", lambda: (0, 2))
    with pytest.raises(UserError, match="takes the CUDA devices of this machine"):
        loading.sharing_options(None, torch.device("cpu"))


@walk("evaluation/harness.py: HarnessModel.__init__")
def a_harness_asks_for_cuda(device: Pretended, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("lm_eval", reason="lm_eval is not installed")
    from catekv.evaluation import harness

    class Opened(Exception):  # noqa: N818
        pass

    def refuse(request: Any) -> None:
        raise Opened(request.device)

    monkeypatch.setattr(harness, "open_model", refuse)
    with pytest.raises(Opened, match="cuda:0"):
        harness.HarnessModel("a model", device="cuda:0")


@pytest.mark.slow
def test_steps_are_measured_on_the_device() -> None:
    from catekv.evaluation.columns.settings import MethodSpec
    from catekv.evaluation.efficiency.measure import measure

    with pretend_cuda() as device:
        spec = MethodSpec("ours", "snapkv", {"budget": 8, "window": 4})
        rows = measure(
            model_on(CUDA), [spec], 64, new_tokens=1, repeats=1, baselines=("kernel", "sdpa")
        )
    assert [row.status for row in rows] == ["measured"] * 3, [row.note for row in rows]
    assert all(row.captured and row.resident_bytes for row in rows)
    assert {"_append", "_rotary_append", "_decode"} <= device.kernels()


# --- all of them ---------------------------------------------------------------------------------


def test_every_question_is_named_by_a_walk() -> None:
    named = {key for keys in WALKS.values() for key in keys}
    asked = {question.key for question in QUESTIONS}
    assert asked - named == set(), "no walk takes the CUDA side of these"
    assert named - asked == set(), "these ask no longer"


#: Three methods that decode with entries on the host.
LONG_WALKS = (entries_wait_on_the_host,)


@pytest.mark.parametrize(
    "which",
    [
        pytest.param(function, marks=[pytest.mark.slow] if function in LONG_WALKS else [])
        for function in WALKS
    ],
    ids=lambda function: function.__name__,
)
def test_a_walk_takes_the_branches_it_names(which: Walk, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = [one for one in QUESTIONS if one.key in WALKS[which]]
    with taken(wanted) as found, pretend_cuda() as device:
        which(device, monkeypatch)
    missed = sorted(f"{one.key}, line {one.line}" for one in set(wanted) - found)
    assert not missed, "the CUDA side was not taken"
