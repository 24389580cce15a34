"""InfiniteBench as a family of tasks."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any

from catekv.tasks.core.sample import Sample
from catekv.tasks.core.task import BuildRequest, Family, Task
from catekv.tasks.drawing.drawn_samples import fitted, is_drawn
from catekv.tasks.families.infinitebench import built_in, drawn, small
from catekv.tasks.families.infinitebench.options import CodeOptions, FindOptions, HiddenOptions
from catekv.tasks.families.infinitebench.prompts import NEW_TOKENS, PREFIX
from catekv.tasks.families.infinitebench.rows import FILES, metric_name, read, row_parts
from catekv.tasks.families.infinitebench.scoring import score
from catekv.tasks.rows.row_samples import limited
from catekv.tasks.rows.sources import DataOptions, Hub, load_rows
from catekv.tasks.small.parts import is_small

_OPTIONS: dict[str, Any] = {
    "passkey": HiddenOptions(),
    "number_string": HiddenOptions(),
    "kv_retrieval": HiddenOptions(),
    "math_find": FindOptions(),
    "code_run": CodeOptions(),
}
_HOW_TO_GET = (
    "download {name}.jsonl of the data set xinrongzhang2022/InfiniteBench from huggingface.co"
)


def generate(request: BuildRequest) -> Iterator[Sample]:
    """Samples one by one: of a file, or drawn anew.

    The six tasks without a natural text are drawn unless a file is given, and fill the length; rows
    of a file that are longer are refused, because a cut changes their answers. The others lose the
    middle of a text that is too long, as in the published runs.
    """
    name = request.task.name.removeprefix(PREFIX)
    synthetic = name in drawn.PLANS
    if is_drawn(request.options, by_default=synthetic):
        english = drawn.PLANS if synthetic else built_in.PLANS
        plan = (small.PLANS if is_small(request.wording) else english)[name]
        for index in range(request.first, request.first + request.count):
            yield fitted(request, index, plan(request, index))
        return
    rows = load_rows(
        request.task.name,
        request.options,
        files=(f"{name}.jsonl",),
        hub=Hub("xinrongzhang2022/InfiniteBench", None, name),
        built_in=list,
        how_to_get=_HOW_TO_GET.format(name=name),
    )
    every = rows.parsed(lambda position, row: row_parts(name, position, row))
    last = request.first + request.count
    for index, parts in enumerate(islice(every, request.first, last), request.first):
        yield limited(request, index, parts, rows.data, None if synthetic else "middle")


def _task(name: str) -> Task:
    return Task(
        name=PREFIX + name,
        options=_OPTIONS.get(name, DataOptions()),
        max_new_tokens=NEW_TOKENS[name],
        metric=metric_name(name),
        generate=generate,
        score=score,
        natural=name not in drawn.PLANS,
    )


FAMILY = Family("infinitebench", tuple(map(_task, NEW_TOKENS)), read, FILES.recognise, rank=5)
