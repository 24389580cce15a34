"""Every example without compression and with every method, row by row."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from catekv.errors import UserError
from experiments.simcalkv.benchmarks import Example
from experiments.simcalkv.journal import Measured, Rows
from experiments.simcalkv.kv_methods import Choice
from experiments.simcalkv.results import Pair

if TYPE_CHECKING:
    from catekv.model import CateKVModel
    from experiments.simcalkv.comparison import Side

#: the side without compression
UNCOMPRESSED = Choice("full", 0.0)


def compare(
    model: CateKVModel,
    examples: Sequence[Example],
    choices: Sequence[Choice],
    journal: Rows,
    progress: Callable[[str], None] = lambda text: None,
) -> list[tuple[list[Pair], list[tuple[str, str]]]]:
    """Every example without compression and with every method.

    The first example is measured once more beforehand and thrown away: first calls load kernels.
    Every example is in the journal once it is measured; those which it holds without a failure are
    taken from there.

    Returns:
        Per choice the measured pairs, and identifier and error of what failed.
    """
    for choice in choices:
        choice.method().validate(model.shape)
    held = {row: measured.value for row, measured in journal.rows.items()}
    known = {row: sides for row, sides in held.items() if not any(map(_failed, sides))}
    if len(known) < len(examples):
        for choice in (UNCOMPRESSED, *choices):
            attempt(model, examples[0], choice)
    found: list[tuple[list[Pair], list[tuple[str, str]]]] = [([], []) for _ in choices]
    for row, example in enumerate(examples):
        if row in known:
            before, *others = map(_side_of, known[row])
        else:
            before = attempt(model, example, UNCOMPRESSED)
            others = [
                before if isinstance(before, str) else attempt(model, example, choice)
                for choice in choices
            ]
            journal.append(Measured(row, [_plain(side) for side in (before, *others)]))
        for after, (pairs, failed) in zip(others, found, strict=True):
            if isinstance(before, str) or isinstance(after, str):
                failed.append((example.identifier, str(after)))
            else:
                pairs.append(Pair(example, before, after))
        progress(f"{row + 1}/{len(examples)}")
    return found


def _plain(side: Side | str) -> dict[str, Any] | str:
    """A side as JSON."""
    return side if isinstance(side, str) else asdict(side)


def _failed(side: dict[str, Any] | str) -> bool:
    return isinstance(side, str)


def _side_of(plain: dict[str, Any]) -> Side | str:
    from experiments.simcalkv.comparison import Side

    return Side(**(plain | {"choice_scores": tuple(plain["choice_scores"])}))


def attempt(model: CateKVModel, example: Example, choice: Choice) -> Side | str:
    """One side of a comparison, or what went wrong with it."""
    from experiments.simcalkv.comparison import measure

    try:
        method = choice.of_length(choice.method(), len(example.context_ids), model.shape)
        return measure(model, example, method)
    except (UserError, RuntimeError) as error:
        return f"{type(error).__name__}: {' '.join(str(error).split())}"
