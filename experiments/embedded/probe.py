"""Quick accuracy of the weights in training, with full attention.

Every probe is a text of one RULER task in the embedded language. The answer is judged with
teacher forcing: it counts if every one of its tokens, ``</s>`` included, is the most likely one,
which is when greedy decoding gives exactly this answer. Several values of one key may come in any
order: each value may begin like any that has not been listed. (The numbers of the model card come
from the real task builders and real generation, see :mod:`experiments.embedded.evaluate`.)
"""

from __future__ import annotations

from collections.abc import Mapping
from random import Random
from typing import Any

import torch
from torch import Tensor

from catekv.tasks.wording import vocabulary
from catekv.tasks.wording.small import SmallWording
from experiments.embedded.network import hidden_states, logits

#: names the random stream of the probes; training never sees it
STREAM = "embedded-probe"

TASKS = tuple(sorted(SmallWording.tasks))


def probe_text(task: str, length: int, random: Random) -> tuple[str, str]:
    """Prompt (answer prefix included) and answer of about ``length`` tokens."""
    wording = SmallWording()
    if task == "fwe":
        return _frequent(wording, length, random)
    if task in ("vt", "vt_dense"):
        return _chain(wording, length, task == "vt_dense", random)
    queries = 4 if task == "niah_multiquery" else 1
    repeats = 4 if task == "niah_multivalue" else 1
    room = length - 40
    count = room // 6 if task == "niah_multikey_2" else 4
    keys = wording.keys("words", count, random)
    asked = keys[:queries]
    values = wording.values("numbers", count * repeats, random)
    if task in ("niah_single_1", "niah_single_2", "niah_multivalue"):
        keys = keys[:1]
    needles = [
        wording.needle("numbers", key, values[index * repeats + turn])
        for index, key in enumerate(keys)
        for turn in range(repeats)
    ]
    order = list(range(len(needles)))
    random.shuffle(order)
    lines = [needles[index] for index in order]
    hay = _hay(wording, task != "niah_single_1", room - 6 * len(lines), random)
    for line in lines if hay else ():
        hay.insert(random.randint(0, len(hay)), line)
    text = hay or lines
    answers = [line for key in asked for line in text if line.startswith(f"note {key} ")]
    question = wording.needle_question("numbers", asked, repeats)
    prefix = wording.needle_answer_prefix("numbers", asked, repeats)
    answer = " ".join(answers)
    if repeats > 1:
        answer = answer.replace("note", prefix.split()[0])
    answer = answer[len(prefix) :]
    return " ".join([*text, question, prefix]), answer


def _hay(wording: SmallWording, prose: bool, tokens: int, random: Random) -> list[str]:
    if tokens <= 0:
        return []
    if not prose:
        return [wording.filler_line] * (tokens // len(wording.filler_line.split()))
    sentences = wording.essay(random)
    lines: list[str] = []
    while tokens > 0:
        lines.append(next(sentences))
        tokens -= len(lines[-1].split())
    return lines


def _chain(wording: SmallWording, length: int, dense: bool, random: Random) -> tuple[str, str]:
    room = length - 40
    chains = max(1, room // 22) if dense else 1
    names = wording.variables(5 * chains, random)
    values = wording.values("numbers", chains, random)
    lines: list[str] = []
    slots = sorted(range(chains * 5), key=lambda _: random.random())
    slots = [slot // 5 for slot in slots]
    hay = [] if dense else _hay(wording, False, room - 22, random)
    slots += [-1] * len(hay)
    random.shuffle(slots)
    hops = [0] * chains
    for slot in slots:
        if slot < 0:
            lines.append(hay.pop())
            continue
        hop = hops[slot]
        hops[slot] += 1
        source = values[slot] if hop == 0 else names[5 * slot + hop - 1]
        lines.append(wording.assignment(names[5 * slot + hop], source, hop == 0))
    question = wording.chain_question(values[0])
    prefix = wording.chain_answer_prefix(values[0], 5)
    return " ".join([*lines, question, prefix]), " ".join(names[:5]) + " ."


def _frequent(wording: SmallWording, length: int, random: Random) -> tuple[str, str]:
    words = wording.coded_words(length // 50, random)
    words[0] = wording.frequent_noise
    room = length - 20
    counts = [int(room / (1.6449340668 * rank**2)) for rank in range(1, len(words) + 1)]
    stream = [word for word, count in zip(words, counts, strict=True) for _ in range(count)]
    random.shuffle(stream)
    question = f"{wording.frequent_question()} {wording.frequent_answer_prefix()}"
    return " ".join([*stream, question]), " ".join(words[1:4]) + " ."


def probe(
    weights: Mapping[str, Tensor],
    config: Any,
    length: int,
    count: int,
    dtype: torch.dtype = torch.float32,
    tasks: tuple[str, ...] = TASKS,
) -> dict[str, float]:
    """Share of ``count`` probes per task that are answered without any error."""
    scores: dict[str, float] = {}
    for task in tasks:
        right = 0
        for number in range(count):
            random = Random(f"{STREAM} {task} {length} {number}")
            prompt, answer = probe_text(task, length, random)
            before = [vocabulary.BEGIN, *vocabulary.encode(prompt)]
            expected = [*vocabulary.encode(answer), vocabulary.END]
            tokens = torch.tensor([before + expected])
            positions = torch.arange(tokens.shape[1])[None]
            with torch.inference_mode():
                hidden = hidden_states(weights, config, tokens, positions, dtype)
                found = logits(weights, hidden[:, len(before) - 1 : -1], dtype).argmax(-1)
            right += _is_right(found[0].tolist(), expected, task == "niah_multivalue")
        scores[task] = right / count
    return scores


def _is_right(found: list[int], expected: list[int], any_order: bool) -> bool:
    if not any_order:
        return found == expected
    period = 6  # tokens from the first of a value to the first of the next
    return all(
        token == wanted or (place % period == 0 and token in expected[place:-1:period])
        for place, (token, wanted) in enumerate(zip(found, expected, strict=True))
    )
