"""The summarisation tasks as a family."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

from catekv.errors import UserError
from catekv.tasks.core.parts import Parts, count, counted, prompt_format_of
from catekv.tasks.core.sample import Sample
from catekv.tasks.core.task import BuildRequest, Family, Task
from catekv.tasks.drawing import stories
from catekv.tasks.drawing.drawn_samples import Plan, fitted, is_drawn, story_seed
from catekv.tasks.families.summarization.prompts import NEW_TOKENS, PREFIX, parts
from catekv.tasks.families.summarization.rows import METRIC, fewer_shots, read, recognise, row_parts
from catekv.tasks.metrics import rouge_google, rouge_l_pltrdy, summaries
from catekv.tasks.rows.row_samples import limited
from catekv.tasks.rows.sources import DataOptions, Hub, load_rows
from catekv.tasks.small import stories as small_stories
from catekv.tasks.small.parts import LIST_TOKENS, is_small, story_plan

#: facts that a built-in text reports and its summary states again
_FACTS = {"cnn_dailymail": 3, "xsum": 1, "gov_report": 10}
_SMALL_FACTS = 4
_FILES = {
    "cnn_dailymail": ("cnn_dailymail.jsonl", "cnn_dailymail.csv", "cnn_dailymail.parquet"),
    "xsum": ("xsum.jsonl", "xsum.csv", "xsum.parquet"),
    "gov_report": ("gov_report.jsonl",),
}
_HUB = {
    "cnn_dailymail": Hub("abisee/cnn_dailymail", "3.0.0", "test"),
    "xsum": Hub("EdinburghNLP/xsum", None, "test"),
}
_HOW_TO_GET = {
    "cnn_dailymail": "download the test split of abisee/cnn_dailymail, version 3.0.0, from "
    "huggingface.co",
    "xsum": "download the test split of EdinburghNLP/xsum from huggingface.co",
    "gov_report": "download gov_report.jsonl of LongBench (data.zip of THUDM/LongBench on "
    "huggingface.co)",
}


def _built_in(request: BuildRequest, name: str, index: int) -> Plan:
    """Facts of the synthetic world strewn over prose, and stated again in other words."""
    seed = story_seed(request, index)
    if is_small(request.wording):
        if name == "xsum":
            return story_plan(small_stories.needles(seed))
        asked = small_stories.summary(seed, _SMALL_FACTS)
        return story_plan(asked, max_new_tokens=LIST_TOKENS)
    report = stories.reported(seed, _FACTS[name])
    summary = ("\n" if name == "cnn_dailymail" else " ").join(report.summary)
    return Plan(lambda units, extra: parts(name, report.story.text(units), (summary,), {}))


def generate(request: BuildRequest) -> Iterator[Sample]:
    """Samples one by one. An article that is too long loses its end, a few-shot prompt its first
    examples."""
    name = request.task.name.removeprefix(PREFIX)
    if is_drawn(request.options):
        for index in range(request.first, request.first + request.count):
            yield fitted(request, index, _built_in(request, name, index))
        return
    rows = load_rows(
        request.task.name,
        request.options,
        files=_FILES[name],
        hub=_HUB.get(name),
        built_in=list,
        how_to_get=_HOW_TO_GET[name],
    )
    every = rows.parsed(lambda position, row: row_parts(name, position, row))
    last = request.first + request.count
    for index, one in enumerate(islice(every, request.first, last), request.first):
        if one.without_template:
            yield _with_fewer_shots(request, index, one, rows.data)
        else:
            yield limited(request, index, one, rows.data, "end")


def _with_fewer_shots(request: BuildRequest, index: int, whole: Parts, data: str) -> Sample:
    """A few-shot prompt with as many of its last examples as fit."""
    wrapped = prompt_format_of(request, whole)
    answer = request.max_answer_tokens or whole.max_new_tokens
    tokens = all_tokens = count(wrapped, whole)
    kept: Parts | None = whole
    while kept is not None:
        tokens = count(wrapped, kept)
        if not request.length or tokens + answer <= request.length:
            cut = all_tokens - tokens
            return counted(request, index, kept, tokens, answer, data=data, cut_tokens=cut)
        kept = fewer_shots(kept)
    raise UserError(
        f"{request.task.name}, sample {index}: {tokens + answer} tokens are needed without any "
        f"example, {request.length} are allowed; raise the length"
    )


def score(prediction: str, sample: Sample) -> dict[str, float]:
    """All kinds of ROUGE, each of the reference that is best for it.

    Returns:
        ``rouge1``, ``rouge2``, ``rougeL``, ``rougeLsum``: rouge_score with stemmer, one sentence a
        line; ``rougeLsum_as_given``: the same with the lines of the texts as they are;
        ``rouge_l_pltrdy``: ROUGE-L of LongBench's library. ``official`` is ``rougeLsum``, for
        gov_report ``rouge_l_pltrdy``; ROUGE has no stricter reading, so ``strict`` is the same.
    """
    references = list(sample.outputs)
    name = sample.task.removeprefix(PREFIX)
    scores = summaries.score(name, prediction, references)
    as_given = rouge_google(prediction, references, ("rougeLsum",), stemmer=True)
    scores["rougeLsum_as_given"] = as_given["rougeLsum"].f
    scores["rouge_l_pltrdy"] = rouge_l_pltrdy(prediction, references).f
    official = scores[METRIC[name]]
    return {"official": official, "strict": official, **scores}


def _task(name: str) -> Task:
    return Task(
        name=PREFIX + name,
        options=DataOptions(),
        max_new_tokens=NEW_TOKENS[name],
        metric=METRIC[name],
        generate=generate,
        score=score,
        natural=True,
    )


FAMILY = Family("summarization", tuple(map(_task, NEW_TOKENS)), read, recognise, rank=6)
