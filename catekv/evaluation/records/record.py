"""One measurement of a run, and what several lines of one sample mean."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from operator import attrgetter
from pathlib import Path
from typing import Any

from catekv.evaluation.records.journal import Form, read_rows

#: ``error["type"]`` of a sample that was left out, e.g. because the model's window is too short
SKIPPED = "Skipped"

Key = tuple[str, int, int, str, str, str]


@dataclass(frozen=True)
class Record:
    """One sample under one method; a failed one has ``error`` and no score.

    ``length`` is the target in tokens (0: as the file says), ``prompt_tokens`` what the prompt
    really had. ``kept_tokens`` is the mean over layers and KV heads, ``kept`` the tokens per layer
    and head. ``compressed_tokens`` is the part of the prompt that was compressed. Bytes are those
    of the cache right after compression; seconds are wall clock; ``peak_bytes`` is CUDA's
    allocation peak (None elsewhere).

    ``batch`` samples were measured at once: the seconds and the peak are those of the whole batch,
    bytes are this sample's share. ``context_questions`` samples were answered from one compressed
    context: each of them carries the seconds of that one prefill and compression, and its own of
    question and decode.

    Where several answers were drawn, ``answers`` are all of them, ``prediction`` is the first,
    scores are means over them, and new tokens, seconds and steps of question and decode sums.
    ``at_limit`` is the share of answers that the limit of tokens ended. ``scoring`` is what the
    metric needs besides the references.
    """

    task: str
    length: int
    index: int
    method: str
    question: str
    method_hash: str
    sample_hash: str = ""
    prediction: str = ""
    answers: tuple[str, ...] = ()
    references: tuple[str, ...] = ()
    metric: str = "all"
    wording: str = ""
    official: float | None = None
    strict: float | None = None
    scores: dict[str, float] = field(default_factory=dict)
    prompt_tokens: int = 0
    target_length: int = 0
    compressed_tokens: int = 0
    kept_tokens: float | None = None
    kept_share: float | None = None
    asked_share: float | None = None
    kept: tuple[tuple[int, ...], ...] = ()
    budget: int | None = None
    stored_bytes: int | None = None
    full_bytes: int | None = None
    new_tokens: int = 0
    at_limit: float | None = None
    prefill: str = ""
    prefill_seconds: float | None = None
    compress_seconds: float | None = None
    question_seconds: float | None = None
    decode_seconds: float | None = None
    decode_steps: int = 0
    peak_bytes: int | None = None
    depths: tuple[float, ...] = ()
    metadata: dict[str, Any] = field(default_factory=dict)
    scoring: dict[str, Any] = field(default_factory=dict)
    batch: int = 1
    context_questions: int = 1
    error: dict[str, str] | None = None

    @property
    def key(self) -> Key:
        return (
            self.task,
            self.length,
            self.index,
            self.method,
            self.question,
            self.method_hash,
        )

    def to_dict(self) -> dict[str, Any]:
        """The fields that are filled, as JSON has them."""
        return {
            name: value
            for name in _FIELDS
            if (value := getattr(self, name)) not in (None, "", (), {})
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Record:
        if not values.keys() <= _FIELDS.keys():
            values = {name: value for name, value in values.items() if name in _FIELDS}
        for name in ("answers", "references", "depths"):
            if name in values:
                values[name] = tuple(values[name])
        if "kept" in values:
            values["kept"] = tuple(map(tuple, values["kept"]))
        for name, value in values.items():
            if not isinstance(value, _FIELDS[name]):
                raise TypeError(f"{name} is no {_FIELDS[name]}")
        return cls(**values)

    @property
    def texts(self) -> tuple[str, ...]:
        """Every answer."""
        return self.answers or (self.prediction,)

    @property
    def skipped(self) -> bool:
        """Whether this is no failure but a sample that was left out, with its reason."""
        return self.error is not None and self.error.get("type") == SKIPPED


_KINDS: dict[str, tuple[type, ...]] = {
    "str": (str,), "int": (int,), "float": (int, float), "tuple": (tuple,), "dict": (dict,),
    "None": (type(None),),
}  # fmt: skip
#: The fields in order, and what their values are; looked up once, because reading thousands of
#: records must be quick.
_FIELDS = {
    item.name: tuple(
        kind for part in str(item.type).split(" | ") for kind in _KINDS[part.partition("[")[0]]
    )
    for item in fields(Record)
}


FORM = Form(
    "record of a sample",
    Record.from_dict,
    Record.to_dict,
    attrgetter("key"),
    "delete that line (its sample is then measured again) or use --overwrite",
)


def read_records(path: Path) -> list[Record]:
    """All records of one file, in order; ``UserError`` for a line that is none."""
    return read_rows(path, FORM)


def merge(records: Iterable[Record]) -> dict[Key, Record]:
    """One record per key, sorted by key: a successful one beats an error, a later one an earlier.

    The result does not depend on how many processes wrote the records.
    """
    best: dict[Key, Record] = {}
    for record in records:
        earlier = best.get(record.key)
        if earlier is None or record.error is None or earlier.error is not None:
            best[record.key] = record
    return dict(sorted(best.items()))
