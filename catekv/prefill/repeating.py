"""The model writes its prompt once more, behind it; layers note what that looks at (KVzip).

The prompt is repeated chunk by chunk on top of its dense cache. Entries of a repetition are
forgotten after its forward. Rows of a batch are filled up behind their own tokens, which do not see
what comes after them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from catekv.cache import plain_layers
from catekv.cache.cache import RaggedCache
from catekv.cache.layer import RaggedLayer
from catekv.errors import UserError
from catekv.methods.formulas.repeat import Repeat, largest_attention, value_norms
from catekv.models.compat import context_window
from catekv.prefill.recording import hidden_states_shown

#: Tokens of the chunk before that say where a later chunk begins.
ANCHOR = 8


@dataclass(frozen=True)
class Wording:
    """Token ids around what is repeated; without any the chunks alone are fed.

    Attributes:
        first: asks for the beginning of the text. later: asks to go on behind the words that
            follow.
        opening: what a chat template writes before the user's text. end: what it writes behind it,
            for prompts that begin so.
    """

    first: tuple[int, ...] = ()
    later: tuple[int, ...] = ()
    opening: tuple[int, ...] = ()
    end: tuple[int, ...] = ()

    def longest(self, tokens: int, way: Repeat) -> int:
        """Tokens that the longest repetition of a prompt takes at most."""
        later = len(self.later) + ANCHOR if self.later else 0
        return max(len(self.first), later) + len(self.end) + min(tokens, way.chunk)


@dataclass(frozen=True)
class Part:
    """Tokens ``start`` to ``stop`` of a prompt, and what is fed to have them repeated."""

    start: int
    stop: int
    ids: tuple[int, ...]


def parts_of(row: Sequence[int], way: Repeat, wording: Wording) -> tuple[int, list[Part]]:
    """How many tokens a prompt begins with that are not repeated, and the parts of the others."""
    same = [own == said for own, said in zip(row, wording.opening, strict=False)]
    opening = same.index(False) if False in same else len(same)
    # the last token of the opening may have been joined with the first of the text
    chat = bool(wording.opening) and opening >= len(wording.opening) - 1
    system = max(way.sinks, opening if chat else 0)
    end = wording.end if chat else ()
    parts = []
    for start in range(system, len(row), way.chunk):
        stop = min(start + way.chunk, len(row))
        asked = wording.first
        if start > system:
            asked = (*wording.later, *row[max(0, start - ANCHOR) : start]) if wording.later else ()
        parts.append(Part(start, stop, (*asked, *end, *row[start:stop])))
    return min(system, len(row)), parts


def refuse_without_room(
    config: object, tokens: int, ways: Sequence[Repeat], wording: Wording
) -> None:
    """``UserError`` if a prompt of so many tokens and its repetition exceed the model's window."""
    window = context_window(config)
    longest = max((wording.longest(tokens, way) for way in ways), default=0)
    if longest and window is not None and tokens + longest > window:
        raise UserError(
            f"a context of {tokens} tokens leaves no room for its repetition of up to {longest} "
            f"tokens in the model's context window of {window}; lower the method's chunk, or "
            "shorten the context"
        )


def repeat_prompt(
    model: torch.nn.Module,
    cache: RaggedCache,
    ids: Tensor,
    mask: Tensor | None,
    wording: Wording,
    feed: Callable[[Tensor, Tensor | None], object],
) -> None:
    """Note in every layer what its entries receive, in each way that the cache's method needs.

    Args:
        cache: has read the prompt and is dense; afterwards it holds what it held before.
        ids, mask: the prompt [batch, columns]; mask None: no padding.
        feed: runs the model on ids [batch, tokens] behind the cache, with the mask of all columns.
    """
    paddings = [0] * len(ids) if mask is None else (mask == 0).sum(dim=-1).tolist()
    rows = [row[padding:] for row, padding in zip(ids.tolist(), paddings, strict=True)]
    repetitions = []
    for way in cache.settings.needs.repeats:
        found = [parts_of(row, way, wording) for row in rows]
        one = _Repetition(
            way, ids.shape[1], paddings, [part[0] for part in found], [part[1] for part in found]
        )
        for layer in cache.ragged_layers:
            one.begin(layer)
        repetitions.append(one)
    while repetitions:
        # ways that have the same repeated look at one forward
        alike = [one for one in repetitions if one.parts == repetitions[0].parts]
        repetitions = [one for one in repetitions if one.parts != alike[0].parts]
        for step in range(max(len(parts) for parts in alike[0].parts)):
            for one in alike:
                one.step = step
            _feed_once(model, cache, alike, ids, mask, feed)


def _feed_once(
    model: torch.nn.Module,
    cache: RaggedCache,
    repetitions: Sequence[_Repetition],
    ids: Tensor,
    mask: Tensor | None,
    feed: Callable[[Tensor, Tensor | None], object],
) -> None:
    """Have one part of every row repeated for ways that read the same, and forget that it was."""
    parts_now, step = repetitions[0].parts, repetitions[0].step
    fed = [parts[step].ids if step < len(parts) else () for parts in parts_now]
    width = max(map(len, fed))
    filler = int(ids[0, -1])
    more = torch.tensor([[*row, *[filler] * (width - len(row))] for row in fed]).to(ids.device)
    whole = None if mask is None else torch.cat([mask, torch.ones_like(more)], dim=1)
    before = list(cache.layers)

    def see(layer: RaggedLayer, queries: Tensor) -> None:
        for one in repetitions:
            one.see(layer, queries)

    with contextlib.ExitStack() as stack:
        for one in repetitions:
            if one.way.plus:
                stack.enter_context(
                    hidden_states_shown(model, cache, one.note_states, to_attention=True)
                )
        cache.layers[:] = [
            layer if isinstance(layer, RaggedLayer) else plain_layers.copied(layer)
            for layer in before
        ]
        cache.settings.onlooker = see
        try:
            feed(more, whole)
        finally:
            cache.settings.onlooker = None
            cache.layers[:] = before
            for layer in cache.ragged_layers:
                layer.take_back(layer.seen - ids.shape[1])


@dataclass
class _Repetition:
    """One way of repeating the prompts of a batch, while it goes on.

    Attributes:
        columns: of the prompt, padding included. paddings, systems, parts: of every row.
        step: which part of every row is being repeated.
        sizes: norms of what each layer's attention read last, by layer [batch, tokens].
    """

    way: Repeat
    columns: int
    paddings: Sequence[int]
    systems: Sequence[int]
    parts: Sequence[list[Part]]
    step: int = 0
    sizes: dict[int, Tensor] = field(default_factory=dict)

    def begin(self, layer: RaggedLayer) -> None:
        """Scores of a layer before anything was repeated."""
        keys = layer.buffer.views()[0]
        scores = torch.zeros(*keys.shape[:2], self.columns, device=keys.device)
        for b, (padding, system) in enumerate(zip(self.paddings, self.systems, strict=True)):
            scores[b, :, padding : padding + system] = torch.inf
        layer.repeat_scores[self.way] = scores

    def note_states(self, layer: RaggedLayer, states: Tensor) -> None:
        """See :func:`~catekv.prefill.recording.hidden_states_shown`."""
        self.sizes[layer.index] = states.norm(dim=-1, dtype=torch.float32)

    def see(self, layer: RaggedLayer, queries: Tensor) -> None:
        """Take in the newest queries [batch, query_heads, queries, head_dim] of a repetition."""
        new = layer.seen - self.columns
        earlier = new - queries.shape[2]
        for b, parts in enumerate(self.parts):
            if self.step < len(parts):
                # what fills a row up behind its own tokens asks nothing
                own = min(new, len(parts[self.step].ids))
                if own > earlier:
                    self._see_row(layer, b, queries[b, :, : own - earlier], own)

    def _see_row(self, layer: RaggedLayer, b: int, queries: Tensor, new: int) -> None:
        part, system, first = self.parts[b][self.step], self.systems[b], self.paddings[b]
        keys, values = (states[b] for states in layer.buffer.views())
        columns = slice(first + part.start, first + part.stop)
        group = queries.shape[0] // keys.shape[0]
        scores = layer.repeat_scores[self.way][b, :, columns]
        for head in range(keys.shape[0]):
            members = slice(head * group, (head + 1) * group)
            entries = torch.cat([
                keys[head, first : first + system],
                keys[head, columns],
                keys[head, self.columns : self.columns + new],
            ])  # fmt: skip
            form, norms = layer.form, None
            if form.sinks is not None:
                form = replace(form, sinks=form.sinks[members])
            if self.way.plus:
                weight = layer.settings.projections[layer.index][members]
                sizes = self.sizes[layer.index][b, : queries.shape[1]]
                norms = value_norms(values[head, columns], weight), sizes
            scored = slice(system, system + part.stop - part.start)
            found = largest_attention(
                queries[members], entries, scored, new, layer.scaling, form, norms
            )
            scores[head] = scores[head].maximum(found)
