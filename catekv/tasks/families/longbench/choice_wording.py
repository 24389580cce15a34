"""Our own prompts of LongBench v2."""

from __future__ import annotations

from catekv.tasks.families.longbench.choice_rows import LETTERS, ChoiceRow
from catekv.tasks.families.longbench.prompt_text import PromptText

_OPENING = "Read the text. A question with four possible answers comes at the end.\n\n"
_FORM = "'The correct answer is (X)', where X is the letter of the right answer"


def wrap(row: ChoiceRow, chain_of_thought: bool) -> PromptText:
    """A row in our words."""
    listed = "\n".join(
        f"({letter}) {choice}" for letter, choice in zip(LETTERS, row.choices, strict=True)
    )
    asked = f"\n\nThat was the text.\nQuestion: {row.question}\n{listed}\n\n"
    if chain_of_thought:
        asked += f"Work out step by step which answer is right. End your reply with {_FORM}."
        return PromptText(_OPENING + row.context, asked, "\nReasoning:")
    asked += f"Reply with {_FORM}."
    return PromptText(_OPENING + row.context, asked, "\nReply:")
