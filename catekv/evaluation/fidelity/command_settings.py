"""From what somebody asks for on a command line to the settings of a fidelity run."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from catekv.errors import UserError
from catekv.evaluation.columns.settings import stable_hash
from catekv.evaluation.fidelity.settings import DEFAULT_TASKS, NONE, Settings, columns_of
from catekv.evaluation.records import environment
from catekv.evaluation.run.request import Request
from catekv.evaluation.run.session import RESULTS, method_specs_for, revision_of
from catekv.models.compat import context_window
from catekv.tasks.core.prompt import template_name

if TYPE_CHECKING:
    from catekv.model import CateKVModel

DEFAULT_LENGTH = 1024


def settings_for(
    request: Request,
    model: CateKVModel,
    texts: tuple[str, ...],
    ratios: tuple[float, ...],
    forced: int,
) -> Settings:
    """Fill in every default and read the masks.

    Args:
        texts: files, ``prose``, or ``none``. ratios: shares that every method keeps.

    Raises:
        UserError: unknown tasks, methods or options, unreadable masks, numbers out of range.
    """
    window = context_window(model.config)
    longest = max(request.lengths, default=0)
    if window is not None and longest > window:
        raise UserError(
            f"a length of {longest} tokens exceeds the model's context window of {window}; give "
            "smaller --lengths"
        )
    tasks = () if request.tasks == (NONE,) else request.tasks or DEFAULT_TASKS
    path = request.model_path
    return Settings(
        model="embedded" if request.embedded else path,
        model_hash=environment.model_identity(path, revision_of(model)),
        dtype=str(model.dtype).removeprefix("torch."),
        device=str(model.device).split(":")[0],
        attention=request.attention,
        texts=() if texts == (NONE,) else texts,
        tasks=tasks,
        lengths=request.lengths or (min(DEFAULT_LENGTH, window or DEFAULT_LENGTH),),
        columns=tuple(columns_of(method_specs_for(request, model), ratios)),
        samples=4 if request.samples is None else request.samples,
        forced=forced,
        question=request.questions[0],
        chat_template=template_name(request.chat_template),
        seed=request.seed,
        batch_size=request.batch_size,
        chunk_size=request.chunk_size,
    )


def default_output(settings: Settings) -> Path:
    """``results/fidelity-<model>-<hash>``: the same command goes on in its folder; other columns,
    texts and lengths are added to it."""
    name = re.sub(r"[^\w.-]+", "_", Path(settings.model).name) or "model"
    return RESULTS / f"fidelity-{name}-{stable_hash(settings.configuration())[:8]}"
