"""Prompts of the summarisation tasks, in our own words."""

from __future__ import annotations

from typing import Any, NamedTuple

from catekv.tasks.core.parts import Parts

PREFIX = "summarization/"
#: name of this set of prompts
WORDING = "english-1"
#: new tokens of an answer
NEW_TOKENS = {"cnn_dailymail": 128, "xsum": 64, "gov_report": 512}


class Prompt(NamedTuple):
    instruction: str
    question: str
    answer: str


PROMPTS = {
    "cnn_dailymail": Prompt(
        "Below is a news article. Read it: you are to say what matters in it.",
        "State the main points of the article above in three or four short sentences, one a line.",
        " Main points:",
    ),
    "xsum": Prompt(
        "Below is a news article. Read it: you are to say what it is about.",
        "Say in one single sentence what the article above reports.",
        " The article reports:",
    ),
    "gov_report": Prompt(
        "Below is a report by a public authority. Read it: you are to sum it up.",
        "Sum up the report above on one page: its occasion, what was found, what is recommended.",
        " Summary:",
    ),
}


def parts(task: str, text: str, summaries: tuple[str, ...], metadata: dict[str, Any]) -> Parts:
    """The prompt of a text with its reference summaries."""
    prompt = PROMPTS[task]
    before = f"{prompt.instruction}\n\n"
    return Parts(
        context=f"{before}{text}\n\n",
        question=prompt.question,
        answer_prefix=prompt.answer,
        outputs=summaries,
        max_new_tokens=NEW_TOKENS[task],
        wording=WORDING,
        metadata=metadata,
        uncut=len(before),
        document_end=len(before) + len(text),
        separator="\n\n",
    )
