"""Soft caps and sinks in every kernel of queries and keys, against plain formulas in float64."""

from __future__ import annotations

import dataclasses
import importlib

import pytest
import torch
from test_ragged_decode import GROUP, HEADS, LENGTHS, inputs, ragged
from torch import Tensor

from catekv import kernels
from catekv.errors import UserError
from catekv.kernels import LogitForm, ragged_decode_reference, ragged_decode_torch
from catekv.kernels.window_scores import window_attention
from catekv.methods.formulas.scoring import window_token_scores

SINKS = 2 * torch.randn(HEADS * GROUP, generator=torch.Generator().manual_seed(3))
FORMS = {
    "cap": LogitForm(0.6),
    "large cap": LogitForm(50.0),
    "sinks": LogitForm(None, SINKS),
    "both": LogitForm(0.6, SINKS),
}
every_form = pytest.mark.parametrize("form", FORMS.values(), ids=FORMS.keys())


def probabilities(logits: Tensor, form: LogitForm) -> Tensor:
    """[batch, query_heads, queries, keys] of masked logits, -inf where nothing is seen; the cap is
    applied to what is finite."""
    logits = logits.double()
    if form.softcap is not None:
        capped = form.softcap * torch.tanh(logits / form.softcap)
        logits = torch.where(logits.isinf(), logits, capped)
    weights = logits.exp()
    total = weights.sum(dim=-1, keepdim=True)
    if form.sinks is not None:
        total = total + form.sinks.double().exp()[:, None, None]
    return weights / total


def causal_logits(queries: Tensor, keys: Tensor, scaling: float) -> Tensor:
    group = queries.shape[1] // keys.shape[1]
    logits = queries.double() @ keys.double().repeat_interleave(group, 1).transpose(2, 3) * scaling
    tokens, asked = keys.shape[2], queries.shape[2]
    hidden = torch.arange(tokens) > torch.arange(tokens - asked, tokens)[:, None]
    return logits.masked_fill(hidden, -torch.inf)


@every_form
def test_the_definition_is_the_formula(form: LogitForm):
    prefix = ragged([5] * 6)
    queries, keys, values = inputs(2, 3, 4)
    stored_keys, stored_values = prefix.dense()
    every = torch.cat([stored_keys, keys], dim=2)
    weights = probabilities(causal_logits(queries, every, 0.4), form)
    read = torch.cat([stored_values, values], dim=2).repeat_interleave(GROUP, 1).double()
    found = ragged_decode_reference(queries, prefix, keys, values, 0.4, form=form)
    torch.testing.assert_close(found.double(), weights @ read, atol=1e-6, rtol=0)


@every_form
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("query_tokens", "tail"), [(1, 5), (3, 7)])
@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS.keys())
def test_torch_path_equals_the_definition(
    lengths: list[int], query_tokens: int, tail: int, bias: bool, form: LogitForm
):
    prefix = ragged(lengths, bias=bias)
    queries, keys, values = inputs(2, query_tokens, tail)
    expected = ragged_decode_reference(queries, prefix, keys, values, 0.4, form=form)
    actual = ragged_decode_torch(queries, prefix, keys, values, 0.4, form=form)
    torch.testing.assert_close(actual, expected, atol=2e-6, rtol=0)


@every_form
def test_parts_of_the_queries_and_shared_rows(form: LogitForm, monkeypatch: pytest.MonkeyPatch):
    module = importlib.import_module("catekv.kernels.ragged_decode")
    order = [1, 0, 0, 1]
    prefix = ragged(LENGTHS["two"]).select_rows(order)
    queries, keys, values = inputs(len(order), 5, 6)
    # values as wide as the keys take FlashAttention
    values = torch.cat([values, values[..., :2]], dim=-1)
    wider = torch.cat([prefix.values, prefix.values[..., :2]], dim=-1)
    prefix = dataclasses.replace(prefix, values=wider)
    expected = ragged_decode_reference(queries, prefix, keys, values, 0.4, form=form)
    monkeypatch.setattr(module, "MAX_LOGITS", 2 * 12 * GROUP * 15)
    actual = ragged_decode_torch(queries, prefix, keys, values, 0.4, form=form)
    torch.testing.assert_close(actual, expected, atol=2e-6, rtol=0)


@every_form
@pytest.mark.parametrize("scaling", [0.35, 40.0])
def test_column_sums(form: LogitForm, scaling: float):
    queries, keys, _ = inputs(2, 37, 37)
    expected = probabilities(causal_logits(queries, keys, scaling), form).nan_to_num()
    if form.softcap is None and scaling > 1:
        # beyond what exp() of the plain formula can take
        queries = queries / 10
        expected = probabilities(causal_logits(queries, keys, scaling), form)
    found = kernels.column_sums(queries, keys, scaling, form=form)
    torch.testing.assert_close(found.double(), expected.sum(dim=2), atol=2e-5, rtol=1e-5)
    valid = torch.ones(2, 37, dtype=torch.bool)
    valid[1, :9] = False
    padded = kernels.column_sums(queries, keys, scaling, valid, form)
    alone = kernels.column_sums(queries[1:, :, 9:], keys[1:, :, 9:], scaling, form=form)
    torch.testing.assert_close(padded[1:, :, 9:], alone, atol=1e-5, rtol=1e-5)


@every_form
def test_window_scores(form: LogitForm):
    queries, keys, _ = inputs(2, 6, 40)
    weights = probabilities(causal_logits(queries, keys, 0.4), form)
    mean = weights.unflatten(1, (HEADS, GROUP)).mean(dim=2)
    for rows, found in window_attention(queries, keys, 0.4, form=form, block_bytes=1000):
        torch.testing.assert_close(found.double(), mean.flatten(0, 1)[rows], atol=1e-6, rtol=0)
    scores = kernels.window_scores(queries, keys, 0.4, 0, 40, heads=torch.tensor([0, 2]), form=form)
    torch.testing.assert_close(scores.double(), mean.sum(dim=2)[:, [0, 2]], atol=1e-5, rtol=0)
    pooled = window_token_scores(queries, keys, 0.4, 3, "max", "pool_then_mean", form)
    each = torch.nn.functional.max_pool1d(weights[..., :34].flatten(0, 1), 3, 1, 1)
    expected = each.view(2, HEADS, GROUP, 6, 34).mean(dim=(2, 3))
    torch.testing.assert_close(pooled.double(), expected, atol=1e-6, rtol=0)


@every_form
def test_window_statistics(form: LogitForm):
    queries, keys, _ = inputs(1, 6, 40)
    weights = probabilities(causal_logits(queries, keys, 0.4), form)
    mean = weights.unflatten(1, (HEADS, GROUP)).mean(dim=2).flatten(2)
    found, _ = kernels.window_statistics(
        queries, keys, 0.4, 0, 40, [100, 200], lambda values: values[:, :1], [1], form=form
    )
    expected = mean.sort(dim=-1).values[..., [100, 200]]
    torch.testing.assert_close(found.double(), expected, atol=1e-6, rtol=0)


def test_a_forced_window_kernel_says_what_it_lacks():
    queries = torch.randn(1, 2, 4, 64)
    keys = torch.randn(1, 2, 20, 64)
    form = LogitForm(2.0, torch.zeros(2))
    with pytest.raises(UserError, match=r"a soft cap of 2 .* and attention sinks"):
        kernels.window_scores(queries, keys, 0.1, 0, 20, backend="triton", form=form)
