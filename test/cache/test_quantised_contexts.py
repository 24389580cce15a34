"""Contexts in eight and four bits: bytes, files, turns, batches, and every method that has one."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from scenarios import left_padding, random_ids
from tiny_models import tiny_model

from catekv import CateKVModel, HeadMask, methods
from catekv.cache.layer import RaggedLayer
from catekv.decode.context import Context
from catekv.errors import UserError
from catekv.kernels.codes import FORMS
from catekv.methods import Method
from catekv.methods.stores.quantise import QuantisedStore
from catekv.prefill.sizes import sizes_of_model

PROMPT = 200
#: Heads that keep everything, and heads whose rows have a broken group.
MASK = HeadMask(torch.tensor([[1, 0], [0, 1]]), {"ratio": 0.5})
SIZES = {
    "full": {},
    "snapkv": {"budget": 110, "window": 8, "kernel": 3},
    "catekv": {"head_mask": MASK, "budget": 90, "window": 8, "chunk_size": 4, "init_tokens": 4,
               "recent_tokens": 8, "guard_tokens": 4},
}  # fmt: skip


@functools.cache
def model() -> CateKVModel:
    return CateKVModel(
        tiny_model(
            "llama", num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
            max_position_embeddings=1024,
        )
    )  # fmt: skip


def method(name: str, store: str) -> Method:
    return methods.create(name, store=store, **SIZES[name])


def stores(context: Context) -> list[QuantisedStore]:
    found = [layer.store for layer in context.cache.layers if isinstance(layer, RaggedLayer)]
    assert all(isinstance(store, QuantisedStore) for store in found)
    return found  # type: ignore[return-value]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", SIZES)
def test_the_byte_model_knows_every_byte(name: str, form: str) -> None:
    """Codes, scales and residual; the lists of rows beside them do not grow with the prompt."""
    context = model().prefill(random_ids(1, PROMPT, seed=0), method=method(name, form))
    sizes = sizes_of_model(model().model)
    foretold = sizes.kept_layer_bytes(method(name, form), PROMPT)
    entries = [
        sum(tensor.nbytes for tensor in store.quantised.named_tensors().values())
        for store in stores(context)
    ]
    assert entries == foretold
    plain = sizes.kept_layer_bytes(method(name, form), PROMPT, packed=True)
    assert plain == sizes.kept_layer_bytes(method(name, "device"), PROMPT)
    assert sum(foretold) < sum(plain)
    for store, own in zip(stores(context), entries, strict=True):
        assert 0 < store.quantised.nbytes() - own < 700


@pytest.mark.parametrize("form", FORMS)
def test_saved_contexts_go_on_as_they_were(form: str, tmp_path: Path) -> None:
    ids = random_ids(3, PROMPT, seed=0)
    context = model().prefill(
        ids, method=method("catekv", form), attention_mask=left_padding(3, PROMPT)
    )
    context.save(tmp_path / "context")
    again = model().load_context(tmp_path / "context")
    for own, other in zip(stores(context), stores(again), strict=True):
        assert own.quantised.form == other.quantised.form
        assert own.quantised.host_places == other.quantised.host_places
        for name, tensor in own.quantised.named_tensors().items():
            held = other.quantised.named_tensors()[name]
            assert held.dtype == tensor.dtype
            assert torch.equal(held.view(torch.uint8), tensor.view(torch.uint8))
    question = [5, 6, 7]
    answers = [model().generate_ids([question] * 3, one, 6, []).tokens for one in (context, again)]
    assert answers[0] == answers[1]


@pytest.mark.parametrize("form", FORMS)
def test_damaged_parts_of_a_saved_context_are_refused(form: str, tmp_path: Path) -> None:
    """A kernel would read beyond a part that is too short."""
    context = model().prefill(random_ids(1, PROMPT, seed=0), method=method("snapkv", form))
    context.save(tmp_path)
    file = tmp_path / "cache.safetensors"
    whole = load_file(file)
    parts = [name for name in whole if ".store." in name]
    assert len(parts) >= 12
    for name in parts:
        for damaged in (None, whole[name].flatten()[1:], whole[name].to(torch.float64)):
            changed = {other: part for other, part in whole.items() if other != name}
            save_file(changed if damaged is None else {**changed, name: damaged.clone()}, file)
            with pytest.raises(UserError, match="make the context again"):
                model().load_context(tmp_path)


@pytest.mark.parametrize("form", FORMS)
def test_a_padded_batch_and_further_turns_equal_single_prompts(form: str) -> None:
    ids = random_ids(3, PROMPT, seed=0)
    mask = left_padding(3, PROMPT)
    turns = [random_ids(1, width, seed=5 + width) for width in (4, 1, 3)]

    def logits(rows: torch.Tensor, padding: torch.Tensor | None) -> list[torch.Tensor]:
        context = model().prefill(rows, method=method("catekv", form), attention_mask=padding)
        found = []
        for turn in turns:
            context = model().extend(context, turn.expand(len(rows), -1))
            found.append(context.last_logits)
        return found

    together = logits(ids, mask)
    for row in range(3):
        alone = logits(ids[row : row + 1, 5 * row :], None)
        for own, other in zip(alone, together, strict=True):
            torch.testing.assert_close(own[0], other[row], rtol=1e-3, atol=1e-4)


def test_fewer_bits_say_something_else_and_more_bits_less_so() -> None:
    """The distance to what is said without quantising, over twenty tokens."""
    ids, following = random_ids(1, PROMPT, seed=0), random_ids(1, 20, seed=1)

    def logits(store: str) -> torch.Tensor:
        context = model().prefill(ids, method=method("full", store))
        cache = context.cache.fork()
        with torch.no_grad():
            return model().model(following, past_key_values=cache).logits[0].log_softmax(-1)

    exact = logits("device")
    distance = {
        form: float((exact.exp() * (exact - logits(form))).sum(-1).mean()) for form in FORMS
    }
    assert 0 < distance["int8"] < distance["fp8"] < distance["int4"] < 0.05


@pytest.mark.parametrize(
    "name", [name for name in methods.available() if methods.method_class(name).example]
)
def test_every_method_that_has_eight_bits_has_four(name: str) -> None:
    example = methods.method_class(name).example
    assert example is not None
    options = example.options("small", model().shape)

    def kept(store: str) -> torch.Tensor | str:
        try:
            own = methods.create(name, **{**options, "store": store})
            context = model().prefill(random_ids(1, 120, seed=0), method=own)
        except UserError as error:
            return str(error).replace(store, "STORE")
        assert {one.quantised.form for one in stores(context)} == {store}
        return torch.stack([one.lengths() for one in stores(context)])

    four, eight = kept("int4"), kept("int8")
    assert type(four) is type(eight)
    assert four == eight if isinstance(four, str) else torch.equal(four, eight)
