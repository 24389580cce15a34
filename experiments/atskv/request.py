"""What an experiment is asked for."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from experiments.atskv.choices import BENCHMARKS

EMBEDDED_NAMES = ("embedded", "ckpt/embedded")


@dataclass(frozen=True)
class Request:
    """The flags of the command, checked as far as that needs no model.

    Attributes:
        sizes: tokens of prompt and answer together.
        data: ``auto``, ``hub``, ``built-in`` or a path; "" for the model's default.
    """

    model: str
    max_seq_len: int
    fp16: bool
    methods: tuple[str, ...]
    sizes: tuple[int, ...]
    output: Path
    seed: int
    benchmarks: tuple[str, ...] = tuple(BENCHMARKS)
    examples: int = 5
    new_tokens: int = 50
    data: str = ""
    predictor: str | None = None
    train: bool = False
    untrained: bool = False
    preset: str = "published"
    device: str = "auto"
    plots: bool = True
    configuration: dict[str, Any] = field(default_factory=dict)

    @property
    def embedded(self) -> bool:
        from catekv.models import embedded

        if self.model in EMBEDDED_NAMES:
            return True
        return Path(self.model).expanduser().resolve() == embedded.path().resolve()

    @property
    def model_path(self) -> str:
        from catekv.models import embedded

        return str(embedded.path()) if self.embedded else self.model

    @property
    def rows(self) -> str:
        """Where rows come from; the embedded model reads generated ones unless told otherwise,
        because it knows no other language."""
        return self.data or ("built-in" if self.embedded else "auto")


def refused(request: Request, size: int, window: int | None) -> str | None:
    """Why a size is left out; None: it is not."""
    if size > request.max_seq_len:
        return f"{size} tokens exceed --max_seq_len {request.max_seq_len}"
    if window is not None and size > window:
        return f"{size} tokens exceed the model's window of {window}"
    return None
