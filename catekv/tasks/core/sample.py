"""One test sample, built from parts so that the boundary between context and question is known."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class Sample:
    """One question about one long context.

    The full prompt is ``context + question`` inside the chat template's user turn, followed by
    ``answer_prefix`` as the begun assistant turn (see :func:`catekv.tasks.core.prompt.encode`).

    Attributes:
        index: unique within (task, length, seed).
        outputs: reference answers.
        length: tokens of the full prompt plus ``max_new_tokens``.
        target_length: what was asked for (0: nothing).
        metric: short name of the task's official score, e.g. ``"all"`` (share of references
            found) or ``"part"`` (any found).
        wording: name of the prompt set.
        depths: relative positions (0..1) of the answers in the context.
        metadata: where the sample comes from and how it was made.
        stop: an answer ends before any of these texts.
        min_new_tokens: tokens that an answer has at least.
        scoring: what scoring needs besides ``outputs``, e.g. the names of all classes; results keep
            it whole, so that they can be scored again without the data.
        group: samples with the same non-empty group and the same context can share one
            compressed context.
    """

    task: str
    index: int
    context: str
    question: str
    answer_prefix: str
    outputs: tuple[str, ...]
    max_new_tokens: int
    length: int
    target_length: int
    metric: str = "all"
    wording: str = ""
    depths: tuple[float, ...] = ()
    metadata: dict[str, Any] = field(default_factory=dict)
    stop: tuple[str, ...] = ()
    min_new_tokens: int = 0
    scoring: dict[str, Any] = field(default_factory=dict)
    group: str = ""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)
