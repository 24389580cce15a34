"""MRCR conversations at any length; the unit is one request with the text that answered it."""

from __future__ import annotations

import string
from collections.abc import Callable
from functools import lru_cache
from random import Random

from catekv.errors import UserError
from catekv.tasks.core.parts import Parts
from catekv.tasks.core.task import BuildRequest
from catekv.tasks.drawing.drawn_samples import Plan
from catekv.tasks.families.mrcr import small
from catekv.tasks.families.mrcr.options import ConversationOptions
from catekv.tasks.small.parts import is_small
from catekv.tasks.wording.hay import cut_sentence
from catekv.tasks.wording.vocabulary import ADJECTIVES, NOUNS

KINDS = (
    "poem", "riddle", "short story", "letter", "speech", "recipe", "news report", "song",
    "diary entry", "advertisement",
)  # fmt: skip
ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth")
_OPENING = (
    "Here is a conversation. Afterwards you will be asked to repeat one of its texts, with a given "
    "string in front.\n\n"
)
#: letters and digits of the string in front
_PREFIX = 10
#: words of a text
_WORDS = {False: (60, 200), True: (10, 20)}


def new_tokens(answer: str) -> int:
    """More tokens than any tokenizer that knows the words needs for the answer."""
    return 16 + len(answer) // 2


def plan(request: BuildRequest, index: int) -> Plan:
    options = request.options
    assert isinstance(options, ConversationOptions)
    needles = needles_of(request.task.name)
    if is_small(request.wording):
        return small.plan(request, index, needles)
    words = _WORDS[options.short][1]
    return Plan(_drafts(request, index, needles, options.short), 2 * needles, extra_limit=words)


def needles_of(task: str) -> int:
    """Equal requests in a task's conversations: the number in its name."""
    return int(task.partition("/")[2].removesuffix("_needles"))


def _text(sentences: Callable[[], str], random: Random, short: bool) -> str:
    """Whole sentences of 60 to 200 words (short: 10 to 20)."""
    least, most = _WORDS[short]
    wanted = random.randint(least, most)
    text: list[str] = []
    words = 0
    while words < wanted:
        sentence = sentences()
        text.append(sentence)
        words += len(sentence.split())
    return " ".join(text)


def _drafts(
    request: BuildRequest, index: int, needles: int, short: bool
) -> Callable[[int, int], Parts]:
    random = request.random(index, "asked")
    topics = [f"{adjective} {noun}s" for adjective in ADJECTIVES for noun in NOUNS]
    random.shuffle(topics)
    kind, topic = random.choice(KINDS), topics.pop()
    ordinal = random.randrange(needles)
    prefix = "".join(random.choices(string.ascii_letters + string.digits, k=_PREFIX))
    essay = request.wording.essay(request.random(index, "texts"))
    texts = [_text(lambda: next(essay), random, short) for _ in range(needles)]
    if len(set(texts)) < needles:
        raise UserError(f"{request.task.name}: two of its texts are the same; use another seed")
    answer = prefix + texts[ordinal]
    other_kinds = [each for each in KINDS if each != kind]
    # distractors share the kind or the topic, never both
    others: list[tuple[str, str, str]] = []
    prose, rest = request.wording.essay(request.random(index, "end")), list[str]()

    def distractor() -> tuple[str, str, str]:
        text = _text(lambda: next(essay), random, short)
        if len(others) % 2:
            return kind, random.choice(topics), text
        return random.choice(other_kinds), topic, text

    def filler(words: int) -> str:
        while len(" ".join(rest).split()) < words:
            rest.append(next(prose))
        return " ".join(rest)

    @lru_cache(maxsize=2)  # the search looks at one text twice: estimated, then counted
    def draft(units: int, extra: int) -> Parts:
        while len(others) < units - needles:
            others.append(distractor())
        places = request.random(index, f"places of {units}").sample(range(units), needles)
        asks = list(others[: units - needles])
        for place, text in zip(sorted(places), texts, strict=True):
            asks.insert(place, (kind, topic, text))
        if extra:
            asks.append((other_kinds[0], topics[0], cut_sentence(filler(extra), extra)))
        lines = [
            f"User: Write a {each} about {about}.\nAssistant: {text}\n"
            for each, about, text in asks
        ]
        context = _OPENING + "\n".join(lines) + "\n"
        return Parts(
            context=context,
            question=f"Write {prefix} and right behind it, without a space, repeat the "
            f"{ORDINALS[ordinal]} {kind} about {topic} word for word. Write nothing else.\n",
            answer_prefix="",
            outputs=(answer,),
            max_new_tokens=new_tokens(answer),
            wording=request.wording.name,
            depths=tuple(context.find(text) / len(context) for text in texts),
            scoring={"prefix": prefix, "texts": texts, "instance": ordinal},
            metadata={"needles": needles, "messages": 2 * units},
        )

    return draft
