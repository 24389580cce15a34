"""MRCR as a family of tasks, one for each number of needles."""

from __future__ import annotations

from collections.abc import Iterator

from catekv.tasks.core.sample import Sample
from catekv.tasks.core.task import BuildRequest, Family, Task
from catekv.tasks.drawing.drawn_samples import fitted, is_drawn
from catekv.tasks.families.mrcr import small
from catekv.tasks.families.mrcr.drawn import needles_of, plan
from catekv.tasks.families.mrcr.options import ConversationOptions
from catekv.tasks.families.mrcr.rows import NEEDLES, read, recognise, row_parts, task_name
from catekv.tasks.metrics import mrcr
from catekv.tasks.rows.row_samples import limited
from catekv.tasks.rows.sources import Hub, load_rows

#: the longest text of 200 words, and its prefix
_NEW_TOKENS = 700


def generate(request: BuildRequest) -> Iterator[Sample]:
    """Samples one by one: of a file, or drawn anew. A row that is too long is refused: a cut may
    take the answer."""
    if is_drawn(request.options, by_default=True):
        for index in range(request.first, request.first + request.count):
            yield fitted(request, index, plan(request, index))
        return
    needles = needles_of(request.task.name)
    rows = load_rows(
        request.task.name,
        request.options,
        files=(f"{needles}needle.parquet", "mrcr.parquet", "mrcr.jsonl"),
        hub=Hub("openai/mrcr", None, "train"),
        built_in=list,
        how_to_get="download the Parquet files of the data set openai/mrcr",
    )
    every = [parts for parts in rows.parsed(row_parts) if parts.metadata["needles"] == needles]
    last = request.first + request.count
    for index, parts in enumerate(every[request.first : last], request.first):
        yield limited(request, index, parts, rows.data, None)


def score(prediction: str, sample: Sample) -> dict[str, float]:
    """``official`` is difflib's ratio behind the prefix (0 without it), ``strict`` 1 for the exact
    text; ``instance``: the text is most like the one that was meant."""
    answer, prefix = sample.outputs[0], sample.scoring["prefix"]
    if "stop" in sample.scoring:  # the embedded model's texts end there, and others may follow
        prediction = prediction.partition(sample.scoring["stop"])[0]
    rated = mrcr.rate(prediction, answer, prefix)
    scores = {
        "official": rated.ratio,
        "strict": float(mrcr.body(prediction).rstrip() == answer),
        "prefix_ok": float(rated.prefix_ok),
    }
    if "texts" in sample.scoring:
        nearest = mrcr.nearest(prediction, prefix, sample.scoring["texts"])
        scores["instance"] = float(nearest == sample.scoring["instance"])
    return scores


def _task(needles: int) -> Task:
    return Task(
        name=task_name(needles),
        options=ConversationOptions(),
        max_new_tokens=_NEW_TOKENS,
        metric="ratio",
        generate=generate,
        score=score,
        small=needles <= small.MOST,
    )


FAMILY = Family("mrcr", tuple(map(_task, NEEDLES)), read, recognise)
