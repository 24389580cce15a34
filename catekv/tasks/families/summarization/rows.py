"""Rows of CNN/DailyMail, XSum and GovReport, and few-shot prompt files.

======================  ==========================  =============================================
rows                    text and summary            from
======================  ==========================  =============================================
CNN/DailyMail           article, highlights         the data set as published (3.0.0)
XSum                    document, summary           the data set as published
GovReport               report, summary             the data set as published
GovReport               context, answers            LongBench
few-shot                article, summary_gt, stop   experiments of the H2O kind: ``article`` holds
                                                    solved examples and the question, ready-made
======================  ==========================  =============================================
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from catekv.errors import UserError
from catekv.tasks.core.parts import OFFICIAL, Parts, unfitted
from catekv.tasks.core.sample import Sample
from catekv.tasks.families.summarization.prompts import NEW_TOKENS, PREFIX, parts
from catekv.tasks.rows.rows import count_field, identity_field, shown
from catekv.tasks.rows.sources import file_rows

_FIELDS = (("article", "highlights"), ("document", "summary"), ("report", "summary"))
#: mark between the examples of a few-shot prompt
SHOT = "###"
#: settings of a few-shot file that are not used here: answers are greedy
_SAMPLING = ("temperature", "top_p", "n", "logprobs")


def row_parts(task: str, position: int, row: dict[str, Any]) -> Parts:
    """The prompt of a row.

    Raises:
        KeyError, ValueError: a missing field, or a text that is none.
    """
    if "summary_gt" in row:
        return _few_shot(task, position, row)
    if "context" in row and "answers" in row:
        text, summaries = row["context"], row["answers"]
    else:
        known = [pair for pair in _FIELDS if set(pair) <= row.keys()]
        if not known:
            raise ValueError(
                "no text with a summary; expected article and highlights, document and summary, "
                "report and summary, or context and answers"
            )
        text, summaries = row[known[0][0]], [row[known[0][1]]]
    return parts(task, _text(text), tuple(map(_text, _list(summaries))), _identity(row, position))


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"expected a text and its summary, found {shown(value)}")
    return value


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list) or not value:
        raise ValueError(f"field 'answers' is {shown(value)}, expected at least one answer")
    return value


def _identity(row: dict[str, Any], position: int) -> dict[str, Any]:
    return {"id": identity_field(row, "id" if "id" in row else "_id", position)}


def _few_shot(task: str, position: int, row: dict[str, Any]) -> Parts:
    """The prompt as it is: no chat template, and the answer ends at the mark of the next shot."""
    text = _text(row["article"])
    asked = question_start(text)
    metadata = _identity(row, position)
    settings = {name: row[name] for name in _SAMPLING if name in row}
    if settings:
        metadata["settings_not_used"] = settings
    if asked is None:
        metadata["query_aware_only"] = True
    return Parts(
        context=text[:asked],
        question=text[asked:] if asked is not None else "",
        answer_prefix="",
        outputs=(_text(row["summary_gt"]),),
        max_new_tokens=count_field(row, "max_tokens", NEW_TOKENS[task], least=1),
        wording=OFFICIAL,
        stop=_stop(row),
        metadata=metadata,
        without_template=True,
    )


def _stop(row: dict[str, Any]) -> tuple[str, ...]:
    """The texts that end an answer, by default the mark of the next shot.

    Raises:
        ValueError: one is no text, or empty and so found in every answer.
    """
    stop = row.get("stop")
    if stop is None or stop == []:
        return (SHOT,)
    texts = [stop] if isinstance(stop, str) else stop
    if not isinstance(texts, list) or not all(isinstance(text, str) and text for text in texts):
        raise ValueError(f"field 'stop' is {shown(stop)}, expected a text or a list of texts")
    return tuple(texts)


def question_start(text: str) -> int | None:
    """Where the last request for a summary starts, or None if that is not clear.

    It is the last paragraph, and the shots before hold the same line.
    """
    place = text.rstrip().rfind("\n\n")
    request = text[place:].strip()
    if place < 0 or "\n" in request or text.count(f"\n{request}\n") < 2:
        return None
    return place


def fewer_shots(given: Parts) -> Parts | None:
    """The prompt without its first solved example; None if there is none left."""
    first = given.context.find(SHOT)
    second = given.context.find(SHOT, first + len(SHOT))
    if first < 0 or second < 0:
        return None
    return replace(given, context=given.context[:first] + given.context[second:])


def task_of(row: dict[str, Any], path: Path) -> str | None:
    """The task that the rows' fields or the file's name say."""
    if {"article", "highlights"} <= row.keys():
        return "cnn_dailymail"
    if {"report", "summary"} <= row.keys():
        return "gov_report"
    if {"article", "summary_gt"} <= row.keys() or {"document", "summary"} <= row.keys():
        for part in (path.stem.lower(), *(part.lower() for part in reversed(path.parts[:-1]))):
            for sign, name in (("xsum", "xsum"), ("cnn", "cnn_dailymail")):
                if sign in part:
                    return name
    return "xsum" if {"document", "summary", "id"} <= row.keys() else None


def read(path: Path | str, task: str | None = None) -> list[Sample]:
    """Samples of a file (JSONL, JSON, CSV or Parquet), in file order."""
    file = Path(path)
    rows = file_rows(file)
    name = (task or task_of(rows.rows[0], file) or "").removeprefix(PREFIX)
    if name not in NEW_TOKENS:
        raise UserError(f"{file}: neither its rows nor its name say the task; pass task=")

    def parse(position: int, row: dict[str, Any]) -> Sample:
        return unfitted(PREFIX + name, METRIC[name], position, row_parts(name, position, row))

    return list(rows.parsed(parse))


def recognise(row: dict[str, Any], path: Path) -> str | None:
    """Rows of CNN/DailyMail, XSum and GovReport as published, and few-shot files."""
    name = task_of(row, path)
    return PREFIX + name if name else None


#: short name of a task's official score
METRIC = {"cnn_dailymail": "rougeLsum", "xsum": "rougeLsum", "gov_report": "rouge_l_pltrdy"}
