"""Dense attention over exactly the entries that a method attends to, with their biases.

Independent of the product's cache, layers and kernels: an ordinary ``DynamicCache`` holds all
tokens, and a registered attention function, in plain loops, replaces the context by what the
method kept (or its store reads) and adds the tokens since. What the method sees of the prompt is
recorded here from the attention matrix itself.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from catekv.kernels.ragged import BlockList, RaggedPrefix
from catekv.methods import Method, Observed
from catekv.methods.formulas.query_moments import QueryMoments
from catekv.methods.formulas.repeat import Repeat
from catekv.models.rotation import rotation_of

NAME = "entries_reference"
#: biases below this say that a place of the prefix is empty
EMPTY = -1e29


@dataclass
class LayerRecord:
    """What one layer showed while the prompt was read, and what it attends to afterwards."""

    queries: Tensor
    keys: Tensor
    values: Tensor
    column_sums: Tensor
    hidden_states: Tensor | None = None
    inputs: Tensor | None = None
    prefix: RaggedPrefix | None = None
    store: Any = None
    taken: int = 0


@dataclass
class Run:
    """One run of a model over the reference attention.

    With ``original`` every entry that is read must be a token that was seen, as it was, read once,
    without a bias, and no padding: the method is a mask over the tokens.
    """

    method: Method
    valid: Tensor | None
    layers: dict[int, LayerRecord] = field(default_factory=dict)
    hidden: dict[int, Tensor] = field(default_factory=dict)
    inputs: dict[int, Tensor] = field(default_factory=dict)
    context: int = 0
    original: bool = False


CURRENT: list[Run] = []


def register() -> None:
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import eager_mask

    AttentionInterface.register(NAME, attention)
    AttentionMaskInterface.register(NAME, eager_mask)


def attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    **_: Any,
) -> tuple[Tensor, None]:
    (run,) = CURRENT
    assert attention_mask is not None
    if not run.context:
        output = _prompt(run, module.layer_idx, query, key, value, attention_mask, scaling)
    else:
        output = _later(run, module.layer_idx, query, key, value, attention_mask, scaling)
    return output.transpose(1, 2).contiguous(), None


def _prompt(
    run: Run, layer: int, query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scaling: float
) -> Tensor:
    group = query.shape[1] // key.shape[1]
    keys, values = key.repeat_interleave(group, dim=1), value.repeat_interleave(group, dim=1)
    weights = (query @ keys.transpose(2, 3) * scaling + mask).softmax(dim=-1)
    asked = weights if run.valid is None else weights * run.valid[:, None, :, None]
    run.layers[layer] = LayerRecord(
        query, key, value, asked.sum(dim=2), run.hidden.get(layer), run.inputs.get(layer)
    )
    return weights @ values


def _later(
    run: Run, layer: int, query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scaling: float
) -> Tensor:
    record = run.layers[layer]
    blocks: BlockList | None = None
    prefix = record.prefix
    if record.store is not None:
        prefix, blocks = record.store.read(query, scaling)
    assert prefix is not None
    start = run.context + record.taken
    tail_keys, tail_values, tail_mask = key[:, :, start:], value[:, :, start:], mask[..., start:]
    group = query.shape[1] // key.shape[1]
    output = torch.zeros(*query.shape[:3], value.shape[-1])
    for b in range(query.shape[0]):
        for head in range(key.shape[1]):
            keys, values, bias = prefix.row(b, head)
            if blocks is not None:
                read = blocks.tokens(b * key.shape[1] + head, len(keys))
                keys, values = keys[read], values[read]
                bias = None if bias is None else bias[read]
            if bias is not None:
                there = bias > EMPTY
                keys, values, bias = keys[there], values[there], bias[there]
            if run.original:
                there = mask[min(b, len(mask) - 1), 0, -1, :start] == 0
                _check_original(
                    key[b, head, :start][there], value[b, head, :start][there], keys, values, bias
                )
            offset = torch.zeros(len(keys)) if bias is None else bias
            added = torch.cat(
                [offset.expand(query.shape[2], -1), tail_mask[min(b, len(tail_mask) - 1), 0]], dim=1
            )
            keys = torch.cat([keys, tail_keys[b, head]])
            values = torch.cat([values, tail_values[b, head]])
            for member in range(head * group, (head + 1) * group):
                logits = query[b, member] @ keys.T * scaling + added
                output[b, member] = logits.softmax(dim=-1) @ values
    if record.store is not None:
        seen = (tail_mask[:, 0, -1] == 0).expand(query.shape[0], -1)
        visible = None if bool(seen.all()) else seen
        taken = record.store.absorb(query, tail_keys, tail_values, scaling, visible)
        record.taken += taken
    return output


def _check_original(
    seen_keys: Tensor, seen_values: Tensor, keys: Tensor, values: Tensor, bias: Tensor | None
) -> None:
    assert bias is None or not bool(bias.any())
    same = (keys[:, None] == seen_keys).all(dim=-1)
    assert bool((same.sum(dim=-1) == 1).all()), "something was read that is no token"
    assert not len(keys) or int(same.sum(dim=0).max()) == 1, "a token was read twice"
    assert torch.equal(values, seen_values[same.int().argmax(dim=-1)])


def _attention(record: LayerRecord, sinks: Tensor, part: Tensor, prompt: int) -> Tensor:
    """The attention that each token of ``part`` gets from those behind the prompt, where keys are
    the first tokens, the part and what is behind the prompt: [kv_heads, group, behind, part]."""
    total = record.keys.shape[2]
    keys = record.keys[0, :, torch.cat([sinks, part, torch.arange(prompt, total)])]
    queries = record.queries[0, :, prompt:].unflatten(0, (len(keys), -1))
    new = total - prompt
    logits = queries @ keys[:, None].transpose(2, 3) * queries.shape[-1] ** -0.5
    later = torch.ones(new, new, dtype=torch.bool).triu(1)
    logits[..., -new:].masked_fill_(later, -torch.inf)
    return logits.softmax(dim=-1)[..., len(sinks) : len(sinks) + len(part)]


class ReferenceCache(DynamicCache):
    """Lets the method decide when the prompt has been read."""

    def __init__(self, model: Any, method: Method, mask: Tensor | None, original: bool):
        super().__init__(config=model.config)
        self.model = model
        self.run = Run(method, None if mask is None else mask.bool(), original=original)
        self.ids = torch.empty(0, 0)

    def projection(self, layer: int) -> Tensor:
        """The rows of the output projection of every query head."""
        weight = self.model.model.layers[layer].self_attn.o_proj.weight
        heads = self.model.config.num_attention_heads
        return weight.T.reshape(heads, -1, weight.shape[0])

    def repeated(self, way: Repeat) -> list[Tensor]:
        """Of every layer the scores of :class:`Repeat`, from a forward over each prompt and a part
        of it behind it."""
        run = self.run
        found = [torch.zeros(run.layers[0].keys.shape[:3]) for _ in run.layers]
        for b, ids in enumerate(self.ids):
            first = 0 if run.valid is None else int((~run.valid[b]).sum())
            row, sinks = ids[first:], way.sinks
            for start in range(sinks, len(row), way.chunk):
                part = torch.arange(start, min(start + way.chunk, len(row)))
                CURRENT[:] = [Run(run.method, None)]
                self.model(input_ids=torch.cat([row, row[part]])[None], use_cache=False)
                for index, record in CURRENT[0].layers.items():
                    received = _attention(record, torch.arange(sinks), part, len(row))
                    if way.plus:
                        group = received.shape[1]
                        values = record.values[0][:, part].repeat_interleave(group, dim=0)
                        outputs = (values @ self.projection(index)).norm(dim=-1)
                        received = received * outputs.view(-1, group, 1, len(part))
                        states = run.inputs[index][0, len(row) :]
                        received = received / states.norm(dim=-1)[:, None]
                    found[index][b, :, first : first + sinks] = torch.inf
                    found[index][b, :, first + part] = received.amax(dim=(1, 2))
        CURRENT[:] = [run]
        return found

    def decide(self) -> None:
        """Make the method choose among what was recorded, and open its stores."""
        run, config = self.run, self.model.config
        needs, valid = run.method.needs, run.valid
        observed = []
        repeats = {way: self.repeated(way) for way in needs.repeats}
        for index, record in sorted(run.layers.items()):
            tokens = record.keys.shape[2]
            longest = tokens if valid is None else int(valid.sum(dim=-1).max())
            window = record.queries[:, :, max(0, tokens - needs.window) :]
            moments = None
            if needs.query_moments:
                moments = QueryMoments.none_yet(record.queries)
                moments.add(record.queries, rotation_of(config, longest, index), valid)
            observed.append(
                Observed(
                    window,
                    record.keys,
                    record.values,
                    record.queries.shape[-1] ** -0.5,
                    index,
                    len(run.layers),
                    record.column_sums if needs.column_sums else None,
                    record.hidden_states if needs.hidden_states else None,
                    rotation_of(config, longest, index) if needs.rotation else None,
                    output_projection=self.projection(index) if needs.output_projection else None,
                    query_moments=moments,
                    attention_inputs=record.inputs if needs.attention_inputs else None,
                    repeat_scores={way: repeats[way][len(observed)] for way in repeats},
                )
            )
        if needs.all_layers:
            selections = run.method.select_padded(observed, valid)
        else:
            selections = [run.method.select_padded([one], valid)[0] for one in observed]
        for layer, selection in zip(observed, selections, strict=True):
            record = run.layers[layer.layer]
            record.prefix = selection.packed(layer.keys, layer.values)
            record.store = run.method.open_store(record.prefix, layer, valid, selection)
        run.context = observed[0].tokens


def run(model: Any, cache: ReferenceCache, forwards: list[dict[str, Tensor]]) -> list[Tensor]:
    """Last logits of every forward; the first one reads the prompt."""

    def recorder(into: dict[int, Tensor], index: int) -> Any:
        def record(module: Any, arguments: tuple[Any, ...], options: dict[str, Any]) -> None:
            if not cache.run.context:
                states = arguments[0] if arguments else options["hidden_states"]
                into[index] = states.clone()

        return record

    CURRENT[:] = [cache.run]
    hooks = [
        module.register_forward_pre_hook(recorder(into, index), with_kwargs=True)
        for index, layer in enumerate(model.model.layers)
        for module, into in ((layer, cache.run.hidden), (layer.self_attn, cache.run.inputs))
    ]
    results = []
    cache.ids = forwards[0]["input_ids"]
    try:
        for number, inputs in enumerate(forwards):
            results.append(model(past_key_values=cache, use_cache=True, **inputs).logits[:, -1])
            if number == 0:
                cache.decide()
    finally:
        CURRENT.clear()
        for hook in hooks:
            hook.remove()
    return results
