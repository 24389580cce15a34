"""What a run is asked for."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from catekv.errors import UserError


@dataclasses.dataclass(frozen=True)
class Request:
    """What a user asks for; None means: the default of the model at hand.

    Attributes:
        model: local folder or hub name; None: the embedded model.
        suite: name of a selection of tasks (:mod:`catekv.evaluation.run.suites`), or "".
        tasks, lengths, samples, questions, seed, chat_template, max_new_tokens, task_options,
            prefill, chunk_size, joint_decode, batch_size, sanity: see :class:`RunSettings`.
        methods: as :func:`catekv.evaluation.columns.specification.parse_method` reads them.
        masks: as :func:`catekv.evaluation.columns.specification.parse_masks` reads them.
        ratio, retention, budget: for every method that takes a head mask.
        options: more options per method name.
        preset: ``published`` or ``recommended``, for every method that does not say its own.
        made_with: calibration options (k, alpha) that masks must agree with where they say.
        dtype, device, attention: as :meth:`CateKVModel.from_pretrained` takes them.
        parallel: what several processes do: ``data`` (each a part of the samples) or ``tensor``
            (all share the model).
        paper: the published settings for all that is not given, the question inside the compressed
            prompt among them.
        output: run directory; None: one under ``results/`` named after the settings.
        max_errors: share of failed measurements above which a run gives up.
    """

    model: str | None = None
    suite: str = ""
    tasks: tuple[str, ...] = ()
    lengths: tuple[int, ...] = ()
    samples: int | None = None
    methods: tuple[str, ...] = ("full", "catekv")
    masks: tuple[str, ...] = ()
    ratio: float | None = None
    retention: float | None = None
    budget: int | None = None
    options: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    preset: str = "published"
    made_with: Mapping[str, float] = dataclasses.field(default_factory=dict)
    questions: tuple[str, ...] = ()
    seed: int = 42
    chat_template: str = "auto"
    max_new_tokens: int | None = None
    task_options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    prefill: str = "auto"
    chunk_size: int = 8192
    joint_decode: bool = False
    batch_size: int = 1
    sanity: bool = False
    max_errors: float = 0.5
    dtype: str = "auto"
    device: str = "auto"
    attention: str = "auto"
    parallel: str = "data"
    paper: bool = False
    output: Path | None = None
    overwrite: bool = False
    resume: bool = True

    @property
    def embedded(self) -> bool:
        """Whether this is the embedded model, named or not."""
        from catekv.models import embedded

        if self.model is None:
            return True
        try:
            return Path(self.model).resolve() == embedded.path().resolve()
        except UserError:
            return False
