"""Variable tracking: chains of assignments in filler, or (dense) among other chains."""

from __future__ import annotations

from dataclasses import dataclass

from catekv.errors import UserError
from catekv.tasks.core.task import at_least_one
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
from catekv.tasks.wording.hay import LINE, Filler, insert, paragraph

#: tokens of the solved example, and its share of a short prompt
_EXAMPLE_TOKENS = 500
_EXAMPLE_SHARE = 0.25


@dataclass(frozen=True)
class ChainOptions(RulerOptions):
    """Chains of ``num_hops`` + 1 variables each.

    ``num_chains`` of them are hidden and the first is asked for. With ``dense`` the hay consists of
    further chains instead of filler: every sentence is a fact. ``depth`` places the asked chain:
    its first statement stands there and the others follow at equal distances.
    ``begin_answer=False`` ends the prompt with the question.
    """

    num_chains: int = 1
    num_hops: int = 4
    depth: Depth = "uniform"
    dense: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least_one(self, "num_chains", "num_hops")
        check_depth(self.depth)


class ChainPlan(Plan):
    """Drawn chains of one sample; units are filler sentences or statements of other chains."""

    def __init__(self, request: Request, options: ChainOptions) -> None:
        self._request, self._options = request, options
        wording, random = request.wording, request.random("chains")
        size = options.num_hops + 1
        values: dict[str, None] = {}
        available = wording.capacity("variable_values")
        if available is not None and options.num_chains > available:
            raise UserError(f"num_chains={options.num_chains}; only {available} values exist")
        names = wording.variables(options.num_chains * size, random)
        while len(values) < options.num_chains:
            values[wording.variable_value(random)] = None
        self._value = next(iter(values))
        self._statements: list[tuple[float, str]] = []
        for number, value in enumerate(values):
            positions = fixed_depths(options.depth, size, request.index) if number == 0 else None
            if positions is None:
                positions = sorted(random.random() for _ in range(size))
            chain = self._chain(names[number * size : (number + 1) * size], value)
            self._statements += zip(positions, chain, strict=True)
        self.outputs = tuple(names[:size])
        self._marks = tuple(text for _, text in self._statements[:size])
        self._instruction = wording.chain_instruction()
        self._filler = Filler(wording.filler_line)
        self._example = self._solved_example() if wording.with_examples else ""
        self.minimum, self.extra_limit = 0, 256
        if options.dense:
            self._names = Pool(
                wording.variables,
                request.seed("other names"),
                wording.capacity("variables"),
                names,
            )
            self._others: list[tuple[float, str]] = []

    def _chain(self, names: list[str], value: str) -> list[str]:
        """The statements of one chain in order."""
        assign = self._request.wording.assignment
        sources = [value, *names[:-1]]
        pairs = zip(names, sources, strict=True)
        return [assign(name, source, i == 0) for i, (name, source) in enumerate(pairs)]

    def _solved_example(self) -> str:
        """The same task in little, with its answer: names of three letters, filler as hay."""
        wording, random = self._request.wording, self._request.random("example")
        size = self._options.num_hops + 1
        names = wording.variables(size, random, letters=3)
        value = wording.variable_value(random)
        while value == self._value:
            value = wording.variable_value(random)
        positions = sorted(random.random() for _ in range(size))
        statements = list(zip(positions, self._chain(names, value), strict=True))

        def text(lines: int) -> str:
            hay = insert(self._filler.lines(LINE * lines), statements)
            answer = wording.chain_question(value) + wording.chain_answer_prefix(value, size)
            return paragraph(self._instruction, *hay, f"{answer} {' '.join(names)}")

        budget = min(_EXAMPLE_TOKENS, int(self._request.length * _EXAMPLE_SHARE))
        room = budget - self._request.tokens(text(0))
        lines = max(
            0, room // max(1, self._request.tokens(text(1)) - self._request.tokens(text(0)))
        )
        return text(lines) + "\n"

    def _other_statements(self, units: int) -> list[tuple[float, str]]:
        """So many statements of other chains, each with its position."""
        size = self._options.num_hops + 1
        while len(self._others) < units:
            number = len(self._others) // size
            names = self._names.first((number + 1) * size)[number * size :]
            if len(names) < size:
                break
            random = self._request.random(f"other chain {number}")
            value = self._value
            while value == self._value:
                value = self._request.wording.variable_value(random)
            positions = sorted(random.random() for _ in range(size))
            self._others += zip(positions, self._chain(names, value), strict=True)
        return self._others[:units]

    def draft(self, units: int, extra: int = 0) -> Draft:
        wording = self._request.wording
        notes: dict[str, object] = {}
        if self._options.dense:
            others = self._other_statements(units)
            lines = self._filler.lines(LINE * (units - len(others)))
            if extra:
                lines.append(self._filler.words(extra))
            spread = [((n + 0.5) / len(lines), line) for n, line in enumerate(lines)]
            merged = sorted([*self._statements, *others, *spread], key=lambda item: item[0])
            body = [text for _, text in merged]
            notes = {"other_statements": len(others), "filler_lines": len(lines)}
        else:
            hay = self._filler.lines(units)
            if extra:
                hay.append(self._filler.words(extra))
            body = insert(hay, self._statements)
        return Draft(
            self._example + paragraph(self._instruction, *body),
            wording.chain_question(self._value),
            wording.chain_answer_prefix(self._value, self._options.num_hops + 1),
            self._marks,
            notes,
        )
