"""Sample, scores, sizes, times and budget of one measurement, as fields of its record."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from catekv.decode.sharded_sizes import cache_sizes
from catekv.errors import UserError
from catekv.evaluation.columns.settings import MethodSpec
from catekv.evaluation.run.asking import scored, text_of
from catekv.evaluation.run.cells import sample_hash
from catekv.methods import Method, ModelShape
from catekv.methods.equal_memory import mean_read_tokens
from catekv.tasks.core.sample import Sample

if TYPE_CHECKING:
    from catekv.decode.context import Context
    from catekv.decode.generation import Generation
    from catekv.model import CateKVModel

#: what the sample builder writes into every sample and the manifest holds once
_SHARED_METADATA = ("seed", "stream", "options", "tokenizer", "tokenizer_hash", "chat_template")


def described(sample: Sample) -> dict[str, Any]:
    """What a record says of its sample: neither long texts nor what all samples of a run share."""
    return {
        "sample_hash": sample_hash(sample),
        "references": sample.outputs,
        "metric": sample.metric,
        "wording": sample.wording,
        "target_length": sample.target_length,
        "depths": sample.depths,
        "scoring": sample.scoring,
        "metadata": {
            name: value
            for name, value in sample.metadata.items()
            if name not in _SHARED_METADATA and len(str(value)) <= 200
        },
    }


def sizes(context: Context, place: int, tokens: int) -> dict[str, Any]:
    """Kept tokens and bytes of one sequence of a context.

    Args:
        place: the sequence within the batch.
        tokens: its true number of tokens.

    The bytes of a batch are shared out: stored ones by kept tokens, full ones by true tokens.
    A layer without a KV cache has no kept tokens.
    """
    whole = cache_sizes(context)
    kept = tuple(tuple(layer[place].tolist()) for layer in whole.lengths)
    flat = [entries for layer in kept for entries in layer]
    found: dict[str, Any] = {"kept": kept, "kept_tokens": sum(flat) / len(flat) if flat else 0.0}
    batch, columns = context.input_ids.shape
    stored, full = whole.stored_bytes, whole.full_bytes
    if batch == 1:
        return {
            **found,
            "kept_share": whole.kept_share,
            "stored_bytes": stored,
            "full_bytes": full,
        }
    own = sum(int(lengths[place].sum()) for lengths in whole.compressing)
    rows = sum(lengths.shape[-1] for lengths in whole.compressing)
    everything = sum(int(lengths.sum()) for lengths in whole.lengths)
    # recurrent states are as large for every sequence
    states = whole.state_bytes
    entries = (stored - states) * (sum(flat) / everything if everything else 1 / batch)
    return {
        **found,
        "kept_share": own / (rows * tokens) if rows else 1.0,
        "stored_bytes": round(entries + states / batch),
        "full_bytes": round((full - states) / batch * tokens / columns + states / batch),
    }


def times(generations: Sequence[Generation]) -> dict[str, Any]:
    """Seconds of question and decode, and the number of decode steps, of all answers."""
    return {
        "question_seconds": sum(one.question_seconds for one in generations),
        "decode_seconds": sum(one.decode_seconds for one in generations),
        "decode_steps": sum(one.steps for one in generations),
    }


def answered(
    model: CateKVModel, generations: Sequence[Generation], place: int, sample: Sample, limit: int
) -> dict[str, Any]:
    """What one sequence of a batch answered each time, and the scores of that."""
    rows = [one.rows[place] for one in generations]
    texts = tuple(text_of(model, one, place) for one in generations)
    return {
        "prediction": texts[0],
        "answers": texts if len(texts) > 1 else (),
        "new_tokens": sum(map(len, rows)),
        "at_limit": sum(len(tokens) >= limit for tokens in rows) / len(rows),
        **scored(texts, sample),
    }


def budget_of(method: Method, spec: MethodSpec) -> int | None:
    """The budget that equal memory led to; None where the options say it."""
    if spec.equal_memory_to is None:
        return None
    budget = getattr(method, "budget", None)
    return budget if isinstance(budget, int) else None


def asked_share(method: Method, spec: MethodSpec, tokens: int, shape: ModelShape) -> float | None:
    """Share of the entries that the method was to keep, or a step to read, which rounding and rules
    of its own may miss; None where only the prompt decides."""
    like = method if spec.equal_memory_to is None else spec.equal_memory_to.create()
    try:
        return mean_read_tokens(like, tokens, shape) / tokens
    except UserError:
        return None


def reset_peak(device: str) -> None:
    """Begin to watch CUDA's allocation peak."""
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()


def peak(device: str) -> int | None:
    """CUDA's allocation peak since :func:`reset_peak`; None on other devices."""
    return int(torch.cuda.max_memory_allocated()) if device.startswith("cuda") else None
