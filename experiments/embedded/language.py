"""Training documents of the embedded model, directly in token ids.

A document is hay (filler, essay or nothing but facts) that hides needles and chains, followed by
many questions about them, each answered and closed by ``</s>``. The patterns equal
:class:`catekv.tasks.wording.small.SmallWording`'s. Positions may jump between sentences, so
that short documents train long distances.

The random stream of document ``n`` is derived from ``("embedded-training", seed, n)``: it shares
nothing with calibration and test samples, and any step can be drawn again after a resume.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from itertools import pairwise
from random import Random

import numpy as np

from catekv.tasks.wording import vocabulary
from catekv.tasks.wording.small import SmallWording, Theme

#: names the random stream of the training documents; no other part of the package uses it
STREAM = "embedded-training"

#: zeta(2), the normaliser of the frequent-words distribution with alpha = 2
_ZETA_2 = np.pi**2 / 6

#: training never sees a position beyond this one
MAX_POSITION = 8192


@dataclass(frozen=True)
class Document:
    """``tokens``, ``positions`` and ``answers`` (True where a token belongs to an answer)."""

    tokens: np.ndarray
    positions: np.ndarray
    answers: np.ndarray


@dataclass(frozen=True)
class Mixture:
    """What the documents of a phase of the training contain.

    ``frequent_share`` is the share of frequent-words documents, in which about every
    ``frequent_every``-th word is followed by a question. A question for all values of a key is
    about one of ``value_counts`` values; the answer lists them in the order of the text or
    shuffled, each after ``list_marker``.
    """

    frequent_share: float = 0.12
    frequent_every: int = 48
    value_counts: tuple[int, ...] = (2, 3, 4, 4, 4)
    shuffled: bool = False
    list_marker: str = "all"


@dataclass
class _Facts:
    """Sentences to hide and the questions that they answer."""

    sentences: list[list[list[int]]] = field(default_factory=list)
    questions: list[tuple[list[int], list[int]]] = field(default_factory=list)


@cache
def _ids(text: str) -> tuple[int, ...]:
    return tuple(vocabulary.encode(text))


@cache
def _ranges() -> tuple[range, range, range]:
    """Ids of numerals, coded words and names (each group is contiguous)."""
    table = vocabulary.index()
    numeral = table[vocabulary.numerals()[0]]
    coded = table[vocabulary.coded_words()[0]]
    name = table[vocabulary.names()[0]]
    return (
        range(numeral, numeral + 100),
        range(coded, coded + vocabulary.CODED_COUNT),
        range(name, name + vocabulary.NAME_COUNT),
    )


def needle(key: int, value: list[int]) -> list[int]:
    """``note KEY d d d .``"""
    return [*_ids("note"), key, *value, *_ids(".")]


def needle_question(keys: list[int], many: bool, list_marker: str = "all") -> list[int]:
    """``ask K1 K2 ? note K1``, or ``ask K all ? all K``, answer prefix included."""
    if many:
        return [*_ids("ask"), keys[0], *_ids("all ?"), *_ids(list_marker), keys[0]]
    return [*_ids("ask"), *keys, *_ids("? note"), keys[0]]


def needle_answer(keys: list[int], values: list[list[int]], list_marker: str = "note") -> list[int]:
    """What follows the prefix: the first value, then ``note K d d d .`` again, then ``</s>``."""
    answer = [*values[0], *_ids(".")]
    for key, value in zip(keys[1:], values[1:], strict=True):
        answer += [*_ids(list_marker), key, *value, *_ids(".")]
    return [*answer, vocabulary.END]


def assignment(source: list[int], name: int) -> list[int]:
    """``pass SOURCE NAME .``"""
    return [*_ids("pass"), *source, name, *_ids(".")]


def chain_question(value: list[int]) -> list[int]:
    """``trace d d d ? pass d d d``, answer prefix included."""
    return [*_ids("trace"), *value, *_ids("? pass"), *value]


def chain_answer(names: list[int]) -> list[int]:
    return [*names, *_ids("."), vocabulary.END]


def frequent_question() -> list[int]:
    return list(_ids("trace most ? most"))


def frequent_answer(words: list[int]) -> list[int]:
    return [*words, *_ids("."), vocabulary.END]


def _value(random: Random) -> list[int]:
    numerals, _, _ = _ranges()
    return [numerals[int(random.random() * 100)] for _ in range(3)]


class DocumentSampler:
    """Draws training documents of an exact length; the stream depends on ``seed`` alone."""

    def __init__(self, seed: int, mixture: Mixture | None = None) -> None:
        self.seed = seed
        self.mixture = mixture or Mixture()

    def document(self, number: int, length: int, farthest: int = MAX_POSITION) -> Document:
        """Document ``number`` with exactly ``length`` tokens and positions below ``farthest``."""
        random = Random(f"{STREAM} {self.seed} {number}")
        if random.random() < self.mixture.frequent_share:
            parts = self._frequent(random, length)
        else:
            parts = self._facts(random, length)
        return _assemble(parts, length, farthest, random)

    # Every document is a list of (tokens, is answer) pieces; jumps may fall between pieces.
    def _facts(self, random: Random, length: int) -> list[tuple[list[int], bool]]:
        _, _, names = _ranges()
        free_names = random.sample(names, min(len(names), length // 3 + 24))
        pieces: list[tuple[list[int], bool]] = [([vocabulary.BEGIN], False)]
        rounds = 1 if length < 256 or random.random() < 0.6 else 2
        # A round asks for about a third of its tokens; the share of facts decides the density.
        for _ in range(rounds):
            budget = length // rounds - 1
            share = random.choice((0.1, 0.4, 1.0, 1.0))
            room = int(budget * random.uniform(0.55, 0.75)) * share
            questions: list[tuple[list[int], list[int]]] = []
            groups: list[list[list[int]]] = []
            used = 0
            flavour = random.random()
            while used < room and len(free_names) > 12:
                facts = self._fact_group(random, free_names, flavour)
                groups += facts.sentences
                used += sum(len(line) for group in facts.sentences for line in group)
                questions += facts.questions
            random.shuffle(questions)
            asked: list[tuple[list[int], bool]] = []
            for question, answer in questions:
                if used + len(question) + len(answer) > budget:
                    break
                asked += [(question, False), (answer, True)]
                used += len(question) + len(answer)
            hay = self._hay(random, budget - used)
            pieces += [(line, False) for line in _interleave(groups, hay, random)]
            pieces += asked
        return pieces

    def _fact_group(self, random: Random, free: list[int], flavour: float) -> _Facts:
        """One chain, or a few needles, with their questions; ``flavour`` favours one of both."""
        kind = random.random()
        facts = _Facts()
        if kind < (0.75 if flavour < 0.25 else 0.1 if flavour < 0.6 else 0.35):
            value = _value(random)
            chain = [free.pop() for _ in range(random.choice((1, 2, 3, 4, 5, 5, 5, 5)))]
            lines = [assignment(value, chain[0])]
            lines += [assignment([a], b) for a, b in pairwise(chain)]
            facts.sentences.append(lines)
            facts.questions.append((chain_question(value), chain_answer(chain)))
        elif kind > 0.8 and flavour > 0.25:
            key = free.pop()
            values = [_value(random) for _ in range(random.choice(self.mixture.value_counts))]
            # one group, so that the values stay in the order of the list
            facts.sentences.append([needle(key, value) for value in values])
            keys = [key] * len(values)
            if self.mixture.shuffled:
                values = random.sample(values, len(values))
            marker = self.mixture.list_marker
            question = needle_question([key], True, marker)
            facts.questions.append((question, needle_answer(keys, values, marker)))
        else:
            count = random.choice((1, 1, 1, 2, 3, 4, 4, 4))
            keys = [free.pop() for _ in range(count)]
            values = [_value(random) for _ in keys]
            facts.sentences += [
                [needle(key, value)] for key, value in zip(keys, values, strict=True)
            ]
            question, answer = needle_question(keys, False), needle_answer(keys, values)
            facts.questions.append((question, answer))
        return facts

    def _hay(self, random: Random, tokens: int) -> list[list[int]]:
        """Sentences of filler or essay with about ``tokens`` tokens."""
        lines: list[list[int]] = []
        if tokens <= 0:
            return lines
        if random.random() < 0.4:
            stop = _ids(".")[0]
            line: list[int] = []
            for token in _ids(SmallWording.filler_line):
                line.append(token)
                if token == stop:
                    lines.append(line)
                    line = []
            return (lines * (tokens // 25 + 1))[: tokens // 5]
        theme = Theme(random)
        table = vocabulary.index()
        while tokens > 0:
            line = [table[word] for word in theme.sentence(random).split()]
            lines.append(line)
            tokens -= len(line)
        return lines[:-1]

    def _frequent(self, random: Random, length: int) -> list[tuple[list[int], bool]]:
        """RULER's Zipf text, asked about at its end and, while it is clear, on the way."""
        _, coded, _ = _ranges()
        noise = _ids(vocabulary.FREQUENT_NOISE)[0]
        body = length - 16
        vocabulary_size = max(6, min(len(coded), int(length * random.uniform(0.8, 6)) // 50))
        chosen = [noise, *random.sample(coded, vocabulary_size - 1)]
        ranks = np.arange(1, vocabulary_size + 1, dtype=np.float64)
        counts = np.floor(body * ranks**-2 / _ZETA_2 + (1 if random.random() < 0.5 else 0))
        stream = [w for w, count in zip(chosen, counts, strict=True) for _ in range(int(count))]
        random.shuffle(stream)
        stream = stream[:body]
        pieces: list[tuple[list[int], bool]] = [([vocabulary.BEGIN], False)]
        seen: dict[int, int] = {}
        last = 0
        for position, word in enumerate(stream):
            if word != noise:
                seen[word] = seen.get(word, 0) + 1
            end = position == len(stream) - 1
            if not end and (position < 48 or random.random() > 1 / self.mixture.frequent_every):
                continue
            best = sorted(seen, key=lambda item: -seen[item])[:4]
            if len(best) < 4 or any(
                seen[a] - seen[b] < 1 + seen[a] // 10 for a, b in pairwise(best)
            ):
                continue
            pieces.append((stream[last : position + 1], False))
            pieces += [(frequent_question(), False), (frequent_answer(best[:3]), True)]
            last = position + 1
        return pieces


def _interleave(
    groups: list[list[list[int]]], hay: list[list[int]], random: Random
) -> list[list[int]]:
    """Hay with the sentences of every group at random places, in order within a group."""
    slots = [index for index, group in enumerate(groups) for _ in group]
    slots += [-1] * len(hay)
    random.shuffle(slots)
    following = [iter(group) for group in groups]
    straw = iter(hay)
    return [next(straw) if slot < 0 else next(following[slot]) for slot in slots]


def _assemble(
    pieces: list[tuple[list[int], bool]], length: int, farthest: int, random: Random
) -> Document:
    """Cut or fill the pieces to ``length`` tokens and give them positions with random jumps."""
    tokens: list[int] = []
    answers: list[bool] = []
    starts: list[int] = []
    for piece, is_answer in pieces:
        if not is_answer and tokens:
            starts.append(len(tokens))
        tokens += piece
        answers += [is_answer] * len(piece)
    if len(tokens) < length:
        filler = _ids(SmallWording.filler_line)
        missing = length - len(tokens)
        tokens += (list(filler) * (missing // len(filler) + 1))[:missing]
        answers += [False] * missing
    tokens, answers = tokens[:length], answers[:length]
    positions = np.arange(length)
    spare = farthest - length
    starts = [start for start in starts if start < length]
    if starts and spare > 0 and random.random() < 0.7:
        # mostly up to 4096 in total, sometimes the whole range
        total = min(spare, int(random.random() * (farthest if random.random() < 0.15 else 4400)))
        places = sorted(random.choices(starts, k=random.randint(1, 4)))
        cuts = sorted(random.randint(0, total) for _ in places[1:])
        steps = np.diff([0, *cuts, total])
        for place, step in zip(places, steps, strict=True):
            positions[place:] += step
    return Document(np.array(tokens), positions, np.array(answers))
