"""A prompt in parts, and the sample that becomes of it.

What reads rows and what draws text both end here: see :mod:`row_samples` and :mod:`drawn_samples`.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from hashlib import sha256
from typing import Any

from catekv.tasks.core.prompt import WITHOUT_TEMPLATE, PromptFormat, prompt_format
from catekv.tasks.core.sample import Sample
from catekv.tasks.core.task import BuildRequest

#: prompt set of prompts that an official file holds ready-made
OFFICIAL = "official-file"


@dataclass(frozen=True)
class Parts:
    """A prompt in parts, with what a sample says about it.

    Attributes:
        max_new_tokens: allowance of the answer unless the request has one.
        wording: name of the prompt set.
        uncut: characters at the start of the context that a cut must leave, e.g. its instruction.
        document_end: where the part of the context that may be cut ends (None: at its end).
        separator: text that takes the place of a document's end that was cut off.
        without_template: the text is continued as it is, in no chat template.
    """

    context: str
    question: str
    answer_prefix: str
    outputs: tuple[str, ...]
    max_new_tokens: int
    wording: str
    scoring: dict[str, Any] = field(default_factory=dict)
    stop: tuple[str, ...] = ()
    depths: tuple[float, ...] = ()
    metadata: dict[str, Any] = field(default_factory=dict)
    uncut: int = 0
    document_end: int | None = None
    separator: str = ""
    without_template: bool = False
    shared_context: bool = False

    @property
    def literal(self) -> bool:
        """Whether the white space of the answer prefix is part of an official prompt."""
        return self.wording == OFFICIAL


def unfitted(task: str, metric: str, index: int, parts: Parts) -> Sample:
    """A sample whose tokens nobody counted: what reading a file without a tokenizer gives."""
    metadata = dict(parts.metadata)
    if parts.without_template:
        metadata.update(WITHOUT_TEMPLATE)
    group = ""
    if parts.shared_context:
        group = f"{task}:{sha256(parts.context.encode()).hexdigest()[:16]}"
    return Sample(
        task=task,
        index=index,
        context=parts.context,
        question=parts.question,
        answer_prefix=parts.answer_prefix,
        outputs=parts.outputs,
        max_new_tokens=parts.max_new_tokens,
        length=0,
        target_length=0,
        metric=metric,
        wording=parts.wording,
        depths=tuple(round(depth, 6) for depth in parts.depths),
        metadata=metadata,
        stop=parts.stop,
        scoring=parts.scoring,
        group=group,
    )


def counted(
    request: BuildRequest, index: int, parts: Parts, tokens: int, answer: int, **notes: Any
) -> Sample:
    """A sample of counted tokens; ``notes`` go into its metadata."""
    made = unfitted(request.task.name, request.task.metric, index, parts)
    metadata = {**request.shared(), **made.metadata, **notes}
    return replace(
        made,
        max_new_tokens=answer,
        length=tokens + answer,
        target_length=request.length,
        metadata=metadata,
    )


def prompt_format_of(request: BuildRequest, parts: Parts) -> PromptFormat:
    """How the prompt is wrapped: as the request says, or not at all."""
    return prompt_format(request.tokenizer, "none") if parts.without_template else request.format


def count(wrapped: PromptFormat, parts: Parts) -> int:
    """Tokens of the whole prompt."""
    return len(
        wrapped.encode(parts.context, parts.question, parts.answer_prefix, literal=parts.literal)
    )
