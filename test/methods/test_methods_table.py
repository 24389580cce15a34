"""The formulas of docs/methods.md against what the methods really keep, store and read."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from catekv import kernels, methods
from catekv.kernels.ragged import RaggedPrefix, storage_bytes
from catekv.methods import Method, ModelShape, Observed, Selection
from catekv.methods.head_mask import HeadMask
from catekv.methods.stores.base import DecodeStore
from catekv.models.rotation import Rotation

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "methods.md"
SHAPE = ModelShape(layers=4, query_heads=4, kv_heads=2, head_dim=16)
TOKENS = 803
ITEM = 4  # bytes of a number
#: Offsets, lengths and lists of blocks, bytes per head; and their share where pages are listed.
BOOKKEEPING = 40
PAGE_LISTS = 0.05
SCORES = [[0.5, 0.1], [0.2, 0.9], [0.0, 0.3], [0.4, 0.4]]
#: Options with which every method is measured; those it has in the document hold for all values.
OPTIONS: dict[str, dict[str, Any]] = {
    "full": {},
    "catekv": {
        "head_mask": HeadMask.random((4, 2), 0.25, 1),
        "budget": 256,
        "window": 16,
        "init_tokens": 32,
        "recent_tokens": 64,
    },
    "snapkv": {"budget": 120},
    "pyramidkv": {"budget": 120},
    "adakv": {"budget": 120},
    "headkv": {"budget": 120, "scores": SCORES},
    "cokv": {"budget": 120, "scores": SCORES},
    "dynamickv": {"budget": 120},
    "streaming_llm": {"budget": 120},
    "sliding_window": {"budget": 120},
    "duo_attention": {"pattern": SCORES, "sinks": 16, "recent": 100, "streaming_share": 0.3},
    "h2o": {"budget": 120},
    "keydiff": {"budget": 120},
    "knorm": {"budget": 120},
    "cam": {"budget": 120},
    "keepkv": {"budget": 120},
    "simcalkv": {"ratio": 0.3},
    "simcalkv_pyramidinfer": {"ratio": 0.3},
    "simcalkv_keepkv": {"ratio": 0.3},
    "simcalkv_cam": {"ratio": 0.3},
    "pyramidinfer_kv": {"recent": 0.1},
    "quest": {"budget": 120},
    "rocketkv": {"budget": 120, "window": 8},
    "shadowkv": {"budget": 120, "outliers": 10, "rank": 20},
    "atskv": {"untrained": True, "quantile": 0.6},
    "atskv_dynamic_kv": {"ratio": 0.4},
    "atskv_rocket_kv": {"eviction": 0.3},
}
#: Methods that exist only to say why they do not.
REFUSED = {"pyramidinfer"}


def formulas() -> dict[str, list[str]]:
    """Method -> kept, stored, entries read, read besides; as written in the document."""
    part = DOCUMENT.read_text().split("## Memory and traffic")[1].split("\n- ")[0]
    rows = {}
    for line in part.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        name = re.fullmatch(r"`(\w+)`", cells[0])
        if name:
            rows[name.group(1)] = [cell.strip("`") or "0" for cell in cells[1:]]
    return rows


def names_of(method: Method) -> dict[str, Any]:
    """What the formulas may use: sizes, the method's options and the terms defined in the list."""
    tokens, dim = TOKENS, SHAPE.head_dim
    names: dict[str, Any] = {
        "T": tokens,
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
    }
    if method.name == "catekv":
        chunk, guard = names["chunk_size"], names["guard_tokens"]
        names["tail"] = tokens - (tokens // chunk - guard // chunk) * chunk
    if method.name == "duo_attention":
        names["share"] = float(method.streaming.double().mean())  # type: ignore[attr-defined]
    if method.name == "pyramidinfer_kv":
        sizes = [tokens - 1 - math.floor(names["recent"] * tokens)]
        for layer in range(SHAPE.layers - 1):
            cosine = (math.cos(math.pi * layer / SHAPE.layers) + 1) / 2
            left = math.floor(
                sizes[-1] * (names["least_ratio"] + (1 - names["least_ratio"]) * cosine) + 1e-9
            )
            sizes.append(left if left > names["min_context"] else sizes[-1])
        names["context"] = sum(sizes) / len(sizes)
    if method.name == "rocketkv":
        c = tokens / names["budget"]
        r = min(0.2 + 0.06 * math.log2(c), 0.8)
        p = math.ceil(c ** ((1 - r) / 2))
        names.update(c=c, r=r, p=p, dims=round(dim * p / c ** (1 - r)))
    if method.name == "shadowkv":
        n = tokens // names["chunk"] - names["local"]
        exact = names["outliers"] * names["chunk"] + tokens - n * names["chunk"]
        names.update(n=n, exact=exact)
    return names


def value(formula: str, names: dict[str, Any]) -> float:
    return float(eval(formula, {"__builtins__": {}}, names))


@pytest.fixture(scope="module")
def prompt() -> list[Observed]:
    """All layers of a prompt with everything that a method may need."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(1, TOKENS, 24, generator=generator)
    rotation = Rotation(10000.0 ** -(torch.arange(0, 16, 2) / 16))
    layers = []
    for layer in range(SHAPE.layers):
        queries = torch.randn(1, 4, TOKENS, 16, generator=generator)
        keys, values = torch.randn(2, 1, 2, TOKENS, 16, generator=generator)
        sums = kernels.column_sums(queries, keys, 0.25)
        layers.append(
            Observed(
                queries, keys, values, 0.25, layer, SHAPE.layers, sums, hidden, rotation=rotation
            )
        )
    return layers


def select(method: Method, layers: list[Observed]) -> list[Selection]:
    if method.needs.all_layers:
        return method.select_padded(layers, None)
    return [method.select_padded([layer], None)[0] for layer in layers]


def seen_by(method: Method, layers: list[Observed]) -> list[Observed]:
    """The layers with as many queries as the method asked for."""
    window = method.needs.window
    return [
        Observed(**{**vars(layer), "queries": layer.queries[:, :, TOKENS - window :]})
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


def test_every_method_has_its_row_and_its_measurement() -> None:
    assert set(formulas()) == set(methods.available()) - REFUSED
    assert set(OPTIONS) >= set(formulas())


@pytest.mark.parametrize("name", OPTIONS)
def test_formulas_hold(name: str, prompt: list[Observed]) -> None:
    method = methods.create(name, preset="recommended", **OPTIONS[name])
    kept_formula, stored_formula, entries_formula, besides_formula = formulas()[name]
    names = names_of(method)
    names["kept"] = value(kept_formula, names)
    heads = SHAPE.layers * SHAPE.kv_heads
    kept = stored = entries = extra = 0.0
    layers = seen_by(method, prompt)
    for layer, full, selection in zip(layers, prompt, select(method, layers), strict=True):
        kept += int(selection.budgets.sum())
        prefix = selection.packed(layer.keys, layer.values)
        store = method.open_store(prefix, layer, None, selection)
        stored += storage_bytes(prefix.tensors() if store is None else store.tensors())
        blocks = None
        if store is not None:
            prefix, blocks = store.read(full.queries[:, :, -1:], 0.25)
        for row, (_, length) in enumerate(prefix.host_rows):
            entries += length if blocks is None else len(blocks.tokens(row, length))
        extra += besides(store, prefix)
    assert kept / heads == pytest.approx(names["kept"], abs=1e-6)
    assert entries / heads == pytest.approx(value(entries_formula, names), abs=1e-6)
    foretold = value(stored_formula, names)
    listed = PAGE_LISTS * foretold if name in ("quest", "rocketkv", "shadowkv", "atskv") else 0
    assert 0 <= stored / heads - foretold <= BOOKKEEPING + listed
    if name != "shadowkv":  # its store rebuilds keys from tables that no step reads whole
        assert extra / heads == pytest.approx(value(besides_formula, names), rel=1e-6)
