"""The distance between a method's predictions and the full cache's, token by token.

A group of passages is read once. The full cache is forced through the tokens that follow; every
method is then forced through the same ones.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from catekv.errors import UserError
from catekv.evaluation.fidelity.passages import Passage
from catekv.evaluation.fidelity.records import FidelityRecord
from catekv.evaluation.fidelity.settings import Column, Settings
from catekv.evaluation.run.asking import as_prompt
from catekv.evaluation.run.forcing import forced, log_likelihoods, reads_by_step
from catekv.evaluation.run.measured import sizes
from catekv.methods import Method, Needs, create
from catekv.methods.per_sequence import NotTogetherError, together

if TYPE_CHECKING:
    from catekv.decode.context import Context, DensePrompt
    from catekv.model import CateKVModel


def divergences(full: Tensor, method: Tensor) -> Tensor:
    """KL(full || method) in nats for every token, fp64 [tokens].

    Args:
        full, method: natural log probabilities [tokens, vocabulary].
    """
    # normalised again: what rounding left over would count as a distance
    reference = full.double().log_softmax(dim=-1)
    other = method.double().log_softmax(dim=-1)
    return (reference.exp() * (reference - other)).sum(dim=-1)


class Group:
    """Passages that are read at once, and what the full cache says of what follows them."""

    def __init__(
        self,
        model: CateKVModel,
        settings: Settings,
        passages: Sequence[Passage],
        needs: Needs,
    ) -> None:
        self.model, self.settings, self.passages = model, settings, passages
        self.dense: DensePrompt = model.observe(
            as_prompt([passage.context_ids for passage in passages]),
            needs=needs,
            chunk_size=settings.chunk_size,
        )
        self.full: Context = self.dense.compress(create("full"))
        self.targets = [self._target(place) for place in range(len(passages))]
        self._scores: dict[bool, list[Tensor]] = {}

    def _target(self, place: int) -> list[int]:
        """The continuation of a text. Of a task, the full cache's greedy answer with what it would
        say next: the end of the answer belongs to it."""
        passage = self.passages[place]
        if passage.continuation is not None:
            return passage.continuation
        assert passage.trial is not None
        context = self.full if len(self.passages) == 1 else self.full.rows([place])
        most = min(passage.trial.sample.max_new_tokens, self.settings.forced)
        answer = self.model.generate_ids(passage.question_ids, context, most).tokens
        (scores,) = forced(self.model, context, [answer], [passage.question_ids], following=True)
        return [*answer, int(scores[-1].argmax())]

    def _force(self, context: Context, singly: bool) -> list[Tensor]:
        questions = [passage.question_ids for passage in self.passages]
        return forced(self.model, context, self.targets, questions, singly=singly)

    def scores(self, singly: bool) -> list[Tensor]:
        """The full cache's log probabilities, fed as the method is: nothing but the method differs
        then."""
        if singly not in self._scores:
            self._scores[singly] = self._force(self.full, singly)
        return self._scores[singly]

    def measure(self, column: Column, methods: Sequence[Method]) -> list[FidelityRecord]:
        """The records of one column; ``NotTogetherError`` for methods that cannot share a batch."""
        context = self.dense.compress(together(methods))
        singly = reads_by_step(context)
        records = []
        rows = zip(
            self.passages, self.targets, self.scores(singly), self._force(context, singly),
            strict=True,
        )  # fmt: skip
        for place, (passage, target, full, found) in enumerate(rows):
            size = sizes(context, place, len(passage.context_ids))
            records.append(
                FidelityRecord(
                    **named(passage, column),
                    tokens=len(target),
                    context_tokens=len(passage.context_ids),
                    kept_share=size["kept_share"],
                    stored_bytes=size["stored_bytes"],
                    full_bytes=size["full_bytes"],
                    divergence=float(divergences(full, found).mean()),
                    agreement=float((full.argmax(-1) == found.argmax(-1)).double().mean()),
                    loss=-float(log_likelihoods(found, target).double().mean()),
                    full_loss=-float(log_likelihoods(full, target).double().mean()),
                )
            )
        return records


def named(passage: Passage, column: Column) -> dict[str, Any]:
    """The fields of a record that say what was measured."""
    return {
        "kind": passage.kind,
        "source": passage.source,
        "length": passage.length,
        "index": passage.index,
        "passage": passage.digest,
        "method": column.label,
        "ratio": column.ratio,
        "column": column.key,
    }


def measure(
    model: CateKVModel,
    settings: Settings,
    passages: Sequence[Passage],
    columns: Sequence[Column],
) -> Iterator[list[FidelityRecord]]:
    """The records of every column for a group of passages; one prefill serves all columns.

    A column that cannot keep as few entries of these passages gets records that say so.
    """
    made: list[tuple[Column, list[Method]]] = []
    for column in columns:
        try:
            methods = [
                column.for_prompt(len(passage.context_ids), model.shape) for passage in passages
            ]
        except UserError as error:
            yield _refusals(column, passages, error)
        else:
            made.append((column, methods))
    if not made:
        return
    needs = Needs.of_all(method for _, methods in made for method in methods)
    group = Group(model, settings, passages, needs)
    for column, methods in made:
        try:
            records = group.measure(column, methods)
        except NotTogetherError:
            records = [
                record
                for passage, method in zip(passages, methods, strict=True)
                for record in Group(model, settings, [passage], method.needs).measure(
                    column, [method]
                )
            ]
        except UserError as error:  # what a method sees only when it holds the prompt
            records = _refusals(column, passages, error)
        yield records


def _refusals(
    column: Column, passages: Sequence[Passage], error: UserError
) -> list[FidelityRecord]:
    return [FidelityRecord(**named(passage, column), refused=str(error)) for passage in passages]
