"""A decode step with tails of fixed size: recorded, repeated, and equal to ordinary forwards."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from scenarios import PROMPT, left_padding, random_ids, shared_model, with_attention
from tape import tapes  # noqa: F401
from tiny_models import KeepEverything, RandomKeep, tiny_model
from torch import Tensor

from catekv import kernels, methods
from catekv.cache.cache import RaggedCache
from catekv.decode import graph
from catekv.decode.step import DecodeStep, EagerStep
from catekv.errors import UserError
from catekv.prefill import layerwise

STEPS = 6
FITTING = [
    "llama", "yi", "llama3.1", "phi3", "phi3-long", "qwen2", "qwen3", "mistral", "glm4", "gemma",
    "mixtral",
]  # fmt: skip


def context(
    model: Any, method: Any, batch: int, prompt: int = PROMPT
) -> tuple[RaggedCache, Tensor, Tensor | None]:
    """A compressed prompt and a question after it; several sequences have padding in both."""
    cache = RaggedCache(model.config, method, prompt)
    mask = left_padding(batch, prompt) if batch > 1 else None
    layerwise.prefill(model, random_ids(batch, prompt, seed=0), cache, mask)
    question = random_ids(batch, 2 + 5 * batch, seed=1)
    options: dict[str, Any] = {}
    if mask is not None:
        mask = torch.cat([mask, left_padding(batch, question.shape[1]).flip(0)], dim=1)
        positions = layerwise.positions_of(mask)[:, -question.shape[1] :]
        options = {"attention_mask": mask, "position_ids": positions}
    with torch.no_grad():
        logits = model(question, past_key_values=cache, **options).logits[:, -1]
    return cache, logits, mask


def decode(step: Any, logits: Tensor, steps: int = STEPS) -> tuple[list[Tensor], list[Tensor]]:
    """Tokens and logits of a greedy run."""
    tokens, found = [], []
    for _ in range(steps):
        tokens.append(logits.argmax(dim=-1, keepdim=True))
        logits = step(tokens[-1]).clone()
        found.append(logits)
    return tokens, found


def assert_equal(step: Any, ordinary: Any, logits: Tensor, steps: int = STEPS) -> None:
    tokens, found = decode(step, logits, steps)
    expected_tokens, expected = decode(ordinary, logits, steps)
    assert torch.equal(torch.cat(tokens), torch.cat(expected_tokens))
    difference = max(float((a - b).abs().max()) for a, b in zip(found, expected, strict=True))
    assert difference <= 2e-5
    # with constant logits any comparison would pass
    assert float(torch.stack(expected).std()) > 0.1


@pytest.mark.parametrize(
    ("batch", "method"),
    [
        pytest.param(3, RandomKeep(0.5), id="half of three"),
        pytest.param(1, KeepEverything(), id="all of one"),
        pytest.param(1, RandomKeep(0.5), id="half of one", marks=pytest.mark.slow),
        pytest.param(3, KeepEverything(), id="all of three", marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("family", FITTING)
def test_fixed_tails_decode_what_growing_tails_decode(family: str, batch: int, method: Any):
    model = with_attention(family, "catekv")
    cache, logits, mask = context(model, method, batch)
    ordinary = EagerStep(model, cache.fork(), mask)
    step = DecodeStep(model, cache, 40, graph="off", attention_mask=mask)
    assert step.fixed
    assert not step.captured
    assert_equal(step, ordinary, logits)


@pytest.mark.usefixtures("tapes")
@pytest.mark.parametrize("batch", [pytest.param(1, marks=pytest.mark.slow), 3])
@pytest.mark.parametrize("family", FITTING)
def test_a_recorded_step_decodes_what_ordinary_forwards_decode(family: str, batch: int):
    """Nothing that the host knows may enter a step: a tape would repeat it."""
    model = with_attention(family, "catekv")
    cache, logits, mask = context(model, RandomKeep(0.5), batch)
    ordinary = EagerStep(model, cache.fork(), mask)
    step = DecodeStep(model, cache, 40, attention_mask=mask)
    assert step.captured, step.reason
    assert step.reason is None
    assert step.graph_bytes == 4096
    assert step.capture_seconds > 0
    assert_equal(step, ordinary, logits)
    assert step._recording.graph.replays == STEPS


@pytest.mark.usefixtures("tapes")
def test_the_cache_counts_what_a_recorded_step_wrote():
    model = with_attention("llama", "catekv")
    cache, logits, _ = context(model, RandomKeep(0.5), 1)
    ordinary = cache.fork()
    decode(EagerStep(model, ordinary), logits)
    decode(DecodeStep(model, cache, 40), logits)
    assert cache.get_seq_length() == ordinary.get_seq_length() == PROMPT + 7 + STEPS
    assert cache.get_mask_sizes(1, 0) == ordinary.get_mask_sizes(1, 0)
    for own, other in zip(cache.lengths(), ordinary.lengths(), strict=True):
        assert torch.equal(own, other)
    assert cache.kept_share() == ordinary.kept_share()
    assert cache.full_bytes() == ordinary.full_bytes()
    for own, other in zip(cache.ragged_layers, ordinary.ragged_layers, strict=True):
        for mine, theirs in zip(own.buffer.views(), other.buffer.views(), strict=True):
            torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=0)


@pytest.mark.usefixtures("tapes")
def test_a_fork_of_a_cache_in_use_is_an_ordinary_one():
    model = with_attention("llama", "catekv")
    cache, logits, _ = context(model, RandomKeep(0.5), 1)
    step = DecodeStep(model, cache, 40)
    tokens, found = decode(step, logits, 2)
    fork = copy.deepcopy(cache)
    assert fork.get_seq_length() == cache.get_seq_length()
    assert fork.ragged_layers[0].buffer.keys.shape[2] == 7 + 2
    assert fork.settings.workspace is not cache.settings.workspace
    # both go on, each for itself
    expected = decode(step, found[-1], 4)[0]
    assert torch.equal(torch.cat(decode(EagerStep(model, fork), found[-1], 4)[0]),
                       torch.cat(expected))  # fmt: skip
    assert tokens


@pytest.mark.usefixtures("tapes")
@pytest.mark.parametrize("family", ["llama", "phi3"])
def test_reserved_room_counts_as_stored_and_is_not_saved(family: str, tmp_path: Path):
    model = with_attention(family, "catekv")
    cache, logits, _ = context(model, RandomKeep(0.5), 1)
    step = DecodeStep(model, cache, 40)
    tokens, found = decode(step, logits, 3)
    per_token = sum(
        tensor.shape[1] * tensor.shape[3] * tensor.element_size()
        for layer in cache.ragged_layers
        for tensor in layer.buffer.tensors()
    )
    fork = cache.fork()
    assert cache.stored_bytes() - fork.stored_bytes() == (40 - 7 - 3) * per_token
    cache.save(tmp_path / "cache")
    loaded = RaggedCache.load(tmp_path / "cache", model)
    assert loaded.get_seq_length() == cache.get_seq_length() == PROMPT + 7 + 3
    assert loaded.stored_bytes() == fork.stored_bytes()
    assert_equal(DecodeStep(model, loaded, 40), EagerStep(model, fork), found[-1])
    assert len(tokens) == 3


@pytest.mark.usefixtures("tapes")
@pytest.mark.parametrize("batch", [1, 3])
def test_a_full_tail_grows_and_is_recorded_again(batch: int):
    model = with_attention("llama", "catekv")
    cache, logits, mask = context(model, RandomKeep(0.5), batch)
    tail = cache.ragged_layers[0].tail_length
    ordinary = EagerStep(model, cache.fork(), mask)
    step = DecodeStep(model, cache, tail + 2, attention_mask=mask)
    first = step._recording
    assert step.capacity == tail + 2
    assert_equal(step, ordinary, logits, 5)
    assert step.capacity == 2 * (tail + 2)
    assert step.captured
    assert step._recording is not first


@pytest.mark.usefixtures("tapes")
def test_recording_leaves_no_trace():
    model = with_attention("llama", "catekv")
    cache, _, _ = context(model, RandomKeep(0.5), 1)
    before = [tensor.clone() for layer in cache.ragged_layers for tensor in layer.buffer.views()]
    step = DecodeStep(model, cache, 40)
    assert step._tail.length.tolist() == [7]
    assert step._positions.tolist() == [[PROMPT + 7]]
    assert cache.get_seq_length() == PROMPT + 7
    after = [tensor for layer in cache.ragged_layers for tensor in layer.buffer.views()]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


# Phi-3: short frequencies up to its original length (32 here), long ones beyond
@pytest.mark.usefixtures("tapes")
@pytest.mark.parametrize("prompt", [20, 26, PROMPT])
def test_frequencies_that_depend_on_the_position(prompt: int):
    """Both stretches, and an answer that crosses from one to the other."""
    model = with_attention("phi3-long", "catekv")
    cache, logits, _ = context(model, RandomKeep(0.5), 1, prompt)
    ordinary = EagerStep(model, cache.fork())
    step = DecodeStep(model, cache, 40)
    first = step._recording
    assert step.captured, step.reason
    assert_equal(step, ordinary, logits, 9)
    crossed = prompt + 7 < 32 <= prompt + 7 + 9 - 1
    assert (step._recording is not first) == crossed
    assert "forward" not in vars(model.model.rotary_emb)


@pytest.mark.usefixtures("tapes")
def test_other_forwards_do_not_change_the_frequencies_of_a_recording():
    model = with_attention("phi3-long", "catekv")
    cache, logits, _ = context(model, RandomKeep(0.5), 1)
    ordinary = EagerStep(model, cache.fork())
    expected = decode(ordinary, logits)[1]
    step = DecodeStep(model, cache, 40)
    found = []
    for token in decode(EagerStep(model, cache.fork()), logits)[0]:
        with torch.no_grad():
            model(random_ids(1, 3, seed=5))  # short positions: the other frequencies
        found.append(step(token).clone())
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, atol=2e-5, rtol=0)


@pytest.mark.usefixtures("tapes")
def test_dynamic_frequencies_are_not_recorded():
    model = tiny_model(
        "llama",
        rope_parameters={"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0},
    )
    cache, logits, _ = context(model, RandomKeep(0.5), 1)
    ordinary = EagerStep(model, cache.fork())
    step = DecodeStep(model, cache.fork(), 40)
    assert not step.captured
    assert "dynamic" in step.reason
    assert_equal(step, ordinary, logits)
    with pytest.raises(UserError, match="dynamic"):
        DecodeStep(model, cache, 40, graph="on")


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("family", ["gemma3", "mistral-window"])
def test_layers_that_are_not_compressed_take_the_ordinary_path(family: str, batch: int):
    model = with_attention(family, "catekv")
    cache, logits, mask = context(model, RandomKeep(0.5), batch)
    ordinary = EagerStep(model, cache.fork(), mask)
    step = DecodeStep(model, cache, 40, attention_mask=mask)
    assert not step.fixed
    assert "not compressed" in step.reason
    assert_equal(step, ordinary, logits)
    with pytest.raises(UserError, match="not compressed"):
        DecodeStep(model, cache, 40, graph="on")


def test_a_model_on_several_devices_takes_the_ordinary_path():
    model = tiny_model("llama")
    cache, logits, _ = context(model, RandomKeep(0.5), 1)
    ordinary = EagerStep(model, cache.fork())
    model.register_parameter("elsewhere", torch.nn.Parameter(torch.zeros(1, device="meta")))
    step = DecodeStep(model, cache, 40)
    assert not step.fixed
    assert step.reason == "the model is spread over cpu, meta"
    assert_equal(step, ordinary, logits)


def test_without_a_gpu_the_step_runs_eagerly_and_says_why():
    model = with_attention("llama", "catekv")
    cache, logits, _ = context(model, RandomKeep(0.5), 1)
    step = DecodeStep(model, cache.fork(), 40)
    assert step.fixed
    assert not step.captured
    assert "CUDA" in step.reason
    assert step.graph_bytes == 0
    assert_equal(step, EagerStep(model, cache.fork()), logits)
    with pytest.raises(UserError, match="CUDA"):
        DecodeStep(model, cache, 40, graph="on")


@pytest.mark.usefixtures("tapes")
@pytest.mark.parametrize("after", [0, 2, 3])
def test_a_recording_that_fails_leaves_a_step_that_works(
    after: int, monkeypatch: pytest.MonkeyPatch
):
    """Wherever it fails: in the first run, while warming up, while recording."""
    model = with_attention("llama", "catekv")
    cache, logits, _ = context(model, RandomKeep(0.5), 1)
    ordinary = EagerStep(model, cache.fork())
    calls = 0

    def fails(*_: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == after + 1:
            raise RuntimeError("operation not permitted\nwhen stream is capturing")

    hook = model.model.layers[1].mlp.register_forward_pre_hook(fails)
    step = DecodeStep(model, cache, 40)
    hook.remove()
    assert not step.captured
    assert step.reason == "recording failed (RuntimeError: operation not permitted)"
    assert_equal(step, ordinary, logits)


@pytest.mark.usefixtures("tapes")
@pytest.mark.parametrize(
    ("what", "reason"),
    [
        (lambda x: float(x.sum()), "_local_scalar_dense"),
        (lambda x: bool((x > 0).any()), "_local_scalar_dense"),
        (lambda x: x.nonzero(), "aten::nonzero"),
        (lambda x: x[x > 0], "aten::index"),
        (lambda x: torch.tensor([1.0]), "Python numbers"),
    ],
    ids=["number", "branch", "positions", "selection", "constant"],
)
def test_a_model_that_needs_the_host_in_a_step_is_not_recorded(what: Any, reason: str):
    model = with_attention("llama", "catekv")
    cache, _, _ = context(model, RandomKeep(0.5), 1)

    def involves_the_host(_: Any, inputs: Any) -> None:
        what(inputs[0])

    hook = model.model.layers[1].mlp.register_forward_pre_hook(involves_the_host)
    step = DecodeStep(model, cache, 40)
    hook.remove()
    assert not step.captured
    assert "HostInvolvedError" in step.reason
    assert reason in step.reason


@pytest.mark.parametrize("family", FITTING)
def test_a_step_with_fixed_tails_never_involves_the_host(family: str):
    """Rotary embeddings that change with the position apart: those are recorded with fixed ones."""
    from catekv.decode import rotary

    model = with_attention(family, "catekv")
    cache, _, mask = context(model, RandomKeep(0.5), 3)
    step = DecodeStep(model, cache, 40, graph="off", attention_mask=mask)
    with torch.no_grad(), rotary.fixed_frequencies(model, step._positions), graph.WithoutHost(
        torch.device("cpu")
    ):  # fmt: skip
        step._run()


@pytest.mark.usefixtures("tapes")
def test_a_cache_that_others_changed_is_noticed():
    model = with_attention("llama", "catekv")
    cache, logits, _ = context(model, RandomKeep(0.5), 1)
    step = DecodeStep(model, cache, 40)
    tokens, found = decode(step, logits, 2)
    with torch.no_grad():
        model(torch.tensor([[5]]), past_key_values=cache)
    with pytest.raises(UserError, match="restart"):
        step(tokens[0])
    ordinary = EagerStep(model, cache.fork())
    recording = step._recording
    step.restart()
    assert step._recording is recording, "the tail had room: nothing to record anew"
    assert_equal(step, ordinary, found[-1])


@pytest.mark.parametrize("where", ["mlp", "append", "attention"])
def test_a_step_that_failed_half_way_is_not_gone_on_with(
    where: str, monkeypatch: pytest.MonkeyPatch
):
    model = with_attention("llama", "catekv")
    cache, logits, _ = context(model, RandomKeep(0.5), 1)
    step = DecodeStep(model, cache, 40, graph="off")
    ordinary = EagerStep(model, cache.fork())
    token = logits.argmax(dim=-1, keepdim=True)

    def fails(*_: Any, **__: Any) -> None:
        raise RuntimeError("out of memory")

    with monkeypatch.context() as broken:
        if where == "mlp":
            broken.setattr(model.model.layers[2].mlp, "forward", fails)
        else:
            broken.setattr(kernels, "append" if where == "append" else "ragged_decode", fails)
        with pytest.raises(RuntimeError, match="out of memory"):
            step(token)
    with pytest.raises(UserError, match="restart"):
        step(token)
    step.restart()
    assert_equal(step, ordinary, logits)


@pytest.mark.usefixtures("tapes")
def test_asking_again_after_taking_back():
    """The same context, another question, the same recording."""
    model = with_attention("llama", "catekv")
    cache, logits, _ = context(model, RandomKeep(0.5), 1)
    fresh = cache.fork()
    fresh.crop(-7)
    step = DecodeStep(model, cache, 40)
    decode(step, logits)
    recording = step._recording
    cache.crop(-(7 + STEPS))
    question = random_ids(1, 11, seed=9)
    with torch.no_grad():
        logits = model(question, past_key_values=cache).logits[:, -1]
        model(question, past_key_values=fresh)
    step.restart()
    assert_equal(step, EagerStep(model, fresh), logits)
    assert step._recording is recording


@pytest.mark.usefixtures("tapes")
def test_a_question_that_does_not_fit_is_recorded_anew():
    model = with_attention("llama", "catekv")
    cache, logits, _ = context(model, RandomKeep(0.5), 1)
    step = DecodeStep(model, cache, 16)
    decode(step, logits, 2)
    recording = step._recording
    with torch.no_grad():
        logits = model(random_ids(1, 20, seed=9), past_key_values=cache).logits[:, -1]
    ordinary = EagerStep(model, cache.fork())
    step.restart()
    assert not step.captured
    assert_equal(step, ordinary, logits)
    assert step.captured
    assert step._recording is not recording


@pytest.mark.usefixtures("tapes")
def test_rearranged_sequences_are_recorded_anew():
    model = with_attention("llama", "catekv")
    cache, logits, mask = context(model, RandomKeep(0.5), 3)
    step = DecodeStep(model, cache, 60, attention_mask=mask)
    order = torch.tensor([2, 0])
    cache.batch_select_indices(order)
    ordinary = EagerStep(model, cache.fork(), mask[order])
    step.restart(mask[order])
    assert_equal(step, ordinary, logits[order])
    assert step.captured


@pytest.mark.usefixtures("tapes")
def test_inference_mode_may_begin_or_end_between_steps():
    model = with_attention("llama", "catekv")
    with torch.inference_mode():
        cache, logits, _ = context(model, RandomKeep(0.5), 1)
        step = DecodeStep(model, cache, 16)
        tokens, found = decode(step, logits, 2)
    ordinary = EagerStep(model, cache.fork())
    assert_equal(step, ordinary, found[-1].clone(), 3)
    with torch.inference_mode():
        assert_equal(step, ordinary, found[-1], 7)
    assert tokens


def test_a_recording_can_be_made_later():
    model = with_attention("llama", "catekv")
    cache, _, _ = context(model, RandomKeep(0.5), 1)
    step = DecodeStep(model, cache, 16, graph="off")
    assert step.reason == "graph='off' was asked for"
    assert not step.capture()
    assert "CUDA" in step.reason


def test_wrong_requests():
    model = shared_model("llama")
    cache, _, _ = context(model, RandomKeep(0.5), 1)
    with pytest.raises(UserError, match="auto, on, off"):
        DecodeStep(model, cache, 16, graph="yes")
    with pytest.raises(UserError, match="capacity 0"):
        DecodeStep(model, cache, 0)
    with pytest.raises(UserError, match="5 columns, the cache has seen 67"):
        DecodeStep(model, cache, 16, attention_mask=torch.ones(1, 5))
    with pytest.raises(UserError, match="compressed"):
        DecodeStep(model, RaggedCache(model.config, RandomKeep(), PROMPT), 16)


@pytest.mark.usefixtures("tapes")
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("quest", {"budget": 24, "page": 4, "full_layers": 1}),
        ("full", {"store": "int8"}),
        ("full", {"store": "int4"}),
        ("streaming_llm", {"budget": 24, "store": "int8"}),
    ],
)
def test_stores_that_need_no_host_are_recorded(name: str, options: dict[str, Any], batch: int):
    """What they read changes from step to step, by the device's own decision."""
    model = with_attention("llama", "catekv")
    cache, logits, mask = context(model, methods.create(name, **options), batch)
    ordinary = EagerStep(model, cache.fork(), mask)
    step = DecodeStep(model, cache, 40, attention_mask=mask)
    assert step.captured, step.reason
    assert_equal(step, ordinary, logits)


@pytest.mark.usefixtures("tapes")
def test_stores_that_need_the_host_take_the_ordinary_path():
    """H2O evicts while it decodes: its tail gets shorter, not only longer."""
    model = with_attention("llama", "catekv")
    cache, logits, _ = context(model, methods.create("h2o", budget=24), 1)
    ordinary = EagerStep(model, cache.fork())
    step = DecodeStep(model, cache, 40)
    assert not step.fixed
    assert "decides on the host" in step.reason
    assert_equal(step, ordinary, logits)
