"""Our own prompts: what stands before a context, after it, and at the start of the answer.

Scores of these prompts compare caches with each other on equal text; they are not comparable with
published LongBench numbers, which need the official prompt file (see :mod:`.prompt_files`).
"""

from __future__ import annotations

from catekv.tasks.families.longbench.chinese_wording import CHINESE
from catekv.tasks.families.longbench.prompt_text import PromptText

#: prompt set that is recorded with samples
NAME = "longbench-1"


_PASSAGES = PromptText(
    "Below are several passages, of which only some matter. Find in them what the question at the "
    "end asks for.\n\n",
    "\n\nReply with the answer itself, as short as it can be, and with nothing else.\n"
    "Question: {input}",
    "\nAnswer:",
)

_ENGLISH = {
    "narrativeqa": PromptText(
        "Read this book or film script. A question about it comes at the end.\n\n",
        "\n\nThat was the text. Give a short answer, a few words at most, without saying why.\n"
        "Question: {input}",
        "\nAnswer:",
    ),
    "qasper": PromptText(
        "Read this scientific paper. A question about it comes at the end.\n\n",
        "\n\nThat was the paper. Answer briefly. Say 'unanswerable' if the paper does not tell, "
        "and 'yes' or 'no' where that is enough.\nQuestion: {input}",
        "\nAnswer:",
    ),
    "multifieldqa_en": PromptText(
        "Read this document. A question about it comes at the end.\n\n",
        "\n\nThat was the document. Reply with the answer only.\nQuestion: {input}",
        "\nAnswer:",
    ),
    "hotpotqa": _PASSAGES,
    "2wikimqa": _PASSAGES,
    "musique": _PASSAGES,
    "gov_report": PromptText(
        "This is a report of a public authority. It is to be summarised.\n\n",
        "\n\nThat was the report. Sum up on one page what it found and recommends.",
        "\nSummary:",
    ),
    "qmsum": PromptText(
        "These are the minutes of a meeting, word for word.\n\n",
        "\n\nThat was the meeting. Reply to the request in a few sentences.\nRequest: {input}",
        "\nReply:",
    ),
    "multi_news": PromptText(
        "These news articles are about one and the same event.\n\n",
        "\n\nThose were the articles. Sum up on one page what all of them report.",
        "\nSummary:",
    ),
    "trec": PromptText(
        "Every question below is followed by its type. Name the type of the last one.\n\n",
        "\n{input}",
    ),
    "triviaqa": PromptText(
        "Every passage below is followed by a question and its answer. Answer the last question "
        "in the same way.\n\n",
        "\n\n{input}",
    ),
    "samsum": PromptText(
        "Every conversation below is followed by a summary of it in a sentence or two. Write the "
        "one that is missing at the end.\n\n",
        "\n\n{input}",
    ),
    "passage_count": PromptText(
        "Some of the paragraphs below are exact copies of others.\n\n",
        "\n\nCount the different paragraphs above, each of them once however often it is "
        "repeated. Reply with the number alone.",
        "\nNumber of different paragraphs:",
    ),
    "passage_retrieval_en": PromptText(
        "The paragraphs below are numbered. At the end one of them is summed up.\n\n",
        "\n\nSummary: {input}\n\nWhich paragraph is summed up? Reply in the form 'Paragraph 3'.",
        "\nAnswer:",
    ),
    "lcc": PromptText(
        "The source code below breaks off after a line. Write the line that follows.\n",
        "",
        "\nThe line that follows:\n",
    ),
    "repobench-p": PromptText(
        "Parts of a project's source code, then a file that breaks off after a line. Write the "
        "line that follows.\n",
        "{input}",
        "\nThe line that follows:\n",
    ),
}

PARTS: dict[str, PromptText] = {**_ENGLISH, **CHINESE}


def wrap(task: str, context: str, question: str) -> PromptText:
    """A row in our words."""
    opening, asking, answer_prefix = PARTS[task]
    before, _, after = asking.partition("{input}")
    asked = f"{before}{question}{after}" if "{input}" in asking else before
    return PromptText(opening + context, asked, answer_prefix)
