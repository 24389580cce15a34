"""ZeroSCROLLS as a family of tasks."""

from __future__ import annotations

from collections.abc import Iterator

from catekv.errors import UserError
from catekv.tasks.core.sample import Sample
from catekv.tasks.core.task import BuildRequest, Family, Task
from catekv.tasks.drawing.drawn_samples import fitted, is_drawn
from catekv.tasks.families.zeroscrolls import built_in, small
from catekv.tasks.families.zeroscrolls.rows import (
    FILES,
    NEW_TOKENS,
    PREFIX,
    merged,
    metric_name,
    read,
    row_parts,
)
from catekv.tasks.families.zeroscrolls.strict import strict
from catekv.tasks.metrics import zeroscrolls
from catekv.tasks.rows.row_samples import limited
from catekv.tasks.rows.rows import naming
from catekv.tasks.rows.sources import DataOptions, load_rows
from catekv.tasks.small.parts import is_small
from catekv.tasks.wording.spelling import spelled

_HOW_TO_GET = (
    "download {name}.zip of the data set tau/zero_scrolls from huggingface.co, unpack it (its "
    "{name}/validation.jsonl has answers, test.jsonl has none)"
)


def generate(request: BuildRequest) -> Iterator[Sample]:
    """Samples of the validation rows; a document that is too long loses its end.

    Raises:
        UserError: a row without a reference answer, as in the test files.
    """
    name = request.task.name.removeprefix(PREFIX)
    if is_drawn(request.options):
        for index in range(request.first, request.first + request.count):
            if is_small(request.wording):
                plan = small.PLANS[name](request, index)
            else:
                plan = built_in.PLANS[name](request, name, index)
            yield fitted(request, index, plan)
        return
    rows = load_rows(
        request.task.name,
        request.options,
        files=(f"{name}/validation.jsonl", f"{name}.jsonl", "validation.jsonl"),
        hub=None,  # the repository holds archives, which the package datasets does not read
        built_in=list,
        how_to_get=_HOW_TO_GET.format(name=name),
    )
    with naming(rows.origin, "all rows"):
        every = merged(rows.parsed(lambda position, row: row_parts(name, row)))
    last = request.first + request.count
    for index, parts in enumerate(every[request.first : last], request.first):
        if not parts.outputs:
            raise UserError(
                f"{rows.origin}: the row with the id {parts.metadata['id']!r} has no answer to "
                "score against; use validation.jsonl, or predict with tasks.read and write the "
                "leaderboard's file with zeroscrolls.leaderboard"
            )
        yield limited(request, index, parts, rows.data, "end")


def score(prediction: str, sample: Sample) -> dict[str, float]:
    """``official`` is the rule of the task, the best reference counts; ``strict``: see
    :func:`catekv.tasks.families.zeroscrolls.strict.strict`.

    Raises:
        UserError: a test sample, whose answer only the leaderboard knows.
    """
    task = sample.task.removeprefix(PREFIX)
    if not sample.outputs:
        raise UserError(
            f"{sample.task}, sample {sample.index}: there is no reference answer, only the "
            "leaderboard can score it"
        )
    text = spelled(prediction, sample.scoring.get("spelling"))
    references = [spelled(output, sample.scoring.get("spelling")) for output in sample.outputs]
    official = zeroscrolls.score(task, text, references)
    return {"official": official, "strict": strict(task, text, official)}


def _task(name: str) -> Task:
    return Task(
        name=PREFIX + name,
        options=DataOptions(),
        max_new_tokens=NEW_TOKENS[name],
        metric=metric_name(name),
        generate=generate,
        score=score,
        natural=True,
    )


FAMILY = Family("zeroscrolls", tuple(map(_task, NEW_TOKENS)), read, FILES.recognise, rank=4)
