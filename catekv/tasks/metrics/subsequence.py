"""Longest common subsequences of word lists, one bit per word of the second list.

Row ``i`` of the usual table is kept as one whole number: bit ``j`` says that the length grows when
word ``j`` of the second list is added. One row follows from the one before by an addition and a
few bit operations (Crochemore et al. 2001, Hyyrö 2004), so two texts of 5,000 words need 5,000
steps instead of 25 million, and nothing recurses.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence


def growth_rows(first: Sequence[str], second: Sequence[str]) -> Iterator[int]:
    """``len(first) + 1`` rows; the length at ``(i, j)`` is the count of ones below bit ``j``."""
    places: dict[str, int] = {}
    for j, word in enumerate(second):
        places[word] = places.get(word, 0) | 1 << j
    full = (1 << len(second)) - 1
    flat = full  # ones where the length does not grow
    yield 0
    for word in first:
        shared = flat & places.get(word, 0)
        if shared:
            flat = ((flat + shared) | (flat - shared)) & full
        yield flat ^ full


def common_length(first: Sequence[str], second: Sequence[str]) -> int:
    """Length of the longest common subsequence."""
    return deque(growth_rows(first, second), maxlen=1)[0].bit_count()


def common_pairs(first: Sequence[str], second: Sequence[str]) -> list[tuple[int, int]]:
    """Positions (in ``first``, in ``second``) of one longest common subsequence, ascending.

    Of several, the one found by walking back from both ends: equal words are taken; otherwise the
    last word of ``second`` goes if the rest is then strictly longer than without the last word of
    ``first``, else that of ``first`` goes.
    """
    rows = list(growth_rows(first, second))
    i, j = len(first), len(second)
    left = rows[i].bit_count()  # length still to be found
    pairs: list[tuple[int, int]] = []
    while left:
        if first[i - 1] == second[j - 1]:
            i, j, left = i - 1, j - 1, left - 1
            pairs.append((i, j))
        elif rows[i] >> (j - 1) & 1:  # without the last word of second the length falls
            i -= 1
        elif (rows[i - 1] & ((1 << j) - 1)).bit_count() < left:
            j -= 1
        else:
            i -= 1
    pairs.reverse()
    return pairs
