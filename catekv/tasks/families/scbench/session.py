"""Sessions: one context with several questions, as the samples of their turns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from catekv.tasks.core.parts import Parts
from catekv.tasks.families.scbench.options import MULTI_TURN


@dataclass(frozen=True)
class Turn:
    """One question.

    Attributes:
        question: what follows the context. answer: the right answer, as later turns repeat it.
        scoring: ``rule`` and ``label``, and what else the rule needs.
        prefix: beginning of the answer.
    """

    question: str
    answer: str
    new_tokens: int
    scoring: dict[str, Any]
    prefix: str = ""
    outputs: tuple[str, ...] = ()
    metadata: dict[str, Any] = field(default_factory=dict)


def turn_parts(
    context: str,
    turns: Sequence[Turn],
    number: int,
    mode: str,
    wording: str,
    metadata: dict[str, Any],
) -> Parts:
    """The prompt of one turn. All turns of a session share their context, which is compressed once;
    in multi-turn mode the turns before stand behind it uncompressed, with their right answers."""
    turn = turns[number]
    history = ""
    if mode == MULTI_TURN:
        history = "".join(
            f"{before.question}{before.prefix} {before.answer}\n\n" for before in turns[:number]
        )
    return Parts(
        context=context,
        question=history + turn.question,
        answer_prefix=turn.prefix,
        outputs=turn.outputs or (turn.answer,),
        max_new_tokens=turn.new_tokens,
        wording=wording,
        scoring=turn.scoring,
        metadata={**metadata, **turn.metadata, "turn": number + 1, "mode": mode},
        shared_context=True,
    )
