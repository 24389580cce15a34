"""GraphWalks as a family of tasks."""

from __future__ import annotations

from collections.abc import Iterator

from catekv.tasks.core.sample import Sample
from catekv.tasks.core.task import BuildRequest, Family, Task
from catekv.tasks.drawing.drawn_samples import fitted, is_drawn
from catekv.tasks.families.graphwalks import small
from catekv.tasks.families.graphwalks.drawn import new_tokens, plan
from catekv.tasks.families.graphwalks.options import WalkOptions
from catekv.tasks.families.graphwalks.rows import PREFIX, read, recognise, row_parts
from catekv.tasks.metrics import graphwalks
from catekv.tasks.rows.row_samples import limited
from catekv.tasks.rows.sources import Hub, load_rows


def generate(request: BuildRequest) -> Iterator[Sample]:
    """Samples one by one: of a file, or drawn anew. A row that is too long is refused, because a
    cut changes its answer."""
    if is_drawn(request.options, by_default=True):
        for index in range(request.first, request.first + request.count):
            yield fitted(request, index, plan(request, index))
        return
    operation = request.task.name.removeprefix(PREFIX)
    rows = load_rows(
        request.task.name,
        request.options,
        files=("graphwalks.parquet", "graphwalks.jsonl"),
        hub=Hub("openai/graphwalks", None, "train"),
        built_in=list,
        how_to_get="download the Parquet files of the data set openai/graphwalks",
    )
    every = [
        parts
        for parts in rows.parsed(row_parts)
        if (parts.metadata["operation"] == "parents") == (operation == "parents")
    ]
    last = request.first + request.count
    for index, parts in enumerate(every[request.first : last], request.first):
        yield limited(request, index, parts, rows.data, None)


def score(prediction: str, sample: Sample) -> dict[str, float]:
    """``official`` is the F1 of the listed nodes (1 where none is right and none listed),
    ``strict`` 1 for exactly these; ``parse_failed`` counts answers without a list."""
    if "walk" in sample.scoring:
        prediction = small.final_answer(prediction)
    walk = graphwalks.rate(prediction, sample.scoring["nodes"])
    return {
        "official": walk.f1,
        "strict": float(walk.exact),
        "precision": walk.precision,
        "recall": walk.recall,
        "parse_failed": float(walk.parse_failed),
    }


def _task(operation: str) -> Task:
    return Task(
        name=PREFIX + operation,
        options=WalkOptions(),
        max_new_tokens=new_tokens(WalkOptions().largest),
        metric="f1",
        generate=generate,
        score=score,
        small=operation == small.OPERATION,
    )


FAMILY = Family("graphwalks", (_task("bfs"), _task("parents")), read, recognise)
