"""The flags of the published scripts, mapped onto ours; they keep their names and meanings.

Importing this module loads neither torch nor transformers: the scripts parse first.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from catekv.errors import UserError
from catekv.evaluation.efficiency.arguments import (
    MEASURING,
    NEW_TOKENS,
    add_measuring_arguments,
)

if TYPE_CHECKING:
    from catekv.evaluation.run.request import Request

_FULL = "full"


def add_method_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags that both published scripts share."""
    add = parser.add_argument
    add("--model_name", help="local folder, .gguf file or hub name (default: the embedded model)")
    add(
        "--head_classification_path",
        help="head masks: folder, CSV or DuoAttention pattern (default: those of the model)",
    )
    add("--datalen", type=int, help="prompt length in tokens (default: 1024 on the embedded model)")
    add(
        "--method",
        default="CateKV",
        help="full, CateKV, SnapKV, StreamingLLM, in any case (default: CateKV)",
    )
    add("--sparse_budget", type=int, help="b, tokens a consistent head keeps (default: 2048)")
    add("--chunk_size", type=int, help="tokens kept or dropped together (default: 8)")
    add("--last_q", type=int, help="L, last prompt queries that score (default: 64)")
    add("--init_tokens", type=int, help="first tokens always kept (default: 64)")
    add("--recent_tokens", type=int, help="last tokens always kept (default: 256)")
    add("--top_threshold", type=float, help="alpha that the mask must have been made with")
    add("--top_fraction", type=float, help="k that the mask must have been made with")
    add("--cv_threshold", type=float, help="r, share of adaptive heads (default: 0.4)")
    add("--full_fraction", type=float, help="eta, share adaptive heads keep (default: 1.0)")
    add("--minference", action="store_true", help="sparse prefill; not available")
    add("--dtype", default="auto", help="auto, float32, bfloat16 or float16")
    add("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    add("--attention", default="auto", help="attention of the prefill: auto, sdpa, eager, ...")


def add_accuracy_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of ``test/eval_acc.py``."""
    add = parser.add_argument
    add_method_arguments(parser)
    add("--dataset_name", help="tasks separated by commas (default: those of the model)")
    add("--num_samples", type=int, help="samples per task; -1: 96, as published")
    add("--batch_size", type=int, default=1, help="samples measured at once (default: 1)")
    add(
        "--question",
        choices=("agnostic", "aware", "both"),
        help="question after compression (agnostic, default) or inside the compressed prompt "
        "(aware, default with --paper)",
    )
    add("--seed", type=int, default=42)
    add("--output", type=Path, help="run directory (default: one under results/)")
    add("--overwrite", action="store_true", help="delete the results there first")
    add(
        "--parallel",
        choices=("data", "tensor"),
        default="data",
        help="under torchrun: share out the samples (data, default) or the model (tensor)",
    )
    add("--paper", action="store_true", help="published tasks, length, samples, r, eta and b")


def add_efficiency_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of ``test/eval_efficiency.py``."""
    add = parser.add_argument
    add_method_arguments(parser)
    add("--batch_size", nargs="+", default=["1"], help="batch sizes (default: 1), or max")
    add("--gen_len", type=int, default=NEW_TOKENS, help="decode steps per round (default: 32)")
    add("--lengths", nargs="+", default=[], help="several lengths instead of --datalen")
    add_measuring_arguments(parser, "_")


def _refuse(parsed: argparse.Namespace) -> None:
    if parsed.minference:
        raise UserError(
            "--minference: sparse prefill is not part of this project; leave the flag out, prefill "
            "is exact then"
        )


def _method_options(parsed: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Options per method name that the flags set."""
    catekv = {
        "chunk_size": parsed.chunk_size,
        "window": parsed.last_q,
        "init_tokens": parsed.init_tokens,
        "recent_tokens": parsed.recent_tokens,
    }
    given = {name: value for name, value in catekv.items() if value is not None}
    return {"catekv": given} if given else {}


def _masks(parsed: argparse.Namespace) -> tuple[str, ...]:
    path = parsed.head_classification_path
    return () if path is None else (path,)


def accuracy_request(parsed: argparse.Namespace) -> Request:
    """What ``test/eval_acc.py`` was asked for.

    Raises:
        UserError: flags that cannot be honoured, or an unknown method.
    """
    from catekv.evaluation.columns.settings import PAPER_SAMPLES
    from catekv.evaluation.columns.specification import canonical_name
    from catekv.evaluation.run.request import Request
    from catekv.evaluation.run.session import question_modes, split_list

    _refuse(parsed)
    if parsed.num_samples is not None and parsed.num_samples < -1:
        raise UserError(f"--num_samples {parsed.num_samples}: give at least 1, or -1 for all 96")
    method = canonical_name(parsed.method)
    return Request(
        model=parsed.model_name,
        tasks=split_list([parsed.dataset_name] if parsed.dataset_name else []),
        lengths=() if parsed.datalen is None else (parsed.datalen,),
        samples=PAPER_SAMPLES if parsed.num_samples == -1 else parsed.num_samples,
        methods=(_FULL,) if method == _FULL else (_FULL, method),
        masks=_masks(parsed),
        ratio=parsed.cv_threshold,
        retention=parsed.full_fraction,
        budget=parsed.sparse_budget,
        options=_method_options(parsed),
        made_with=_made_with(parsed),
        questions=question_modes(parsed.question),
        seed=parsed.seed,
        batch_size=parsed.batch_size,
        dtype=parsed.dtype,
        device=parsed.device,
        attention=parsed.attention,
        parallel=parsed.parallel,
        paper=parsed.paper,
        output=parsed.output,
        overwrite=parsed.overwrite,
    )


def _made_with(parsed: argparse.Namespace) -> dict[str, float]:
    """Calibration options that the mask must agree with."""
    wanted = {"k": parsed.top_fraction, "alpha": parsed.top_threshold}
    return {name: value for name, value in wanted.items() if value is not None}


def efficiency_arguments(parsed: argparse.Namespace) -> argparse.Namespace:
    """The arguments of ``catekv efficiency`` for what ``test/eval_efficiency.py`` was asked for.

    Raises:
        UserError: flags that cannot be honoured, or an unknown method.
    """
    from catekv.evaluation.columns.specification import canonical_name

    _refuse(parsed)
    return argparse.Namespace(
        model=parsed.model_name,
        lengths=parsed.lengths or [str(4096 if parsed.datalen is None else parsed.datalen)],
        methods=[canonical_name(parsed.method)],
        masks=list(_masks(parsed)),
        ratio=parsed.cv_threshold,
        retention=parsed.full_fraction,
        budget=parsed.sparse_budget,
        options=_method_options(parsed),
        made_with=_made_with(parsed),
        new_tokens=parsed.gen_len,
        batch_sizes=parsed.batch_size,
        chunk_size=8192,
        dtype=parsed.dtype,
        device=parsed.device,
        attention=parsed.attention,
        **{name: getattr(parsed, name) for name in MEASURING},
    )
