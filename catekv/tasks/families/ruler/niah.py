"""Needle tasks: one or more facts hidden in filler, in prose or among facts of the same form."""

from __future__ import annotations

from dataclasses import dataclass

from catekv.errors import UserError
from catekv.tasks.core.task import at_least_one
from catekv.tasks.drawing.essay import essay_from_path, prose_name
from catekv.tasks.drawing.pool import Pool
from catekv.tasks.families.ruler.plan import (
    Depth,
    Draft,
    Plan,
    Request,
    RulerOptions,
    check_depth,
    fixed_depths,
)
from catekv.tasks.wording.hay import LINE, Filler, Prose, insert, paragraph

_KINDS = ("words", "numbers", "uuids")
#: RULER draws the depths in prose from so many equally spaced values, none twice
_ESSAY_DEPTHS = 40


@dataclass(frozen=True)
class NeedleOptions(RulerOptions):
    """What is hidden and where.

    ``haystack`` is ``noise`` (one filler line repeated), ``essay`` or ``needle`` (facts about other
    keys). ``num_keys`` keys with ``num_values`` values each are hidden, ``num_queries`` keys are
    asked for; keys are raised to the queries. ``depth`` places the asked facts (see
    :func:`catekv.tasks.families.ruler.plan.check_depth`). ``essay_path`` names prose to use instead
    of the generated one. ``begin_answer=False`` ends the prompt with the question.
    """

    haystack: str = "noise"
    key_kind: str = "words"
    value_kind: str = "numbers"
    num_keys: int = 1
    num_values: int = 1
    num_queries: int = 1
    depth: Depth = "uniform"
    essay_path: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.haystack not in ("noise", "essay", "needle"):
            raise UserError(f"haystack={self.haystack!r}; use 'noise', 'essay' or 'needle'")
        for name in ("key_kind", "value_kind"):
            if getattr(self, name) not in _KINDS:
                raise UserError(f"{name}={getattr(self, name)!r}; use {', '.join(_KINDS)}")
        at_least_one(self, "num_keys", "num_values", "num_queries")
        check_depth(self.depth)


class NeedlePlan(Plan):
    """Drawn needles of one sample; units are filler sentences, words of prose or facts."""

    def __init__(self, request: Request, options: NeedleOptions) -> None:
        self._request, self._options = request, options
        wording, random = request.wording, request.random("needles")
        key_count = max(options.num_keys, options.num_queries)
        keys = wording.keys(options.key_kind, key_count, random)
        value_count = key_count * options.num_values
        spare = key_count if options.key_kind == options.value_kind else 0
        drawn = wording.values(options.value_kind, value_count + spare, random)
        values = [value for value in drawn if value not in keys][:value_count]
        pairs = [
            (key, values[number * options.num_values + copy])
            for number, key in enumerate(keys)
            for copy in range(options.num_values)
        ]
        asked = keys[: options.num_queries]
        answers = options.num_queries * options.num_values
        self.outputs = tuple(value for _, value in pairs[:answers])
        needles = [wording.needle(options.value_kind, key, value) for key, value in pairs]
        self._marks = tuple(needles[:answers])
        self._needles = list(zip(self._positions(len(needles), answers), needles, strict=True))
        many = answers > 1
        self._instruction = wording.needle_instruction(options.value_kind, many)
        self._question = wording.needle_question(options.value_kind, asked, options.num_values)
        self._prefix = wording.needle_answer_prefix(options.value_kind, asked, options.num_values)
        self._filler = Filler(wording.filler_line)
        self.extra_limit = 256
        self._notes: dict[str, object] = {"keys": asked}
        if options.haystack == "essay":
            seed = request.random("essay")
            if options.essay_path:
                self.data = prose_name(options.essay_path)
            self._prose = Prose(
                essay_from_path(options.essay_path, seed)
                if options.essay_path
                else wording.essay(seed)
            )
            self.minimum, self.extra_limit = 8, 0
        elif options.haystack == "needle":
            self._pools(set(keys), set(values))
            self.minimum = 0

    def _positions(self, count: int, answers: int) -> list[float]:
        options, random = self._options, self._request.random("positions")
        if options.haystack == "essay" and count <= _ESSAY_DEPTHS:
            steps = random.sample(range(_ESSAY_DEPTHS), count)
            positions = [step / (_ESSAY_DEPTHS - 1) for step in steps]
        else:
            positions = [random.random() for _ in range(count)]
        fixed = fixed_depths(options.depth, answers, self._request.index)
        return positions if fixed is None else fixed + positions[answers:]

    def _pools(self, keys: set[str], values: set[str]) -> None:
        wording, options = self._request.wording, self._options
        self._other_keys = Pool(
            lambda count, random: wording.keys(options.key_kind, count, random),
            self._request.seed("other keys"),
            wording.capacity(options.key_kind),
            keys | values,
        )
        self._other_values = Pool(
            lambda count, random: wording.values(options.value_kind, count, random),
            self._request.seed("other values"),
            wording.capacity(options.value_kind),
            keys | values,
        )

    def _facts(self, units: int) -> list[str]:
        """Facts about other keys; where keys or values run out, filler lines between them."""
        keys = self._other_keys.first(units)
        values = self._other_values.first(units)
        pairs = min(len(keys), len(values))
        kind, needle = self._options.value_kind, self._request.wording.needle
        facts = [needle(kind, key, value) for key, value in zip(keys, values, strict=False)]
        lines = self._filler.lines(LINE * (units - pairs))
        return insert(facts, [((n + 0.5) / len(lines), line) for n, line in enumerate(lines)])

    def draft(self, units: int, extra: int = 0) -> Draft:
        haystack = self._options.haystack
        if haystack == "essay":
            body = " ".join(insert(self._prose.sentences(units), self._needles))
        else:
            hay = self._filler.lines(units) if haystack == "noise" else self._facts(units)
            if extra:
                place = int(self._request.random("extra").random() * (len(hay) + 1))
                hay.insert(place, self._filler.words(extra))
            body = "\n".join(insert(hay, self._needles))
        return Draft(
            paragraph(self._instruction, body),
            self._question,
            self._prefix,
            self._marks,
            self._notes,
        )
