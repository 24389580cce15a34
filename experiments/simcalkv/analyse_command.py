"""The analyses as a command: numbers as CSV, pictures, and one JSON with what to remember."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import fmean, median
from typing import Any

from catekv.commands.numbers import token_count
from catekv.errors import UserError
from catekv.evaluation import plots
from catekv.evaluation.run import request as evaluated
from catekv.evaluation.run.session import open_model
from catekv.files import write_atomically, write_table
from experiments.simcalkv import analyses
from experiments.simcalkv.arguments import (
    add_data_arguments,
    add_model_arguments,
    examples_of,
    reading_of,
)
from experiments.simcalkv.results import refuse_other_model
from experiments.simcalkv.split import Split
from experiments.simcalkv.tensors import Recorded, record

DECODE_TOKENS = {"attention": 0, "keys": 20, "bias": 60}
ANALYSES = tuple(DECODE_TOKENS)
#: tokens above which the maps of all keys are not made: they grow with the square
MAP_TOKENS = 8192


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """All flags of the command."""
    parser.add_argument(
        "analyses",
        nargs="*",
        default=list(ANALYSES),
        help=f"{', '.join(ANALYSES)} (default: all): attention distribution and map; key "
        "similarity over prompt and answer; sum of the query's components while decoding",
    )
    add_model_arguments(parser)
    add_data_arguments(parser, "openbookqa", "test[:1]")
    parser.add_argument("--layer", type=int, default=3, help="of the pictures (default: 3)")
    parser.add_argument("--head", type=int, default=2, help="KV head of the pictures (default: 2)")
    parser.add_argument(
        "--decode_tokens",
        type=token_count,
        help="tokens decoded behind the prompt (default: 60 for bias, 20 for keys, else 0)",
    )
    parser.add_argument("--no_plots", action="store_true", help="numbers only")
    parser.add_argument("--output_dir", default="results", help="folder (default: %(default)s)")


def command(parsed: argparse.Namespace) -> int:
    """Run the command on the first row of the split; returns the exit code."""
    unknown = sorted(set(parsed.analyses) - set(ANALYSES))
    if unknown:
        raise UserError(f"unknown analysis {unknown[0]!r}; available: {', '.join(ANALYSES)}")
    folder = Path(parsed.output_dir)
    refuse_other_model(folder / "analysis.json", parsed.model_name)
    model = open_model(
        evaluated.Request(parsed.model_name, parsed.dtype, parsed.device), for_text=True
    )
    split = Split.parse(parsed.split)
    example = examples_of(parsed.dataset, split, model, reading_of(parsed))[0]
    steps = parsed.decode_tokens or max(DECODE_TOKENS[name] for name in parsed.analyses)
    tokens = len(example.context_ids) + steps
    if "keys" in parsed.analyses and tokens > MAP_TOKENS:
        raise UserError(
            f"maps of all keys are made up to {MAP_TOKENS} tokens, these are {tokens}; "
            "lower --max_input_tokens"
        )
    recorded = record(model, example.context_ids, steps)
    _check_place(recorded, parsed.layer, parsed.head)
    run: dict[str, Callable[..., dict[str, Any]]] = {
        "attention": attention,
        "keys": keys,
        "bias": bias,
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        found = {
            "model_name": parsed.model_name,
            "dataset": parsed.dataset,
            "row": example.identifier,
            "data": example.data,
            "prompt_tokens": recorded.prompt_tokens,
            "decoded_tokens": recorded.tokens - recorded.prompt_tokens,
            "layer": parsed.layer,
            "kv_head": parsed.head,
        } | {
            name: run[name](recorded, folder, parsed.layer, parsed.head, not parsed.no_plots)
            for name in ANALYSES
            if name in parsed.analyses
        }
        write_atomically(folder / "analysis.json", json.dumps(found, indent=1) + "\n")
    except OSError as error:
        raise UserError(f"cannot write to {folder}: {error.strerror or error}") from None
    print(json.dumps(found, indent=1))
    print(f"Files: {folder}")
    return 0


def _check_place(recorded: Recorded, layer: int, head: int) -> None:
    if layer not in recorded.layers:
        valid = ", ".join(map(str, recorded.layers))
        raise UserError(f"--layer {layer} is none of the layers that are compressed: {valid}")
    heads = recorded.layers[layer].keys.shape[0]
    if not 0 <= head < heads:
        raise UserError(f"--head {head} is none of the {heads} KV heads, 0 to {heads - 1}")


def attention(
    recorded: Recorded, folder: Path, layer: int, head: int, draw: bool
) -> dict[str, Any]:
    """Distribution and map of the first query head of a KV head's group."""
    tensors = recorded.layers[layer]
    query_head = head * tensors.group
    counts = analyses.attention_histogram(tensors, query_head)
    total = int(counts.sum())
    write_table(
        folder / "attention_histogram.csv",
        ("from", "to", "weights"),
        [(i / len(counts), (i + 1) / len(counts), int(n)) for i, n in enumerate(counts)],
    )
    if draw:
        place = f"layer {layer}, query head {query_head}"
        plots.histogram(folder / "attention_histogram.png", counts, f"Attention weights, {place}")
        plots.heat_map(
            folder / "attention_map.png",
            analyses.attention_map(tensors, query_head),
            f"Attention, {place}",
            tokens=recorded.tokens,
            prompt=recorded.prompt_tokens,
            label="weight",
            logarithmic=True,
        )
    return {
        "query_head": query_head,
        "weights": total,
        "share_below_0.01": int(counts[0]) / total,
    }


def keys(recorded: Recorded, folder: Path, layer: int, head: int, draw: bool) -> dict[str, Any]:
    """Cosine and distance of all keys of one head; shares of similar keys of all heads."""
    maps = analyses.key_maps(recorded.layers[layer], head)
    values, places = analyses.most_similar(maps.cosine)
    rank = range(1, values.shape[1] + 1)
    write_table(
        folder / "similar_keys.csv",
        ("position", *(f"key_{i}" for i in rank), *(f"cosine_{i}" for i in rank)),
        [
            (position, *places[position].tolist(), *values[position].tolist())
            for position in range(len(values))
        ],
    )
    shares = analyses.similar_shares(recorded)
    limits = [f"{limit:g}" for limit in analyses.THRESHOLDS]
    write_table(
        folder / "similar_share.csv",
        ("layer", "kv_head", *(f"pairs>{x}" for x in limits), *(f"nearest>{x}" for x in limits)),
        [(one.layer, one.kv_head, *one.pairs, *one.nearest) for one in shares],
    )
    if draw:
        place = f"layer {layer}, KV head {head}"
        tokens, prompt = recorded.tokens, recorded.prompt_tokens
        plots.heat_map(
            folder / "key_cosine.png", maps.cosine, f"Cosine of keys, {place}", tokens=tokens,
            prompt=prompt, label="cosine", low=-1.0, high=1.0,
        )  # fmt: skip
        plots.heat_map(
            folder / "key_distance.png", maps.distance, f"Distance of keys, {place}", tokens=tokens,
            prompt=prompt, label="Euclidean distance",
        )  # fmt: skip
    return {
        "mean_share_of_pairs": _by_limit(limits, [one.pairs for one in shares]),
        "mean_share_of_nearest": _by_limit(limits, [one.nearest for one in shares]),
    }


def _by_limit(limits: Sequence[str], rows: Sequence[tuple[float, ...]]) -> dict[str, float]:
    return {
        f">{limit}": fmean(column)
        for limit, column in zip(limits, zip(*rows, strict=True), strict=True)
    }


def bias(recorded: Recorded, folder: Path, layer: int, head: int, draw: bool) -> dict[str, Any]:
    """What ln 2 on every key coordinate really adds to the logits, head by head."""
    sums = analyses.query_sums(recorded)
    write_table(
        folder / "query_sums.csv",
        ("layer", "query_head", "mean", "spread", "logit_shift", "constant_needed"),
        [(s.layer, s.query_head, s.mean, s.spread, s.shift, s.needed) for s in sums],
    )
    tensors = recorded.layers[layer]
    query_head = head * tensors.group
    own = next(one for one in sums if (one.layer, one.query_head) == (layer, query_head))
    wanted = 1 / tensors.scaling
    if draw:
        plots.lines(
            folder / "query_sums.png",
            {f"layer {layer}, query head {query_head}": (range(len(own.steps)), own.steps)},
            "Sum of the query's components",
            "decode step",
            "sum",
            (wanted, "where ln 2 per coordinate is right"),
        )
    shifts = [one.shift for one in sums]
    return {
        "sum_wanted": wanted,
        "head": {key: value for key, value in asdict(own).items() if key != "steps"},
        "median_sum": median(one.mean for one in sums),
        "median_logit_shift": median(shifts),
        "logit_shift_wanted": math.log(2),
        "share_of_heads_with_shift_within_half_to_double": fmean(
            math.log(2) / 2 <= shift <= 2 * math.log(2) for shift in shifts
        ),
        "share_of_heads_with_negative_shift": fmean(shift < 0 for shift in shifts),
    }
