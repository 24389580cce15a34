"""Options of the LongBench tasks."""

from __future__ import annotations

from dataclasses import dataclass

from catekv.errors import UserError
from catekv.tasks.families.longbench.choice_rows import DIFFICULTIES, LENGTHS
from catekv.tasks.metrics.edit import BACKENDS
from catekv.tasks.rows.sources import DataOptions

TRUNCATIONS = ("fit", "official")


def _among(name: str, value: str | None, valid: tuple[str, ...]) -> None:
    if value is not None and value not in valid:
        raise UserError(f"{name}={value!r}; use one of {', '.join(valid)}")


@dataclass(frozen=True, kw_only=True)
class CutOptions(DataOptions):
    """What v1 and v2 have in common; the attributes are explained there."""

    prompts: str | None = None
    max_prompt_tokens: int | None = None
    truncation: str = "fit"

    def __post_init__(self) -> None:
        super().__post_init__()
        _among("truncation", self.truncation, TRUNCATIONS)
        if self.max_prompt_tokens is not None and self.max_prompt_tokens < 2:
            raise UserError(
                f"max_prompt_tokens={self.max_prompt_tokens}; a prompt needs 2 tokens or more"
            )


@dataclass(frozen=True, kw_only=True)
class LongBenchOptions(CutOptions):
    """Options of v1 and -E.

    Attributes:
        path: file with the rows (JSONL of LongBench, or MiniLongBench), or a folder that holds it.
        source: ``auto``, ``path``, ``hub`` or ``built-in`` (generated rows of the same shape).
        prompts: the official ``dataset2prompt.json``; None takes our own wording.
        max_lengths: the official ``dataset2maxlen.json``; None takes the published values.
        max_prompt_tokens: longest prompt; default: the requested length less the answer's tokens.
        truncation: what happens to a longer prompt. ``fit`` takes tokens out of its middle until
            the prompt as the model gets it (template and BOS included) is within the limit;
            ``official`` cuts the unwrapped prompt once, so that template and encoding anew can
            exceed the limit, as in the published runs.
        backend: of the code score: ``difflib``, or ``indel`` for the numbers of installations
            with Levenshtein's package.
    """

    max_lengths: str | None = None
    backend: str = "difflib"

    def __post_init__(self) -> None:
        super().__post_init__()
        _among("backend", self.backend, BACKENDS)


@dataclass(frozen=True, kw_only=True)
class ChoiceOptions(CutOptions):
    """Options of v2.

    Attributes:
        path: ``data.json``, JSONL rows, or a folder of Markdown pairs.
        source: ``auto``, ``path``, ``hub`` or ``built-in`` (generated rows of the same shape).
        prompts: an official prompt file with markers; None takes our own wording.
        max_prompt_tokens: longest prompt; default: the requested length less the answer's tokens.
        truncation: ``fit`` or ``official``, as in v1, by the rule of v2.
        chain_of_thought: let the model reason before it answers, with room for it.
        difficulty: only ``easy`` or ``hard`` questions.
        length_group: only ``short``, ``medium`` or ``long`` ones.
        domain: only questions whose domain or sub-domain contains this text (case ignored).
    """

    chain_of_thought: bool = False
    difficulty: str | None = None
    length_group: str | None = None
    domain: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        _among("difficulty", self.difficulty, DIFFICULTIES)
        _among("length_group", self.length_group, LENGTHS)
