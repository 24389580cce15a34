"""Entries that are cut back while decoding: what a bounded method's layer attends to.

New tokens stay in the tail until as many have come as the method says. Then they join the entries
of their row, and where an event is due the method chooses among both. That can be done between two
decode steps; nothing in a step depends on it.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import astuple, dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from catekv.errors import UserError
from catekv.kernels.ragged import RaggedPrefix, from_rows, storage_order
from catekv.methods.formulas.schedule import Clock, Schedule
from catekv.methods.held import Held
from catekv.methods.stores.base import WholePrefix
from catekv.methods.stores.recent_queries import RecentQueries

if TYPE_CHECKING:
    from catekv.methods.base import Observed

#: Keys, values and positions of the entries of one row.
Row = tuple[Tensor, Tensor, Tensor]


class Chooser(Protocol):
    """What the store asks of a method."""

    def to_dict(self) -> dict[str, Any]: ...

    def kept(self, observed: Observed, counts: Tensor) -> Tensor:
        """Which entries [1, kv_heads, entries] stay, ``counts`` [kv_heads] of each head."""
        ...


@dataclass(frozen=True, eq=False)
class Layer:
    """What does not change of a layer: how its method chooses and when, the layer without its
    tokens (``about``), and the entries that each KV head is cut to, int64 [kv_heads]."""

    method: Chooser
    schedule: Schedule
    about: Observed
    targets: Tensor

    def __deepcopy__(self, memo: dict[int, Any]) -> Layer:
        return self


class BoundedStore(WholePrefix):
    """Rows that take their new tokens over now and then, and are cut to their targets.

    Events come when they are due for a sequence; a sequence of a batch is treated as it is alone.
    When they come does not depend on the layer: all tails stay equally long.

    Args:
        layer: what does not change.
        prefix: the rows after prefill, in prompt order, without biases.
        positions: int32 [slots], where the token of each slot of ``prefix`` stood.
        clocks: of every sequence. prompts: tokens of every sequence's prompt.
        queries: the newest ones; None for methods that look at none.
    """

    absorbs = periodic = capturable = True
    plain_logits = False

    def __init__(
        self,
        layer: Layer,
        prefix: RaggedPrefix,
        positions: Tensor,
        clocks: Sequence[Clock],
        prompts: Sequence[int],
        queries: RecentQueries | None = None,
    ):
        self.layer = layer
        self.prefix = prefix
        self.positions = positions
        self.clocks = list(clocks)
        self.prompts = list(prompts)
        self.queries = queries

    @property
    def croppable(self) -> bool:
        return self.queries is None  # older ones were written over

    @property
    def longest_tail(self) -> int:
        return self.layer.schedule.every

    def record(self, queries: Tensor, length: Tensor) -> None:
        if self.queries is not None:
            self.queries.put(queries, length.long() - 1)

    def due(self, pending: Sequence[int], new: Sequence[int]) -> bool:
        schedule = self.layer.schedule
        return any(
            count >= schedule.every or schedule.due(clock.after(count), newest)
            for clock, count, newest in zip(self.clocks, pending, new, strict=True)
        )

    @torch.no_grad()
    def absorb(
        self, queries: Tensor, keys: Tensor, values: Tensor, scaling: float, visible: Tensor | None
    ) -> int:
        batch, tail, tokens = keys.shape[0], keys.shape[2], queries.shape[2]
        if visible is not None and bool(visible.all()):
            visible = None
        pending, new = [tail] * batch, [tokens] * batch
        shown = None if visible is None else visible[:, tail - tokens :]
        if visible is not None and shown is not None:
            pending, new = visible.sum(dim=-1).tolist(), shown.sum(dim=-1).tolist()
        if self.queries is not None:
            self.queries.add(queries, tail, shown)
        if not self.due(pending, new):
            return 0
        self.take_over(keys, values, visible, new)
        return tail

    def take_over(
        self,
        keys: Tensor,
        values: Tensor,
        visible: Tensor | None,
        new: Sequence[int],
        at_once: bool = False,
    ) -> None:
        rows: list[Row] = []
        schedule = self.layer.schedule
        # what is stored outlives inference mode
        with torch.inference_mode(False), torch.no_grad():
            for b, clock in enumerate(self.clocks):
                part = slice(None) if visible is None else visible[b]
                own_keys, own_values = keys[b][:, part], values[b][:, part]
                clock = clock.after(own_keys.shape[1])
                joined = self._joined(b, own_keys, own_values, clock.seen)
                if at_once or schedule.due(clock, new[b]):
                    joined = self._cut(b, joined, clock.seen, keys.shape[2])
                    clock = schedule.after_event(clock)
                rows += joined
                self.clocks[b] = clock
            if self.queries is not None:
                self.queries.fold(keys.shape[2])
            order, places = storage_order([len(row[0]) for row in rows])
            stored = [torch.cat([rows[row][part] for row in order]) for part in range(3)]
            self.prefix = from_rows(stored[0], stored[1], None, places, self.prefix.kv_heads)
            self.positions = stored[2]

    def _joined(self, b: int, keys: Tensor, values: Tensor, seen: int) -> list[Row]:
        """Rows of one sequence with its new tokens, keys and values [kv_heads, tokens, dim]."""
        heads, new, _ = keys.shape
        where = torch.arange(seen - new, seen, dtype=torch.int32, device=keys.device)
        rows = []
        for head in range(heads):
            old_keys, old_values, _ = self.prefix.row(b, head)
            start, length = self.prefix.host_rows[b * heads + head]
            old = self.positions[start : start + length]
            added = keys[head].to(old_keys.dtype), values[head].to(old_values.dtype), where
            held = zip((old_keys, old_values, old), added, strict=True)
            first, second, third = (torch.cat(pair) for pair in held)
            rows.append((first, second, third))
        return rows

    def _cut(self, b: int, rows: list[Row], seen: int, tail: int) -> list[Row]:
        """What the method keeps of the rows of one sequence; heads with equally many entries are
        chosen for together."""
        chosen = list(rows)
        lengths = [len(row[0]) for row in rows]
        for length in set(lengths):
            heads = [head for head, count in enumerate(lengths) if count == length]
            states = [torch.stack([rows[head][part] for head in heads])[None] for part in range(3)]
            counts = self.layer.targets[heads]
            if int(counts.min()) >= length:
                continue
            observed = self._observed(b, heads, states, seen, tail)
            keep = self.layer.method.kept(observed, counts)[0]
            for head, kept in zip(heads, keep, strict=True):
                keys, values, positions = (part[kept] for part in rows[head])
                chosen[head] = keys, values, positions
        return chosen

    def _observed(
        self, b: int, heads: list[int], states: list[Tensor], seen: int, tail: int
    ) -> Observed:
        """Some heads of one sequence as the method sees them."""
        about = self.layer.about
        keys, values, positions = states
        if self.queries is None:
            queries = about.queries[:1]
        else:
            queries = self.queries.newest(b, tail).to(keys.device)
        form, projection = about.form, about.output_projection
        which = torch.tensor(heads, device=keys.device)
        if len(heads) < about.keys.shape[1]:
            group = about.group
            members = (which[:, None] * group + torch.arange(group, device=keys.device)).flatten()
            queries = queries[:, members]
            projection = None if projection is None else projection[members]
            if form.sinks is not None:
                form = replace(form, sinks=form.sinks[members])
        held = Held(positions.long(), seen, self.prompts[b], which)
        return replace(
            about,
            queries=queries,
            keys=keys,
            values=values,
            form=form,
            output_projection=projection,
            held=held,
        )

    def lengths(self) -> Tensor:
        return self.prefix.lengths.long()

    def tensors(self) -> list[Tensor]:
        own = [*self.prefix.tensors(), self.positions]
        return own if self.queries is None else own + self.queries.tensors()

    def saved(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        about = self.layer.about
        if about.output_projection is not None:
            raise UserError(
                "a method that looks at the output projection while decoding is not saved; prefill "
                "again where the context is needed"
            )
        tensors = {"positions": self.positions}
        state: dict[str, Any] = {
            "method": self.layer.method.to_dict(),
            "clocks": [astuple(clock) for clock in self.clocks],
            "prompts": self.prompts,
            "num_layers": about.num_layers,
            "softcap": about.form.softcap,
        }
        if about.form.sinks is not None:
            tensors["sinks"] = about.form.sinks
        if self.queries is not None:
            tensors |= {"queries": self.queries.states, "base": self.queries.base}
            state |= {"known": self.queries.known, "columns": self.queries.columns}
        return tensors, state

    def select_rows(self, indices: list[int]) -> BoundedStore:
        chosen = copy.copy(self)
        chosen.prefix = self.prefix.select_rows(indices)
        chosen.clocks = [self.clocks[b] for b in indices]
        chosen.prompts = [self.prompts[b] for b in indices]
        chosen.queries = None if self.queries is None else self.queries.rows(indices)
        return chosen

    def __deepcopy__(self, memo: dict[int, Any]) -> BoundedStore:
        return self.select_rows(list(range(len(self.clocks))))
