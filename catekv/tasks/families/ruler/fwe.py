"""Frequent words: coded words whose counts follow a zeta law; the top rank is noise."""

from __future__ import annotations

from dataclasses import dataclass

from catekv.errors import UserError
from catekv.tasks.families.ruler.plan import Draft, Plan, Request, RulerOptions
from catekv.tasks.wording.hay import paragraph

#: far above this even rank 2 would occur in no text, and the counts would leave a float's range
_LARGEST_ALPHA = 50
#: so many words a token fit into no text
_HOPELESS = 10


@dataclass(frozen=True)
class FrequentOptions(RulerOptions):
    """``alpha`` is the exponent of the zeta law; larger is easier.

    ``begin_answer=False`` ends the prompt with the question.
    """

    alpha: float = 2.0

    def __post_init__(self) -> None:
        super().__post_init__()
        # the comparison is false for what is no number
        if not 1 < self.alpha <= _LARGEST_ALPHA:
            raise UserError(f"alpha={self.alpha}; it must be above 1 and at most {_LARGEST_ALPHA}")


def zeta(exponent: float) -> float:
    """Riemann's zeta function for exponents above 1 (Euler-Maclaurin, error below 1e-12)."""
    terms = 1000
    head = sum(k**-exponent for k in range(1, terms))
    tail = terms ** (1 - exponent) / (exponent - 1) + terms**-exponent / 2
    return head + tail + exponent * terms ** (-exponent - 1) / 12


def frequent_counts(num_words: int, vocabulary: int, alpha: float) -> list[int]:
    """Occurrences by rank: ``floor(num_words * rank ** -alpha / zeta(alpha))``, zeros left out."""
    scale = num_words / zeta(alpha)
    counts: list[int] = []
    for rank in range(1, vocabulary + 1):
        count = int(scale * rank**-alpha)
        if not count:
            break
        counts.append(count)
    return counts


class FrequentPlan(Plan):
    """Drawn words of one sample; the unit is RULER's number of words before rounding."""

    def __init__(self, request: Request, options: FrequentOptions) -> None:
        self._request, self._alpha = request, options.alpha
        wording = request.wording
        # one word is at least one token, so no rank beyond this one can occur even once
        reachable = int((request.length / zeta(options.alpha)) ** (1 / options.alpha)) + 2
        vocabulary = min(max((request.length - 50) // 50, 8), reachable)
        capacity = wording.capacity("coded_words")
        if capacity is not None:
            vocabulary = min(vocabulary, capacity)
        words = wording.coded_words(vocabulary, request.random("words"))
        self._words = [wording.frequent_noise, *words[1:]]
        self.outputs = tuple(words[1:4])
        # from here on the counts of ranks 2, 3, 4 and 5 differ whatever the rounding does
        self.minimum = int(zeta(options.alpha) / (4**-options.alpha - 5**-options.alpha)) + 1
        if self.minimum > _HOPELESS * request.length:
            # nobody has to write them down to see that they do not fit
            raise UserError(
                f"alpha={options.alpha} needs {self.minimum} words before the ranks differ, far "
                f"more than {request.length} tokens hold; lower alpha"
            )

    def draft(self, units: int, extra: int = 0) -> Draft:
        wording = self._request.wording
        counts = frequent_counts(units, len(self._words), self._alpha)
        items = [
            word for word, count in zip(self._words, counts, strict=False) for _ in range(count)
        ]
        self._request.random("order").shuffle(items)
        return Draft(
            paragraph(wording.frequent_instruction(), " ".join(items)),
            wording.frequent_question(),
            wording.frequent_answer_prefix(),
            notes={"counts": counts[:5]},
        )
