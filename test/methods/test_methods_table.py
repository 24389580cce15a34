"""The memory formulas of the methods against what they really keep, store and read."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from catekv import kernels, methods
from catekv.kernels.ragged import RaggedPrefix, storage_bytes
from catekv.methods import Method, ModelShape, Observed, Selection
from catekv.methods.formulas.query_moments import QueryMoments
from catekv.methods.stores.base import DecodeStore
from catekv.models.rotation import Rotation

SHAPE = ModelShape(layers=4, query_heads=4, kv_heads=2, head_dim=16)
TOKENS = 803
ITEM = 4  # bytes of a number
#: Offsets, lengths and lists of blocks, bytes per head; and their share where pages are listed.
BOOKKEEPING = 40
PAGE_LISTS = 0.05


def measured() -> list[str]:
    """Methods that say what they keep and read."""
    return [name for name in methods.available() if methods.method_class(name).memory_formula]


def made(name: str) -> Method:
    example = methods.method_class(name).example
    assert example is not None
    return methods.create(name, preset="recommended", **example.options("small", SHAPE))


def names_of(method: Method) -> dict[str, Any]:
    """What the formulas may use: sizes, the method's options and the terms it adds."""
    dim, formula = SHAPE.head_dim, method.memory_formula
    assert formula is not None
    return {
        "T": TOKENS,
        "d": dim,
        "s": ITEM,
        "e": 2 * dim * ITEM,
        "L": SHAPE.layers,
        "H": SHAPE.kv_heads,
        "Q": SHAPE.query_heads,
        "floor": math.floor,
        "ceil": math.ceil,
        "max": max,
        "min": min,
        **{key: value for key, value in vars(method).items() if not key.startswith("_")},
        **(formula.terms(method, TOKENS, SHAPE) if formula.terms else {}),
    }


def value(formula: str, names: dict[str, Any]) -> float:
    return float(eval(formula or "0", {"__builtins__": {}}, names))


def layers_of_a_prompt(tokens: int = TOKENS) -> list[Observed]:
    """All layers of a prompt with everything that a method may need."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(1, tokens, 24, generator=generator)
    rotation = Rotation(10000.0 ** -(torch.arange(0, 16, 2) / 16))
    layers = []
    for layer in range(SHAPE.layers):
        queries = torch.randn(1, 4, tokens, 16, generator=generator)
        keys, values = torch.randn(2, 1, 2, tokens, 16, generator=generator)
        sums = kernels.column_sums(queries, keys, 0.25)
        moments = QueryMoments.none_yet(queries)
        moments.add(queries, rotation)
        layers.append(
            Observed(
                queries,
                keys,
                values,
                0.25,
                layer,
                SHAPE.layers,
                sums,
                hidden,
                rotation=rotation,
                query_moments=moments,
                attention_inputs=hidden,
                output_projection=torch.randn(4, 16, 24, generator=generator),
            )
        )
    return layers


@pytest.fixture(scope="module")
def prompt() -> list[Observed]:
    return layers_of_a_prompt()


def select(method: Method, layers: list[Observed]) -> list[Selection]:
    if method.needs.all_layers:
        return method.select_padded(layers, None)
    return [method.select_padded([layer], None)[0] for layer in layers]


def seen_by(method: Method, layers: list[Observed]) -> list[Observed]:
    """The layers with as many queries as the method asked for."""
    window = method.needs.window
    generator = torch.Generator().manual_seed(1)
    repeats = {way: torch.rand(1, 2, TOKENS, generator=generator) for way in method.needs.repeats}
    return [
        replace(layer, queries=layer.queries[:, :, TOKENS - window :], repeat_scores=repeats)
        for layer in layers
    ]


def besides(store: DecodeStore | None, prefix: RaggedPrefix) -> float:
    """Bytes that a step reads apart from entries, all heads of a layer."""
    tables = getattr(store, "tables", {})
    if "low" in tables:
        return storage_bytes([tables["low"], tables["high"]])
    if "bounds" in tables:
        dims = int(tables["used"].max())
        return storage_bytes([tables["bounds"]]) * dims / (2 * SHAPE.head_dim)
    return 0.0 if prefix.bias is None else storage_bytes([prefix.bias])


@pytest.mark.parametrize("name", measured())
def test_formulas_hold(name: str, prompt: list[Observed]) -> None:
    method = made(name)
    formula = method.memory_formula
    assert formula is not None
    names = names_of(method)
    names["kept"] = value(formula.kept, names)
    heads = SHAPE.layers * SHAPE.kv_heads
    kept = stored = entries = extra = 0.0
    reads_a_part = False
    layers = seen_by(method, prompt)
    for layer, full, selection in zip(layers, prompt, select(method, layers), strict=True):
        kept += int(selection.budgets.sum())
        prefix = selection.packed(layer.keys, layer.values)
        store = method.open_store(prefix, layer, None, selection)
        stored += storage_bytes(prefix.tensors() if store is None else store.tensors())
        blocks = None
        if store is not None:
            prefix, blocks = store.read(full.queries[:, :, -1:], 0.25)
            reads_a_part |= blocks is not None or method.effect == "moves"
        for row, (_, length) in enumerate(prefix.host_rows):
            entries += length if blocks is None else len(blocks.tokens(row, length))
        extra += besides(store, prefix)
    assert kept / heads == pytest.approx(names["kept"], abs=1e-6)
    assert entries / heads == pytest.approx(value(formula.read, names), abs=1e-6)
    foretold = value(formula.stored, names)
    listed = PAGE_LISTS * foretold if reads_a_part else 0
    assert 0 <= stored / heads - foretold <= BOOKKEEPING + listed
    if name != "shadowkv":  # its store rebuilds keys from tables that no step reads whole
        assert extra / heads == pytest.approx(value(formula.besides, names), rel=1e-6)
