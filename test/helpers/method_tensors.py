"""Random prompts and checks that the tests of single methods share."""

from __future__ import annotations

import json

import torch
from torch import Tensor

from catekv import methods
from catekv.methods import Method, ModelShape, Selection

SHAPE = ModelShape(layers=3, query_heads=4, kv_heads=2, head_dim=8)


def tensors(batch: int, tokens: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Queries [batch, 4, tokens, 8], keys and values [batch, 2, tokens, 8]."""
    generator = torch.Generator().manual_seed(seed)
    queries = torch.randn(batch, 4, tokens, 8, generator=generator)
    keys, values = torch.randn(2, batch, 2, tokens, 8, generator=generator)
    return queries, keys, values


def kept(selection: Selection, row: int, head: int) -> list[int]:
    assert selection.keep is not None
    return selection.keep[row, head].nonzero().squeeze(-1).tolist()


def select(method: Method, batch: int, tokens: int, layer: int = 1, seed: int = 0) -> Selection:
    return method.select(*tensors(batch, tokens, seed), layer=layer, num_layers=SHAPE.layers)


def check_method(method: Method) -> None:
    """What every method owes: short prompts whole, padding nowhere, plain values, sound sums."""
    short = select(method, 1, 5)
    assert short.keep is not None
    assert bool(short.keep.all())
    _check_padding(method)
    assert methods.from_dict(json.loads(json.dumps(method.to_dict()))) == method
    for tokens in (5, 30, 97):
        for layer in range(SHAPE.layers):
            found = select(method, 2, tokens, layer)
            assert found.budgets.shape == (2, SHAPE.kv_heads)
            assert int(found.budgets.max()) <= tokens


def _check_padding(method: Method) -> None:
    queries, keys, values = tensors(2, 97)
    valid = torch.ones(2, 97, dtype=torch.bool)
    valid[1, :13] = False
    place = {"layer": 1, "num_layers": SHAPE.layers}
    together = method.select(queries, keys, values, valid=valid, **place)
    alone = method.select(queries[:1], keys[:1], values[:1], **place)
    short = method.select(queries[1:, :, 13:], keys[1:, :, 13:], values[1:, :, 13:], **place)
    assert together.keep is not None
    assert alone.keep is not None
    assert short.keep is not None
    assert torch.equal(together.keep[0], alone.keep[0])
    assert torch.equal(together.keep[1, :, 13:], short.keep[0])
    assert not bool(together.keep[1, :, :13].any())


def check_static_table(method: Method) -> None:
    """The budget table foretells what is kept."""
    for tokens in (1, 5, 30, 97, 200):
        table = method.budget_table(tokens, SHAPE)
        for layer in range(SHAPE.layers):
            found = select(method, 1, tokens, layer)
            assert torch.equal(found.budgets[0], table[layer]), (tokens, layer)
