"""The flags of the published scripts, mapped onto ours; they keep their names and meanings.

Importing this module loads neither torch nor transformers: the scripts parse first.
"""

from __future__ import annotations

import argparse
import dataclasses
from dataclasses import dataclass
from typing import Any

from catekv.commands.schema import Group
from catekv.errors import UserError
from catekv.evaluation.efficiency import arguments as efficiency
from catekv.evaluation.efficiency.arguments import Measuring
from catekv.evaluation.options import COUNT, option
from catekv.evaluation.run.request import MODEL, Request, split_list

_FULL = "full"


@dataclass(frozen=True)
class Published:
    """Flags of both published scripts that no field of ours stands for one to one."""

    head_classification_path: str | None = option(
        None, "head masks: folder, CSV or DuoAttention pattern (default: those of the model)"
    )
    datalen: int | None = option(
        None, "prompt length in tokens (default: 1024 on the embedded model)", **COUNT
    )
    method: str = option(
        "CateKV", "full, CateKV, SnapKV, StreamingLLM, in any case (default: {default})"
    )
    chunk_tokens: int | None = option(
        None, "tokens kept or dropped together (default: 8)", flag="--chunk_size",
        metavar="CHUNK_SIZE",
    )  # fmt: skip
    last_q: int | None = option(None, "L, last prompt queries that score (default: 64)")
    init_tokens: int | None = option(None, "first tokens always kept (default: 64)")
    recent_tokens: int | None = option(None, "last tokens always kept (default: 256)")
    top_threshold: float | None = option(None, "alpha that the mask must have been made with")
    top_fraction: float | None = option(None, "k that the mask must have been made with")
    minference: bool = option(False, "sparse prefill; not available")


@dataclass(frozen=True)
class PublishedSamples:
    """Flags of ``test/eval_acc.py`` alone."""

    dataset_name: str | None = option(
        None, "tasks separated by commas (default: those of the model)"
    )
    num_samples: int | None = option(None, "samples per task; -1: 96, as published")


_RENAMED = {
    "model": "--model_name",
    "ratio": "--cv_threshold",
    "retention": "--full_fraction",
    "budget": "--sparse_budget",
}
_METHOD = (*MODEL, "ratio", "retention", "budget")
PUBLISHED = Group(Published, separator="_")
SAMPLES = Group(PublishedSamples, separator="_")
ACCURACY_REQUEST = Group(
    Request,
    (*_METHOD, "batch_size", "questions", "seed", "output", "overwrite", "parallel", "paper"),
    flags=_RENAMED,
    separator="_",
)
EFFICIENCY_REQUEST = Group(Request, _METHOD, flags=_RENAMED, separator="_")
MEASURING = Group(
    Measuring,
    ("batch_sizes", "new_tokens", "lengths", *efficiency.MEASURING),
    flags={"batch_sizes": "--batch_size", "new_tokens": "--gen_len"},
    defaults={"lengths": ()},
    helps={"lengths": "several lengths instead of --datalen"},
    separator="_",
)
#: What ``test/eval_acc.py`` and ``test/eval_efficiency.py`` take.
ACCURACY = (PUBLISHED, SAMPLES, ACCURACY_REQUEST)
EFFICIENCY = (PUBLISHED, EFFICIENCY_REQUEST, MEASURING)


def _method(parsed: argparse.Namespace) -> str:
    from catekv.evaluation.columns.specification import canonical_name

    if parsed.minference:
        raise UserError(
            "--minference: sparse prefill is not part of this project; leave the flag out, prefill "
            "is exact then"
        )
    return canonical_name(parsed.method)


def _method_options(parsed: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Options per method name that the flags set."""
    catekv = {
        "chunk_size": parsed.chunk_tokens,
        "window": parsed.last_q,
        "init_tokens": parsed.init_tokens,
        "recent_tokens": parsed.recent_tokens,
    }
    given = {name: value for name, value in catekv.items() if value is not None}
    return {"catekv": given} if given else {}


def _mask_and_options(parsed: argparse.Namespace) -> dict[str, Any]:
    """Fields of a request that several flags set."""
    path = parsed.head_classification_path
    return {
        "masks": () if path is None else (path,),
        "options": _method_options(parsed),
        "made_with": _made_with(parsed),
    }


def accuracy_request(parsed: argparse.Namespace) -> Request:
    """What ``test/eval_acc.py`` was asked for.

    Raises:
        UserError: flags that cannot be honoured, or an unknown method.
    """
    from catekv.evaluation.columns.settings import PAPER_SAMPLES

    if parsed.num_samples is not None and parsed.num_samples < -1:
        raise UserError(f"--num_samples {parsed.num_samples}: give at least 1, or -1 for all 96")
    method = _method(parsed)
    return ACCURACY_REQUEST.read(
        parsed,
        tasks=split_list([parsed.dataset_name] if parsed.dataset_name else []),
        lengths=() if parsed.datalen is None else (parsed.datalen,),
        samples=PAPER_SAMPLES if parsed.num_samples == -1 else parsed.num_samples,
        methods=(_FULL,) if method == _FULL else (_FULL, method),
        **_mask_and_options(parsed),
    )


def _made_with(parsed: argparse.Namespace) -> dict[str, float]:
    """Calibration options that the mask must agree with."""
    wanted = {"k": parsed.top_fraction, "alpha": parsed.top_threshold}
    return {name: value for name, value in wanted.items() if value is not None}


def efficiency_asked(parsed: argparse.Namespace) -> tuple[Measuring, Request]:
    """What ``test/eval_efficiency.py`` was asked for.

    Raises:
        UserError: flags that cannot be honoured, or an unknown method.
    """
    request = EFFICIENCY_REQUEST.read(
        parsed, methods=(_method(parsed),), **_mask_and_options(parsed)
    )
    measuring = MEASURING.read(parsed)
    if not measuring.lengths:
        lengths = Measuring.lengths if parsed.datalen is None else (parsed.datalen,)
        measuring = dataclasses.replace(measuring, lengths=lengths)
    return measuring, request
