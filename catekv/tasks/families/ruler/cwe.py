"""Common words: a numbered list in which ten words occur far more often than all others."""

from __future__ import annotations

from dataclasses import dataclass

from catekv.errors import UserError
from catekv.tasks.core.task import at_least_one
from catekv.tasks.drawing.pool import Pool
from catekv.tasks.families.ruler.plan import Draft, Plan, Request, RulerOptions
from catekv.tasks.wording.hay import paragraph

#: below this target RULER uses fewer repetitions and a smaller example
_SHORT_TARGET = 4096


@dataclass(frozen=True)
class CommonOptions(RulerOptions):
    """``num_common`` words occur ``common_repeats`` times, all others ``uncommon_repeats`` times.

    Repeats left at None are 30 and 3, or 6 and 1 for targets below 4096 tokens.
    ``begin_answer=False`` ends the prompt with the question.
    """

    num_common: int = 10
    common_repeats: int | None = None
    uncommon_repeats: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least_one(self, "num_common", "common_repeats", "uncommon_repeats")

    def repeats(self, length: int) -> tuple[int, int]:
        """(common, uncommon) for a target length; ``UserError`` unless common is larger."""
        common, uncommon = (6, 1) if length < _SHORT_TARGET else (30, 3)
        common = self.common_repeats or common
        uncommon = self.uncommon_repeats or uncommon
        if common <= uncommon:
            raise UserError(
                f"common_repeats={common} must be larger than uncommon_repeats={uncommon}"
            )
        return common, uncommon


class CommonPlan(Plan):
    """Drawn words of one sample; the unit is one item of an uncommon word."""

    def __init__(self, request: Request, options: CommonOptions) -> None:
        self._request, self._options = request, options
        wording = request.wording
        self._repeats = options.repeats(request.length)
        short = request.length < _SHORT_TARGET
        example_words = 0
        if wording.with_examples:
            example_words = 2 * options.num_common if short else 4 * options.num_common
        drawn = wording.common_words(options.num_common + example_words, request.random("words"))
        self._common, example = drawn[: options.num_common], drawn[options.num_common :]
        self._others = Pool(
            wording.common_words,
            request.seed("other words"),
            wording.capacity("common_words"),
            drawn,
        )
        self._instruction = wording.common_instruction()
        self._question = wording.common_question(options.num_common)
        self._prefix = wording.common_answer_prefix(options.num_common)
        self._example = ""
        if example:
            answer, rest = example[: options.num_common], example[options.num_common :]
            items = answer * (3 if short else 10) + rest * (1 if short else 3)
            request.random("example order").shuffle(items)
            solved = f"{self._question}{self._prefix} {self._numbered(answer)}"
            self._example = paragraph(self._instruction, self._numbered(items), solved) + "\n"
        self.outputs = tuple(self._common)
        capacity = wording.capacity("common_words")
        self.limit = None if capacity is None else (capacity - len(drawn)) * self._repeats[1]

    @staticmethod
    def _numbered(items: list[str]) -> str:
        return " ".join(f"{number}. {word}" for number, word in enumerate(items, 1))

    def draft(self, units: int, extra: int = 0) -> Draft:
        common, uncommon = self._repeats
        whole, rest = divmod(units, uncommon)
        others = self._others.first(whole + bool(rest))
        items = self._common * common + others[:whole] * uncommon + others[whole:] * rest
        self._request.random("order").shuffle(items)
        return Draft(
            self._example + paragraph(self._instruction, self._numbered(items)),
            self._question,
            self._prefix,
            notes={"common_repeats": common, "uncommon_repeats": uncommon},
        )
