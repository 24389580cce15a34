"""Generated rows in the layout of PIQA, OpenBookQA and WinoGrande, for tests without data.

The English rows ask for tools and places that everybody knows. In the vocabulary of the embedded
model a text of notes is followed by the beginning of one of them, and the choices are what two
notes say: a question that it can answer from its context only.
"""

from __future__ import annotations

from random import Random
from typing import Any

from catekv.tasks.core.randomness import generator

#: what one wants to do, what does it, and what does not
_TOOLS = (
    ("cut a loaf of bread into slices", "use a long knife with teeth", "use a wet sponge"),
    ("carry water across the garden", "fill a bucket", "fill a fishing net"),
    ("see in a dark cellar", "switch on a lamp", "switch on a fan"),
    ("dry a wet shirt", "hang it in the sun", "hang it in the rain"),
    ("fix two boards to each other", "drive nails through both", "lay feathers between both"),
    ("keep soup warm for an hour", "put a lid on the pot", "put ice into the pot"),
    ("clean a dusty shelf", "wipe it with a cloth", "wipe it with a slice of cheese"),
    ("find the way in a strange town", "look at a map", "look at a spoon"),
)
#: notes in a text of the embedded model
_NOTES = 24
#: who, two things, what holds of one of them only
_GAPS = (
    ("The {0} would not fit into the {1} because the _ was too large.", "piano", "cupboard", "1"),
    ("Anna could not lift the {0} but carried the {1}, because the _ was heavy.", "anvil", "cup",
     "1"),
    ("He read the {0} by the {1} because the _ was bright.", "letter", "lamp", "2"),
    ("The {0} floated past the {1} because the _ was made of wood.", "raft", "rock", "1"),
)  # fmt: skip


def built_in_rows(name: str, count: int, seed: int, wording: str) -> list[dict[str, Any]]:
    """``count`` rows of a data set; row ``i`` depends on (seed, name, i) only.

    Args:
        name: ``piqa``, ``openbookqa`` or ``winogrande``.
        wording: ``small-1`` for the embedded model; all others are English.
    """
    make = _small_row if wording == "small-1" else _english_row
    return [make(name, generator("choices", seed, name, index)) for index in range(count)]


def _english_row(name: str, random: Random) -> dict[str, Any]:
    if name != "winogrande":
        goal, good, bad = random.choice(_TOOLS)
        return _asked(name, f"How does one {goal}? One can", good, bad, random)
    sentence, first, second, answer = random.choice(_GAPS)
    right, wrong = (first, second) if answer == "1" else (second, first)
    return _gapped(sentence.format(first, second), right, wrong, random)


def _small_row(name: str, random: Random) -> dict[str, Any]:
    from catekv.tasks.wording.small import SmallWording

    wording = SmallWording()
    keys = wording.keys("words", _NOTES, random)
    values = wording.values("numbers", _NOTES, random)
    notes = " ".join(map(wording.needle, ["words"] * _NOTES, keys, values))
    asked, other = random.sample(range(_NOTES), 2)
    question = f"{notes} {wording.needle_question('words', [keys[asked]], 1)} note"
    if name == "winogrande":
        # the value in the text decides which of two keys stands before it
        return _gapped(f"{question} _ {values[asked]} .", keys[asked], keys[other], random)
    return _asked(name, f"{question} {keys[asked]}", values[asked], values[other], random)


def _asked(name: str, text: str, right: str, wrong: str, random: Random) -> dict[str, Any]:
    place = random.randrange(2)
    options = [wrong, right] if place else [right, wrong]
    if name == "piqa":
        return {"goal": text, "sol1": options[0], "sol2": options[1], "label": place}
    choices = {"text": options, "label": ["A", "B"]}
    return {"question_stem": text, "choices": choices, "answerKey": "AB"[place]}


def _gapped(sentence: str, right: str, wrong: str, random: Random) -> dict[str, Any]:
    place = random.randrange(2)
    options = [wrong, right] if place else [right, wrong]
    return {
        "sentence": sentence,
        "option1": options[0],
        "option2": options[1],
        "answer": "12"[place],
    }
