"""How far one decode step is off on the embedded model and on random ones, for the evidence."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from catekv import tasks
from catekv.evaluation import plots
from catekv.evaluation.columns.defaults import EMBEDDED_TASKS
from catekv.tasks.core.prompt import encode
from experiments.simcalkv.step_error import StepError, grouped, quartiles, step_errors
from experiments.simcalkv.tensors import record

if TYPE_CHECKING:
    from catekv.model import CateKVModel

RATIOS = (0.2, 0.4, 0.6, 0.8)
#: tokens of a prompt of the embedded model, and of a random one
LENGTH = 1024
RANDOM_TOKENS = 512
RANDOM_SEEDS = (0, 1, 2)


def random_model(kind: str, seed: int) -> CateKVModel:
    """A small model with random weights: ``llama``, or ``qwen3`` with norms on queries and keys."""
    from transformers import LlamaConfig, Qwen3Config

    from catekv.model import CateKVModel

    shape: dict[str, Any] = {
        "vocab_size": 1000,
        "hidden_size": 256,
        "intermediate_size": 512,
        "num_hidden_layers": 4,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 32,
        "max_position_embeddings": 4096,
        # as spread as in a trained model of this size: the default 0.02 leaves every logit near 0
        "initializer_range": 0.08,
    }
    config = (Qwen3Config if kind == "qwen3" else LlamaConfig)(**shape)
    return CateKVModel.from_config(config, dtype=torch.float32, device="cpu", seed=seed)


def embedded_prompts(model: CateKVModel, count: int) -> Iterable[tuple[str, list[int]]]:
    """Name and token ids of RULER prompts of :data:`LENGTH` tokens."""
    for task in EMBEDDED_TASKS:
        for sample in tasks.build(task, model.tokenizer, LENGTH, count, seed=7):
            yield f"{task}:{sample.index}", encode(sample, model.tokenizer).ids


def step_part(samples: int, folder: Path, say: Callable[[str], None]) -> dict[str, Any]:
    """Errors of one decode step on the embedded model and on random ones; a picture."""
    from catekv.evaluation.run.request import Request
    from catekv.evaluation.run.session import open_model

    found: dict[str, list[StepError]] = {"embedded": []}
    model = open_model(Request(dtype="float32", device="cpu"))
    for name, ids in embedded_prompts(model, samples):
        found["embedded"] += step_errors(name, record(model, ids, 1), RATIOS)
        say(name)
    for kind in ("llama", "qwen3"):
        label = f"random {kind}"
        found[label] = []
        for seed in RANDOM_SEEDS:
            model = random_model(kind, seed)
            generator = torch.Generator().manual_seed(seed)
            ids = torch.randint(4, 1000, (RANDOM_TOKENS,), generator=generator).tolist()
            found[label] += step_errors(str(seed), record(model, ids, 1), RATIOS)
            say(f"{label} {seed}")
    plots.bands(
        folder / "step_error.png",
        {label: _curves(errors) for label, errors in found.items()},
        "removed share",
        "relative error of a head's output",
    )
    return {
        "models": {
            label: {
                "all_layers": _quartiles(errors, "ratio", "variant"),
                "by_layer": _quartiles(errors, "layer", "ratio", "variant"),
                "by_shift": _by_shift(errors),
                "heads_where_key_const_beats_none": _wins(errors, "merge, key_const"),
                "heads_where_logit_beats_none": _wins(errors, "merge, logit"),
                "heads_where_merging_without_calibration_beats_evict": _wins(
                    errors, "merge, none", "evict"
                ),
                "shift": named_quartiles([one.shift for one in _once(errors)]),
            }
            for label, errors in found.items()
        },
        "prompts_per_task": samples,
        "tasks": list(EMBEDDED_TASKS),
        "length": LENGTH,
        "random_tokens": RANDOM_TOKENS,
        "random_seeds": list(RANDOM_SEEDS),
    }


def _curves(errors: list[StepError]) -> dict[str, list[tuple[float, float, float, float]]]:
    curves: dict[str, list[tuple[float, float, float, float]]] = {}
    for (variant, ratio), group in grouped(errors, "variant", "ratio").items():
        low, middle, high, _ = quartiles([one.error for one in group])
        curves.setdefault(str(variant), []).append((float(str(ratio)), low, middle, high))
    return curves


def named_quartiles(values: Sequence[float]) -> dict[str, float]:
    """Quartiles as plain values."""
    return dict(quartiles(values)._asdict())


def _quartiles(errors: list[StepError], *names: str) -> list[dict[str, Any]]:
    return [
        dict(zip(names, key, strict=True)) | named_quartiles([one.error for one in group])
        for key, group in grouped(errors, *names).items()
    ]


def _once(errors: list[StepError]) -> list[StepError]:
    """One error per head and sample."""
    return [group[0] for group in grouped(errors, "sample", "layer", "query_head").values()]


def _wins(errors: list[StepError], variant: str, over: str = "merge, none") -> dict[str, float]:
    """Share of heads and samples, by ratio, where a variant's error is the smaller one."""
    shares: dict[str, list[bool]] = {}
    for key, group in grouped(errors, "ratio", "sample", "layer", "query_head").items():
        by_name = {one.variant: one.error for one in group}
        shares.setdefault(f"{key[0]:g}", []).append(by_name[variant] < by_name[over])
    return {ratio: statistics.fmean(values) for ratio, values in shares.items()}


def _by_shift(errors: list[StepError]) -> list[dict[str, Any]]:
    """Median error with the key constant over that without, by what the constant adds."""
    bounds = (-torch.inf, -0.35, 0.0, 0.35, 1.05, torch.inf)
    rows = []
    for low, high in pairwise(bounds):
        ratios = []
        for group in grouped(errors, "ratio", "sample", "layer", "query_head").values():
            if low <= group[0].shift < high:
                by_name = {one.variant: one.error for one in group}
                if by_name["merge, none"] > 0:
                    ratios.append(by_name["merge, key_const"] / by_name["merge, none"])
        rows.append({
            "from": None if low == -torch.inf else low,
            "to": None if high == torch.inf else high,
            "heads": len(ratios),
            "key_const_over_none": statistics.median(ratios) if ratios else None,
        })  # fmt: skip
    return rows
