"""Whole models that decode with the fused step, against the same models without it."""

from __future__ import annotations

import copy
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from scenarios import left_padding, random_ids
from tape import tapes  # noqa: F401
from tiny_models import tiny_model
from torch import Tensor

from catekv import CateKVModel, HeadMask, methods
from catekv.decode.fused import fused_step
from catekv.decode.step import DecodeStep
from catekv.errors import UserError
from catekv.methods import Method
from catekv.models.weights_identity import WeightsIdentity

PROMPT, STEPS = 40, 6
FAMILIES = [
    "llama", "mistral", "qwen2", "qwen3", "phi3", "phi3-long", "glm4",
    *(pytest.param(name, marks=pytest.mark.slow) for name in ("yi", "llama3.1", "glm")),
]  # fmt: skip


def made(name: str, model: CateKVModel) -> Method:
    if name == "full":
        return methods.create("full")
    mask = HeadMask.random(model.shape, 0.4)
    return methods.create(
        "catekv", head_mask=mask, ratio=0.4, budget=16, window=4, init_tokens=4, recent_tokens=4,
        guard_tokens=2,
    )  # fmt: skip


def decoded(
    model: CateKVModel, method: Method, batch: int, steps: int = STEPS, **options: Any
) -> tuple[Any, Tensor]:
    """The step and the logits [steps, batch, vocabulary] of tokens that it chooses itself."""
    mask = left_padding(batch, PROMPT) if batch > 1 else None
    context = model.prefill(random_ids(batch, PROMPT, seed=0), method=method, attention_mask=mask)
    step = DecodeStep(model.model, context.cache, 4, attention_mask=mask, **options)
    logits, found = context.last_logits, []
    for _ in range(steps):  # more than there is room for at first
        logits = step(logits.argmax(dim=-1, keepdim=True)).clone()
        found.append(logits)
    return step, torch.stack(found)


def assert_same(found: Tensor, wanted: Tensor) -> None:
    assert torch.equal(found.argmax(dim=-1), wanted.argmax(dim=-1))
    # with constant logits any comparison would pass
    assert float(wanted.std()) > 0.1
    assert float((found - wanted).abs().max()) <= 1e-5 * max(1.0, float(wanted.abs().max()))


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("name", ["full", "catekv"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_fused_step_decodes_what_the_model_decodes(family: str, name: str, batch: int) -> None:
    model = CateKVModel(tiny_model(family))
    method = made(name, model)
    _, wanted = decoded(model, method, batch, graph="off", fused_step="off")
    step, found = decoded(model, method, batch, graph="off", fused_step="on")
    assert step.fused
    assert step.fused_reason is None
    assert_same(found, wanted)


@pytest.mark.usefixtures("tapes")
@pytest.mark.parametrize("family", ["llama", "qwen3", "glm4"])
def test_a_recorded_fused_step_asks_the_host_for_nothing(family: str) -> None:
    model = CateKVModel(tiny_model(family))
    method = made("catekv", model)
    _, wanted = decoded(model, method, 3, graph="off", fused_step="off")
    step, found = decoded(model, method, 3, graph="on", fused_step="on")
    assert step.captured
    assert step.fused
    assert_same(found, wanted)


@pytest.mark.usefixtures("tapes")
def test_a_step_that_is_to_be_another_one_is_recorded_again() -> None:
    model = CateKVModel(tiny_model("llama"))
    context = model.prefill(random_ids(1, PROMPT, seed=0), method="full")
    step = DecodeStep(model.model, context.cache, 12, fused_step="on")
    tokens = torch.tensor([[5]])
    found = [step(tokens).clone()]
    for mode in ("off", "on"):
        recording = step._recording
        context.cache.crop(-1)
        step.fused_step = mode
        step.restart()
        found.append(step(tokens).clone())
        assert step.fused == (mode == "on")
        assert step.captured
        assert step._recording is not recording
    for other in found[1:]:
        assert_same(other, found[0])


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("quest", {"page": 4, "budget": 16, "full_layers": 1}),
        ("decoding", {"base": "keydiff", "budget": 16, "every": 16}),
        ("snapkv", {"budget": 16, "window": 4, "store": "int8"}),
    ],
)
def test_stores_are_read_and_folded_as_by_the_model(name: str, options: dict[str, Any]) -> None:
    """What a method reads while it decodes, and what it takes over after some tokens."""
    model = CateKVModel(tiny_model("llama"))
    method = methods.create(name, **options)
    _, wanted = decoded(model, method, 1, 20, graph="off", fused_step="off")
    step, found = decoded(model, method, 1, 20, graph="off", fused_step="on")
    assert step.fused
    assert_same(found, wanted)


def test_a_store_that_decides_on_the_host_has_no_fused_step() -> None:
    model = CateKVModel(tiny_model("llama"))
    method = methods.create("h2o", budget=16)
    with pytest.raises(UserError, match=r"cannot be fused: .* decides on the host"):
        decoded(model, method, 1, graph="off", fused_step="on")
    step, _ = decoded(model, method, 1, graph="off", fused_step="auto")
    assert not step.fused
    assert step.fused_reason == "the step is an ordinary forward"


@pytest.mark.parametrize("batch", [1, 3])
def test_answers_are_the_same_and_say_whether_they_were_fused(batch: int) -> None:
    tokens = {}
    for mode in ("on", "off", "auto"):
        model = CateKVModel(tiny_model("qwen3"), fused_step=mode)
        mask = left_padding(batch, PROMPT) if batch > 1 else None
        prompt = random_ids(batch, PROMPT, seed=0)
        context = model.prefill(prompt, method=made("catekv", model), attention_mask=mask)
        answers = [
            model.generate_ids(question, context, 8, [])
            for question in ([[5]] * batch, [[7, 8, 9]] * batch)
        ]
        assert [answer.fused for answer in answers] == [mode == "on"] * 2
        reason = answers[0].fused_reason
        assert reason is None if mode == "on" else reason
        tokens[mode] = [answer.rows for answer in answers]
    assert tokens["on"] == tokens["off"] == tokens["auto"]


def test_threads_share_a_fused_step() -> None:
    model = CateKVModel(tiny_model("qwen2"), "full", fused_step="on")
    contexts = [model.prefill(random_ids(1, PROMPT, seed=seed)) for seed in range(3)]
    wanted = [model.generate_ids([5], context, 8, []).tokens for context in contexts]
    with ThreadPoolExecutor(3) as pool:
        found = pool.map(lambda context: model.generate_ids([5], context, 8, []).tokens, contexts)
        assert list(found) == wanted


def storages(model: Any) -> dict[int, int]:
    """Bytes of every storage that holds weights."""
    held = [parameter.data.untyped_storage() for parameter in model.parameters()]
    return {storage.data_ptr(): storage.nbytes() for storage in held}


@pytest.mark.parametrize("family", ["llama", "qwen2", "phi3"])
def test_weights_side_by_side_take_no_memory(family: str) -> None:
    model = tiny_model(family)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    size, identity = sum(storages(model).values()), WeightsIdentity.of(model)
    step = fused_step(model)
    assert not isinstance(step, str)
    parts = step.decoder.layers[1]
    for joined in (parts.projection, parts.gate_up):
        places = {layer.weight.untyped_storage().data_ptr() for layer in joined.layers}
        assert places == {joined.weight.untyped_storage().data_ptr()}
        # a weight that is written to is what the step reads
        last = joined.layers[-1].weight
        value = last[-1, -1].item()
        with torch.no_grad():
            last[-1, -1] = 7.0
            assert joined.weight[-1, -1] == 7.0
            last[-1, -1] = value
    assert (parts.projection.bias is not None) == (family == "qwen2")
    assert sum(storages(model).values()) == size
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert WeightsIdentity.of(model) == identity


def test_a_model_with_weights_side_by_side_is_saved_and_loaded(tmp_path: Path) -> None:
    model = tiny_model("qwen2")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert not isinstance(fused_step(model), str)
    model.save_pretrained(tmp_path / "checkpoint")
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    other = CateKVModel.from_pretrained(
        tmp_path / "checkpoint", "full", device="cpu", fused_step="on"
    )
    for state in (other.model.state_dict(), torch.load(tmp_path / "weights.pt")):
        assert list(state) == list(before)
        assert all(torch.equal(state[name], before[name]) for name in before)


def test_weights_that_moved_are_put_side_by_side_again() -> None:
    model = CateKVModel(tiny_model("llama"), "full", fused_step="on")
    first = fused_step(model.model)
    assert fused_step(model.model) is first
    method = made("full", model)
    model.model.to(torch.float64)
    model.model.to(torch.float32)
    _, wanted = decoded(model, method, 1, graph="off", fused_step="off")
    step, found = decoded(model, method, 1, graph="off", fused_step="on")
    assert step._chosen is not first
    assert_same(found, wanted)


def test_a_copy_is_a_model_of_its_own() -> None:
    model = tiny_model("llama")
    fused_step(model)
    other = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(1.5)
    wrapped = CateKVModel(other)
    _, wanted = decoded(wrapped, made("full", wrapped), 1, graph="off", fused_step="off")
    step, found = decoded(wrapped, made("full", wrapped), 1, graph="off", fused_step="on")
    assert step._chosen is not fused_step(model)
    assert_same(found, wanted)
