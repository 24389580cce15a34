"""Which tokens of a prompt are always kept and which compete: one rule for calibration and
retention."""

from __future__ import annotations

from dataclasses import dataclass

from catekv.errors import UserError

#: Binary fractions must not change a count: 0.07 * 100 is 7.000000000000001 in floating point.
ROUNDING_GUARD = 1e-9
VARIANTS = ("official", "paper")
#: Budget and recent tokens of the published run; the paper's rule for edges in tokens of budget per
#: initial and per recent token.
OFFICIAL_BUDGET = 2048
OFFICIAL_RECENT = 256
PAPER_RECENT_RULE = "b/128"
_INIT_DIVISOR = 32
_RULE_DIVISOR = 128
#: Last prompt queries observed, and tokens behind the recent edge, where nothing else is known.
DEFAULT_WINDOW = 64
DEFAULT_GUARD = 32


def floor_count(value: float) -> int:
    """Largest integer not above ``value``, which may lie a rounding error below it."""
    return int(value + ROUNDING_GUARD)


def ceil_count(value: float) -> int:
    """Smallest integer not below ``value``, which may lie a rounding error above it."""
    return -int(-(value - ROUNDING_GUARD) // 1)


@dataclass(frozen=True)
class PromptLayout:
    """Parts of a prompt of ``tokens`` tokens.

    ``[0, middle_start)`` and ``[middle_end, tokens)`` are the edges, always kept. Between them lie
    ``chunks`` scored chunks of ``chunk_size`` tokens. ``chunk_end`` closes the last whole chunk
    before the guard; ``tail`` = ``tokens - chunk_end`` are the tokens behind it.
    """

    tokens: int
    chunk_size: int
    chunk_end: int
    middle_start: int
    middle_end: int
    chunks: int

    @property
    def tail(self) -> int:
        return self.tokens - self.chunk_end


def prompt_layout(
    tokens: int,
    chunk_size: int = 8,
    init_tokens: int = 64,
    recent_tokens: int = 256,
    guard_tokens: int = 32,
) -> PromptLayout:
    """Split a prompt as the published CateKV system does.

    The last ``guard_tokens`` (rounded down to whole chunks) and what does not fill a chunk form the
    tail; ``recent_tokens`` before the tail and the first ``init_tokens`` are edges. Edges that are
    no multiple of the chunk size leave a rest, which joins the recent edge. A prompt that is too
    short has no middle (``chunks`` = 0).
    """
    chunk_end = max(0, (tokens // chunk_size - guard_tokens // chunk_size) * chunk_size)
    chunks = max(0, chunk_end - recent_tokens - init_tokens) // chunk_size
    start = min(init_tokens, tokens)
    return PromptLayout(tokens, chunk_size, chunk_end, start, start + chunks * chunk_size, chunks)


def init_tokens_of(value: int | None, budget: int) -> int:
    """Resolve the option ``init_tokens``: a number, or b/32."""
    return budget // _INIT_DIVISOR if value is None else value


def recent_tokens_of(value: int | str | None, variant: str, budget: int) -> int:
    """Resolve the option ``recent_tokens``: a number, ``"b/128"``, or the default: 256 at the
    published budget of the official variant, else b/128."""
    if value is None:
        published = variant == "official" and budget == OFFICIAL_BUDGET
        value = OFFICIAL_RECENT if published else PAPER_RECENT_RULE
    if isinstance(value, str) and value.isdecimal():
        value = int(value)
    if value == PAPER_RECENT_RULE:
        return budget // _RULE_DIVISOR
    if not isinstance(value, int) or value < 0:
        raise UserError(
            f"catekv: recent_tokens {value!r} must be a number of tokens, at least 0, or "
            f"{PAPER_RECENT_RULE!r}"
        )
    return value
