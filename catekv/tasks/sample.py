"""One test sample, built from parts so that the boundary between context and question is known."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class Sample:
    """One question about one long context.

    The full prompt is ``context + question`` inside the chat template's user turn, followed by
    ``answer_prefix`` as the begun assistant turn (see :func:`catekv.tasks.prompt.encode`).

    ``length`` counts tokens of the full prompt plus ``max_new_tokens``; ``target_length`` is what
    was asked for. ``metric`` is ``"all"`` (share of references found) or ``"part"`` (any found).
    ``index`` is unique within (task, length, seed). ``wording`` names the prompt set.
    ``depths`` are the relative positions (0..1) of the answers in the context.
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

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)
