"""What the cache records for methods: column sums, hidden states, all layers at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import pytest
import torch
from scenarios import left_padding, random_ids
from tiny_models import LAYERS, tiny_model
from torch import Tensor

from catekv import CateKVModel
from catekv.cache.cache import RaggedCache
from catekv.errors import UserError
from catekv.kernels.ragged import BlockList, RaggedPrefix
from catekv.methods.base import Method, Needs, Observed, Selection
from catekv.methods.stores.base import DecodeStore

PROMPT = 40


@dataclass(frozen=True)
class Probe(Method):
    """Keeps every second token and remembers what it saw."""

    name: ClassVar[str] = "probe"
    wants: Needs = Needs()  # noqa: RUF009 - immutable
    seen: list[Observed] = field(default_factory=list)
    calls: list[int] = field(default_factory=list)

    @property
    def needs(self) -> Needs:
        return self.wants

    def select_observed(self, observed: Observed) -> Selection:
        self.seen.append(observed)
        keep = torch.ones(observed.keys.shape[:3], dtype=torch.bool)
        keep[..., ::2] = False
        return Selection(keep)

    def select_layers(self, observed: Sequence[Observed]) -> list[Selection]:
        self.calls.append(len(observed))
        return super().select_layers(observed)

    def to_dict(self) -> dict[str, Any]:
        return {"name": self.name}


@pytest.fixture(scope="module")
def wrapped() -> CateKVModel:
    return CateKVModel(tiny_model("llama"))


def eager_columns(model: Any, ids: Tensor, mask: Tensor | None) -> list[Tensor]:
    """Column sums per layer from the attention maps of the stock model."""
    positions = None if mask is None else (mask.cumsum(-1) - 1).clamp(min=0)
    model.set_attn_implementation("eager")
    try:
        output = model(ids, attention_mask=mask, position_ids=positions, output_attentions=True)
    finally:
        model.set_attn_implementation("catekv")
    asked = torch.ones_like(ids) if mask is None else mask
    return [(weights * asked[:, None, :, None]).sum(dim=2) for weights in output.attentions]


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("chunk_size", [None, 7])
@torch.no_grad()
def test_column_sums_are_those_of_the_attention_map(
    wrapped: CateKVModel, padded: bool, chunk_size: int | None
):
    ids = random_ids(3, PROMPT, seed=1)
    mask = left_padding(3, PROMPT) if padded else None
    method = Probe(Needs(column_sums=True))
    wrapped.prefill(ids, chunk_size, method, attention_mask=mask)
    expected = eager_columns(wrapped.model, ids, mask)
    per_layer = 3 if padded else 1  # padded sequences are shown one by one
    for layer in range(LAYERS):
        found = [seen.column_sums for seen in method.seen if seen.layer == layer]
        assert len(found) == per_layer
        for b, sums in enumerate(found):
            assert sums is not None
            rows = expected[layer][b : b + 1, :, -sums.shape[-1] :] if padded else expected[layer]
            torch.testing.assert_close(sums, rows, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("chunk_size", [None, 7])
@torch.no_grad()
def test_hidden_states_are_what_the_decoder_layer_reads(
    wrapped: CateKVModel, chunk_size: int | None
):
    ids = random_ids(2, PROMPT, seed=2)
    method = Probe(Needs(hidden_states=True))
    wrapped.prefill(ids, chunk_size, method)
    expected = wrapped.model(ids, output_hidden_states=True).hidden_states
    for seen in method.seen:
        assert seen.hidden_states is not None
        torch.testing.assert_close(seen.hidden_states, expected[seen.layer], rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_a_models_first_chunked_prefill_records_the_prompt_alone():
    """It tries chunks out on tokens of its own, which no method should see."""
    method = Probe(Needs(hidden_states=True))
    CateKVModel(tiny_model("llama")).prefill(random_ids(2, PROMPT, seed=2), 7, method)
    for seen in method.seen:
        assert seen.hidden_states is not None
        assert seen.hidden_states.shape[:2] == (2, PROMPT)


def test_hidden_states_are_not_missed_in_silence(wrapped: CateKVModel):
    cache = RaggedCache(wrapped.config, Probe(Needs(hidden_states=True)), PROMPT)
    with pytest.raises(UserError, match="record; prefill with them"):
        wrapped.model(random_ids(1, PROMPT, seed=0), past_key_values=cache)


@pytest.mark.parametrize("padded", [False, True])
@torch.no_grad()
def test_all_layers_are_chosen_together(wrapped: CateKVModel, padded: bool):
    ids = random_ids(3, PROMPT, seed=3)
    mask = left_padding(3, PROMPT) if padded else None
    together, single = Probe(Needs(all_layers=True)), Probe()
    context = wrapped.prefill(ids, None, together, attention_mask=mask)
    assert together.calls == [LAYERS] * (3 if padded else 1)
    expected = wrapped.prefill(ids, None, single, attention_mask=mask)
    assert [x.tolist() for x in context.lengths()] == [x.tolist() for x in expected.lengths()]
    questions = [[5, 6]] * 3
    answers = [wrapped.generate_ids(questions, c, 6, []).rows for c in (context, expected)]
    assert answers[0] == answers[1]


@torch.no_grad()
def test_layers_are_chosen_together_within_transformers_generate(wrapped: CateKVModel):
    ids = random_ids(1, PROMPT, seed=4)
    answers = []
    for needs in (Needs(all_layers=True), Needs()):
        cache = RaggedCache(wrapped.config, Probe(needs), PROMPT - 1)
        output = wrapped.model.generate(
            ids, past_key_values=cache, max_new_tokens=5, prefill_chunk_size=9, do_sample=False
        )
        assert cache.compressed
        answers.append(output.tolist())
    assert answers[0] == answers[1]


def test_one_observation_serves_methods_that_need_different_things(wrapped: CateKVModel):
    ids = random_ids(1, PROMPT, seed=5)
    chosen = [Probe(Needs(window=4, column_sums=True)), Probe(Needs(hidden_states=True))]
    dense = wrapped.observe(ids, needs=Needs.of_all(chosen))
    for method in chosen:
        dense.compress(method)
    assert chosen[0].seen[0].queries.shape[2] == 4
    assert chosen[0].seen[0].hidden_states is None
    assert chosen[1].seen[0].column_sums is None
    with pytest.raises(UserError, match="observed without column_sums"):
        wrapped.observe(ids, window=4).compress(chosen[0])


class Mirror(DecodeStore):
    """Hands the prefix back as it is, and takes every tail token over into a list."""

    absorbs = True

    def __init__(self, prefix: RaggedPrefix):
        self.prefix = prefix
        self.taken = 0

    def read(
        self, queries: Tensor, scaling: float, workspace: Any = None
    ) -> tuple[RaggedPrefix, BlockList | None]:
        return self.prefix, None

    def absorb(
        self, queries: Tensor, keys: Tensor, values: Tensor, scaling: float, visible: Tensor | None
    ) -> int:
        self.taken += keys.shape[2] - 1
        return keys.shape[2] - 1

    def lengths(self) -> Tensor:
        return self.prefix.lengths.long() + self.taken

    def tensors(self) -> list[Tensor]:
        return self.prefix.tensors()


@dataclass(frozen=True)
class Mirrored(Probe):
    def decode_store(
        self, prefix: RaggedPrefix, observed: Observed, valid: Tensor | None, selection: Selection
    ) -> DecodeStore:
        return Mirror(prefix)


def test_a_store_is_asked_what_to_read_and_takes_over_the_tail(wrapped: CateKVModel):
    ids = random_ids(1, PROMPT, seed=6)
    context = wrapped.prefill(ids, None, Mirrored())
    plain = wrapped.prefill(ids, None, Probe())
    assert context.stored_bytes() == plain.stored_bytes()
    # one question token: the store has taken nothing over yet
    first = [wrapped.generate_ids([9], c, 1, []).tokens for c in (context, plain)]
    assert first[0] == first[1]
    wrapped.generate_ids([9, 8, 7], context, 4, [])
    assert all(layer.tail_length == 0 for layer in context.cache.ragged_layers)
    assert context.lengths()[0].tolist() == plain.lengths()[0].tolist()
    fork = context.fork()
    wrapped.model(torch.tensor([[9, 8, 7]]), past_key_values=fork.cache)
    layer = fork.cache.ragged_layers[0]
    assert (layer.tail_length, layer.seen) == (1, PROMPT + 3)
    assert fork.lengths()[0].tolist() == (plain.lengths()[0] + 3).tolist()
    with pytest.raises(UserError, match="only the 1 tokens since"):
        fork.cache.crop(-2)


def test_a_store_that_cannot_be_rearranged_says_so(wrapped: CateKVModel):
    context = wrapped.prefill(random_ids(1, PROMPT, seed=7), None, Mirrored())
    with pytest.raises(UserError, match="cannot be rearranged"):
        context.cache.batch_repeat_interleave(2)


def test_a_context_with_a_store_is_not_saved_as_something_else(wrapped: CateKVModel, tmp_path: Any):
    context = wrapped.prefill(random_ids(1, PROMPT, seed=8), None, Mirrored())
    with pytest.raises(UserError, match="goes on while decoding"):
        context.save(tmp_path / "context")
