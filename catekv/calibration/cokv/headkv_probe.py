"""HeadKV's score of every query head: how much it looks at the answer while it is written.

HeadKV-R2 (*Not All Heads Matter*, ICLR 2025) asks needle questions with the full cache. At every
decoded token a head scores the attention it gives to tokens of the needle that are among its
highest, over the needle's length; only trials that are answered right count. The result is the
published JSON, ``{"layer-head": [score of a trial, ...]}``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from catekv import tasks
from catekv.calibration.cokv.coalitions import answer_all
from catekv.errors import UserError
from catekv.evaluation.run.asking import Trial
from catekv.files import write_json
from catekv.kernels.ragged import RaggedPrefix
from catekv.methods.base import Needs, Observed, Selection
from catekv.methods.full import KeepsEverything
from catekv.methods.stores.base import DecodeStore, WholePrefix

if TYPE_CHECKING:
    from catekv.model import CateKVModel
    from catekv.tasks.core.sample import Sample

#: A trial counts if its answer scores more than this (token F1 of 50 in the paper).
COUNTED_ABOVE = 0.5


@dataclass(frozen=True)
class _Watch(KeepsEverything):
    """Keeps everything and watches where decoded tokens look."""

    name: ClassVar[str] = "headkv-probe"

    needle: tuple[int, ...] = ()
    found: dict[int, list[Tensor]] = field(default_factory=dict)

    def decode_store(
        self,
        prefix: RaggedPrefix,
        observed: Observed,
        valid: Tensor | None,
        selection: Selection,
    ) -> DecodeStore:
        return _WatchedStore(prefix, self.needle, self.found.setdefault(observed.layer, []))


class _WatchedStore(WholePrefix):
    def __init__(self, prefix: RaggedPrefix, needle: tuple[int, ...], found: list[Tensor]):
        self.prefix, self.needle, self.found = prefix, needle, found

    def __deepcopy__(self, memo: dict[int, Any]) -> _WatchedStore:
        # answers fork the cache; what they look at is still written into one list
        return self

    def absorb(
        self, queries: Tensor, keys: Tensor, values: Tensor, scaling: float, visible: Tensor | None
    ) -> int:
        """Record one number per query head for every decoded token (single queries)."""
        if queries.shape[2] == 1:
            context, _ = self.prefix.dense()
            group = queries.shape[1] // context.shape[1]
            every = torch.cat([context, keys], dim=2).repeat_interleave(group, dim=1)
            weights = (queries.float() @ every.float().mT * scaling).softmax(dim=-1)[0, :, 0]
            needle = torch.tensor(self.needle, device=weights.device)
            best = weights.topk(len(needle), dim=-1).indices
            hit = torch.isin(best, needle)
            self.found.append((weights.gather(-1, best) * hit).sum(dim=-1).cpu() / len(needle))
        return 0

    def lengths(self) -> Tensor:
        return self.prefix.lengths.long()

    def tensors(self) -> list[Tensor]:
        return self.prefix.tensors()


def needle_positions(trial: Trial, tokenizer: Any) -> tuple[int, ...]:
    """Positions in the context of the tokens of the sample's answers; empty if they are not there
    word by word."""
    ids = trial.context_ids
    found: set[int] = set()
    for answer in trial.sample.outputs:
        for text in (" " + answer, answer):
            wanted = list(tokenizer.encode(text, add_special_tokens=False))
            starts = [
                start
                for start in range(len(ids) - len(wanted) + 1)
                if wanted and ids[start : start + len(wanted)] == wanted
            ]
            found.update(place for start in starts for place in range(start, start + len(wanted)))
            if starts:
                break
    return tuple(sorted(found))


def probe(
    model: CateKVModel,
    samples: Sequence[Sample],
    *,
    chat_template: str = "auto",
    advance: Callable[[], object] = lambda: None,
) -> dict[str, list[float]]:
    """Scores by ``"layer-head"`` (query heads), one number per trial that counts.

    Raises:
        UserError: no sample was answered right with its answer in the context.
    """
    rows: list[Tensor] = []
    for sample in samples:
        trial = Trial.of(sample, model.tokenizer, "agnostic", chat_template)
        needle = needle_positions(trial, model.tokenizer)
        advance()
        if not needle:
            continue
        watch = _Watch(needle=needle)
        dense = model.observe(trial.context_ids, needs=Needs())
        (text,) = answer_all(model, dense.compress(watch), trial)
        if float(tasks.score(text, sample)["official"]) > COUNTED_ABOVE and watch.found:
            steps = [torch.stack(watch.found[layer]).mean(dim=0) for layer in sorted(watch.found)]
            rows.append(torch.stack(steps))
    if not rows:
        raise UserError(
            "no sample was answered right with its answer word by word in the context; probe with "
            "a needle task, such as ruler/niah_multikey_1"
        )
    table = torch.stack(rows)
    return {
        f"{layer}-{head}": [round(float(one), 8) for one in table[:, layer, head]]
        for layer in range(table.shape[1])
        for head in range(table.shape[2])
    }


def write_probe(path: str | Path, scores: dict[str, list[float]]) -> Path:
    """One line of JSON, the published layout."""
    return write_json(path, scores, indent=None)
