"""Prompts of the InfiniteBench tasks, in our own words.

Official rows hold a text, a question and the answer, but no prompt. A prompt is an instruction, the
text, the question and the beginning of the answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from catekv.tasks.core.parts import Parts
from catekv.tasks.metrics import infinitebench

PREFIX = "infinitebench/"
#: name of this set of prompts
WORDING = "english-1"
LETTERS = "ABCD"
#: new tokens of an answer
NEW_TOKENS = {
    "passkey": 6,
    "number_string": 12,
    "kv_retrieval": 50,
    "longbook_sum_eng": 1200,
    "longbook_choice_eng": 40,
    "longbook_qa_eng": 40,
    "longbook_qa_chn": 40,
    "longdialogue_qa_eng": 40,
    "math_find": 3,
    "math_calc": 30_000,
    "code_run": 5,
    "code_debug": 5,
}
#: tasks whose rows are choices between four options
CHOICES = ("longbook_choice_eng", "code_debug")
#: tasks on one text that many rows ask about
_BOOKS = tuple(name for name in NEW_TOKENS if name.startswith("long"))


class Prompt(NamedTuple):
    """``question`` and ``answer`` may hold ``{input}`` and ``{options}``."""

    instruction: str
    question: str
    answer: str


PROMPTS = {
    "passkey": Prompt(
        "One important number is buried in a lot of text that does not matter. Look for it and "
        "remember it.",
        "{input}",
        " The number is",
    ),
    "number_string": Prompt(
        "One row of digits is buried in a lot of text that does not matter. Look for it and "
        "remember every digit.",
        "{input}",
        " The digits are",
    ),
    "kv_retrieval": Prompt(
        "The JSON object below maps keys to values. You will be asked for the value of one key.",
        "{input}\nWhich value does the object hold for this key?",
        " The value is",
    ),
    "longbook_sum_eng": Prompt(
        "Here is a book. Read it to the end: you are to summarise it.",
        "Write a summary of the book above that covers its whole course.",
        " Summary:",
    ),
    "longbook_choice_eng": Prompt(
        "Here is a book. A question with four possible answers follows, of which one is right.",
        "Question: {input}\n{options}\nName the letter of the right answer.",
        " The right letter is",
    ),
    "longbook_qa_eng": Prompt(
        "Here is a book. A question about it follows; answer it as briefly as you can.",
        "Question: {input}",
        " Answer:",
    ),
    "longbook_qa_chn": Prompt(
        "下面是一本书。请通读全书，然后用最简短的话回答书后的问题。",  # noqa: RUF001
        "问题：{input}",  # noqa: RUF001
        " 答案：",  # noqa: RUF001
    ),
    "longdialogue_qa_eng": Prompt(
        "Here is a script. In one line the name of a character is replaced by $$MASK$$. Find out "
        "who that is.",
        "Which character's name is hidden by $$MASK$$ in the script above? Give the name alone.",
        " The name is",
    ),
    "math_find": Prompt(
        "You will be asked about the numbers of the list below.",
        "{input}\nAnswer with the number alone.",
        " The number is",
    ),
    "math_calc": Prompt(
        "Work out the sum below term by term, from left to right.",
        "Give the value after every operation in the sum above, in order and separated by commas. "
        "Leave out the first term, and write nothing else.",
        " The values are",
    ),
    "code_run": Prompt(
        "The Python functions below are simple, but some of them call others.",
        "What exactly does this call return: {input}\nAnswer with the number alone.",
        " It returns",
    ),
    "code_debug": Prompt(
        "One function of the code below has a defect that was put in on purpose and that is plain "
        "to see.",
        "Which of these functions has the defect?\n{options}\nName its letter and the function.",
        " The function with the defect is",
    ),
}


@dataclass(frozen=True)
class Item:
    """One row: the text, what is asked, the label that the rule takes, and an answer that it counts
    as right."""

    text: str
    asked: str
    label: Any
    outputs: tuple[str, ...]
    options: Sequence[str] = ()


def parts(
    task: str,
    item: Item,
    *,
    max_new_tokens: int | None = None,
    mark: str = "",
    metadata: dict[str, Any] | None = None,
) -> Parts:
    """The prompt of a row.

    Args:
        task: name without ``infinitebench/``.
        max_new_tokens: default by task.
        mark: the piece of the text whose place is recorded as the answer's depth.

    Raises:
        UserError: a label that the rule of the task cannot read.
    """
    infinitebench.rate(task, "", item.label)
    prompt = PROMPTS[task]
    options = "\n".join(
        f"{letter}. {text}" for letter, text in zip(LETTERS, item.options, strict=False)
    )

    def filled(text: str) -> str:
        return text.format(input=item.asked.strip(), options=options)

    context = f"{prompt.instruction}\n\n{item.text}\n\n"
    scoring: dict[str, Any] = {"label": item.label}
    if item.options:
        scoring["options"] = list(item.options)
    return Parts(
        context=context,
        question=filled(prompt.question),
        answer_prefix=filled(prompt.answer),
        outputs=item.outputs,
        max_new_tokens=max_new_tokens or NEW_TOKENS[task],
        wording=WORDING,
        scoring=scoring,
        depths=(context.find(mark) / len(context),) if mark else (),
        metadata=metadata or {},
        uncut=len(prompt.instruction),
        shared_context=task in _BOOKS,
    )
