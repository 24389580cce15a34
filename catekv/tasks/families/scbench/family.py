"""SCBench as a family of tasks; a sample is one turn of a session."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

from catekv.tasks.core.parts import Parts, count, counted, prompt_format_of
from catekv.tasks.core.sample import Sample
from catekv.tasks.core.task import BuildRequest, Family, Task
from catekv.tasks.drawing.drawn_samples import Plan, fitted, is_drawn
from catekv.tasks.families.scbench.drawn import Drawn
from catekv.tasks.families.scbench.options import SessionOptions
from catekv.tasks.families.scbench.rows import WORDING, read, recognise, session
from catekv.tasks.families.scbench.session import Turn, turn_parts
from catekv.tasks.families.scbench.sessions import GENERATED, SESSIONS, SMALL
from catekv.tasks.families.scbench.table import NEW_TOKENS, PREFIX, metric_name, score
from catekv.tasks.rows.row_samples import limited
from catekv.tasks.rows.sources import BUILT_IN, Hub, load_rows


def generate(request: BuildRequest) -> Iterator[Sample]:
    """Samples one by one: sample ``i`` is turn ``i % turns`` of session ``i // turns``."""
    name = request.task.name.removeprefix(PREFIX)
    options = request.options
    assert isinstance(options, SessionOptions)
    indices = range(request.first, request.first + request.count)
    if name in SESSIONS and is_drawn(request.options, by_default=name in GENERATED):
        yield from _drawn(request, name, options, indices)
        return
    rows = load_rows(
        request.task.name,
        options,
        files=(f"scbench_{name}.jsonl", f"scbench_{name}.parquet", f"{name}.jsonl"),
        hub=Hub("microsoft/SCBench", f"scbench_{name}", "test"),
        built_in=None,
        how_to_get=f"download scbench_{name} of the data set microsoft/SCBench",
    )
    places = [
        (number, context, turns[: options.turns], turn)
        for number, (context, turns) in enumerate(rows.parsed(lambda _, row: session(name, row)))
        for turn in range(min(options.turns, len(turns)))
    ]
    for index in indices:
        if index >= len(places):
            return
        number, context, turns, turn = places[index]
        parts = turn_parts(context, turns, turn, options.mode, WORDING, {"session": number})
        yield limited(request, index, parts, rows.data, "middle")


def _drawn(
    request: BuildRequest, name: str, options: SessionOptions, indices: range
) -> Iterator[Sample]:
    """The context is as long as the session's last turn allows, and the same for all turns."""

    @lru_cache(maxsize=1)  # turns of a session follow one another
    def fitted_session(number: int) -> tuple[str, list[Turn]]:
        open_session = SESSIONS[name](request, number, options.turns)
        return open_session.draw(_units(request, number, open_session, options))

    for index in indices:
        number, turn = divmod(index, options.turns)
        context, turns = fitted_session(number)
        parts = turn_parts(
            context, turns, turn, options.mode, request.wording.name, {"session": number}
        )
        tokens = count(prompt_format_of(request, parts), parts)
        answer = request.max_answer_tokens or parts.max_new_tokens
        yield counted(request, index, parts, tokens, answer, data=BUILT_IN)


def _units(request: BuildRequest, number: int, open_session: Drawn, options: SessionOptions) -> int:
    """As many units as fit with the longest of the turns."""

    def draft(units: int, extra: int) -> Parts:
        context, turns = open_session.draw(units)
        every = [
            turn_parts(context, turns, turn, options.mode, request.wording.name, {"units": units})
            for turn in range(len(turns))
        ]
        return max(every, key=lambda parts: len(parts.question) + 4 * parts.max_new_tokens)

    plan = Plan(draft, open_session.minimum)
    units: int = fitted(request, number, plan).metadata["units"]
    return units


def _task(name: str) -> Task:
    return Task(
        name=PREFIX + name,
        options=SessionOptions(),
        max_new_tokens=max(NEW_TOKENS[name]),
        metric=metric_name(name),
        generate=generate,
        score=score,
        natural=name not in GENERATED,
        small=name in SMALL,
    )


FAMILY = Family("scbench", tuple(map(_task, NEW_TOKENS)), read, recognise)
