"""The command ``catekv triattention``."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from catekv.commands.schema import Group
from catekv.errors import UserError
from catekv.evaluation.options import COUNT, REQUIRED, option, refuse_unheeded
from catekv.evaluation.run.request import MODEL, Request
from catekv.files import check_new_file, read_text
from catekv.models.compat import context_window

if TYPE_CHECKING:
    from catekv.model import CateKVModel

#: random stream of the texts: no test reads it
STREAM = "query-statistics"


@dataclass(frozen=True)
class Asked:
    """What is read, and where the statistics go."""

    output: Path = option(REQUIRED, "file of the statistics, e.g. statistics.pt")
    text: Path | None = option(None, "file to read (default: a drawn prompt of --task)")
    task: str = option("synthetic", "task whose prompt is read (default: {default})")
    tokens: int = option(32768, "to read at most (default: {default})", **COUNT)
    seed: int = option(42, "of the drawn prompt (default: {default})")
    overwrite: bool = option(False, "replace what is there")


REQUEST = Group(Request, (*MODEL, "chunk_size"))
ASKED = Group(Asked)
OPTIONS = (REQUEST, ASKED)


def run(arguments: argparse.Namespace) -> int:
    from catekv.calibration.query_statistics import query_statistics
    from catekv.evaluation.run.session import open_model

    asked, request = ASKED.read(arguments), REQUEST.read(arguments)
    if asked.text is not None:
        refuse_unheeded(asked, ("task", "seed"), f"{asked.text} is read, and no prompt drawn")
    check_new_file(asked.output, asked.overwrite)
    model = open_model(request, for_text=True)
    ids = model.encode(_text(model, asked))[0][0].tolist()[: asked.tokens]
    found = query_statistics(model, ids, request.chunk_size)
    found.save(
        asked.output,
        {
            "model": model.model_id,
            "layers": found.layers,
            "query_heads": found.heads,
            "tokens": len(ids),
            "source": str(asked.text or asked.task),
        },
    )
    print(
        f"Mean queries of {found.layers} layers with {found.heads} heads over {len(ids)} tokens: "
        f"{asked.output}"
    )
    return 0


def _text(model: CateKVModel, asked: Asked) -> str:
    from catekv import tasks

    if asked.text is not None:
        text = read_text(asked.text)
        if not text.strip():
            raise UserError(f"{asked.text} holds no text; give another file")
        return text
    tokens = min(asked.tokens, context_window(model.config) or asked.tokens)
    (sample,) = tasks.build(asked.task, model.tokenizer, tokens, 1, asked.seed, stream=STREAM)
    return str(sample.context)
