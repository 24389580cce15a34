"""Many methods on the same prompts: one prefill each, compressed by all, decoded as one batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from catekv.calibration.cokv.coalitions import WINDOW, answer_all
from catekv.decode.context import stack
from catekv.errors import UserError
from catekv.evaluation.run.asking import Trial, official_scores
from catekv.methods import Method, Needs, create

if TYPE_CHECKING:
    from catekv.model import CateKVModel
    from catekv.tasks.core.sample import Sample

#: Options that make a method spend its budget as the others do: the window, and exact counts.
COMPARED: dict[str, dict[str, Any]] = {
    "snapkv": {},
    "pyramidkv": {},
    "adakv": {"exact": True, "floor": 0.2},
    "headkv": {"rounding": "largest_remainder", "redistribute": True, "beta": 1.01},
    "cokv": {"rounding": "largest_remainder", "redistribute": True},
}


@dataclass(frozen=True)
class Answer:
    """One method on one sample: the text, its official score in [0, 1] and entries stored."""

    text: str
    score: float
    stored: int


def compared_method(name: str, capacity: int, window: int = WINDOW, **options: Any) -> Method:
    """A method of the comparison at a mean capacity per head, the window included.

    Raises:
        UserError: a method that is not one of the comparison, or no room beside the window.
    """
    if name == "full":
        return create("full")
    if name not in COMPARED:
        raise UserError(f"unknown method {name!r}; compare full, {', '.join(COMPARED)}")
    if capacity < window:
        raise UserError(f"a capacity of {capacity} does not hold the window of {window} tokens")
    chosen = {**COMPARED[name], **options}
    return create(name, budget=capacity - window, window=window, **chosen)


def answer_with_all(
    model: CateKVModel,
    trial: Trial,
    methods: Mapping[str, tuple[Method, int | None]],
    *,
    batch_size: int = 32,
    chunk_size: int = 8192,
) -> dict[str, Answer]:
    """Every method's answer to one sample.

    Args:
        methods: by label, each with the capacity per head that it shall keep exactly on average
            (all heads of the model together), or None for its own count.
        batch_size: compressed contexts that are decoded together.

    Raises:
        UserError: a method kept another number of entries than its capacity says.
    """
    needs = Needs.of_all(method for method, _ in methods.values())
    dense = model.observe(trial.context_ids, needs=needs, chunk_size=chunk_size)
    heads = model.shape.layers * model.shape.kv_heads
    found: dict[str, Answer] = {}
    labels = list(methods)
    for start in range(0, len(labels), batch_size):
        part = labels[start : start + batch_size]
        contexts = []
        for label in part:
            method, capacity = methods[label]
            if capacity is not None and method.name != "full":
                method = method.with_total(capacity * heads, dense.tokens, model.shape)
            contexts.append(dense.compress(method))
        texts = answer_all(model, stack(contexts), trial)
        scores = official_scores(texts, trial.sample)
        for label, context, text, score in zip(part, contexts, texts, scores, strict=True):
            stored = sum(int(layer.sum()) for layer in context.lengths())
            method, capacity = methods[label]
            if capacity is not None and method.name != "full":
                wanted = heads * min(capacity, dense.tokens)
                if stored != wanted:
                    raise UserError(
                        f"{label} kept {stored} entries of {dense.tokens} tokens instead of the "
                        f"{wanted} that all get; it cannot be compared at equal memory"
                    )
            found[label] = Answer(text, score, stored)
    return found


def compare_methods(
    model: CateKVModel,
    samples: Sequence[Sample],
    methods: Mapping[str, tuple[Method, int | None]],
    question: str = "published",
    *,
    chat_template: str = "auto",
    batch_size: int = 32,
    chunk_size: int = 8192,
    advance: Callable[[], object] = lambda: None,
) -> dict[str, list[Answer]]:
    """:func:`answer_with_all` for every sample: label -> answers in the order of the samples."""
    for method, _ in methods.values():
        method.validate(model.shape)
    found: dict[str, list[Answer]] = {label: [] for label in methods}
    for sample in samples:
        trial = Trial.of(sample, model.tokenizer, question, chat_template)
        answers = answer_with_all(
            model, trial, methods, batch_size=batch_size, chunk_size=chunk_size
        )
        for label, answer in answers.items():
            found[label].append(answer)
        advance()
    return found


def mean_score(answers: Sequence[Answer]) -> float:
    return sum(answer.score for answer in answers) / len(answers)
