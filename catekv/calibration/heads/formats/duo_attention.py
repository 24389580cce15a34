"""DuoAttention: gates as ``full_attention_heads.tsv`` beside a ``config.json``, in a folder; RLKV's
``adapter_weights.tsv`` is read alike."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from catekv.calibration.heads.formats.asked import Asked, Table
from catekv.calibration.heads.head_scores import HeadScores
from catekv.errors import UserError
from catekv.files import read_object, write_atomically, write_json
from catekv.methods.head_mask import DUO_FILE, gates_in
from catekv.methods.head_tables import read_numbers

CONFIG_FILE = "config.json"
#: What the published patterns were trained with, and their loader wants to read.
EDGES = {"sink_size": 128, "recent_size": 256}


class GateHeads(NamedTuple):
    """Threshold of the gates, and the heads that keep everything, bool like the gates."""

    threshold: float
    full: Tensor


def gate_heads(gates: Tensor, sparsity: float) -> GateHeads:
    """The released rule: full are the heads whose gate is at least the ``sparsity`` quantile.

    Without its noise against ties: equal gates are full together.
    """
    if sparsity >= 1:
        return GateHeads(2.0, torch.zeros_like(gates, dtype=torch.bool))
    if sparsity <= 0:
        return GateHeads(-1.0, torch.ones_like(gates, dtype=torch.bool))
    threshold = gates.double().flatten().quantile(sparsity)
    return GateHeads(float(threshold), gates.double() >= threshold - 1e-12)


def matches(path: Path) -> bool:
    return path.suffix == ".tsv" or gates_in(path).is_file()


def read(path: Path, asked: Asked) -> Table:
    """Gates, clipped to [0, 1]: training leaves some slightly outside."""
    file = gates_in(path) if path.is_dir() else path
    config = file.with_name(CONFIG_FILE)
    found = read_object(config) if config.is_file() else {}
    says: dict[str, Any] = {name: found[name] for name in (*EDGES, "sparsity") if name in found}
    gates = read_numbers(file, "\t").clamp(0, 1)
    sparsity = 1 - asked.ratio if asked.ratio is not None else says.get("sparsity")
    if isinstance(sparsity, int | float):
        rule = gate_heads(gates, sparsity)
        says.update(threshold=rule.threshold, full_heads_by_its_rule=int(rule.full.sum()))
    return Table(gates.numpy(), says)


def write(scores: HeadScores, path: Path, asked: Asked) -> Path:
    """Scores brought to [0, 1] by their range."""
    table = scores.scores
    low, high = float(table.min()), float(table.max())
    if low == high:
        raise UserError(
            f"all scores are {low:g}; DuoAttention's gates would tell no head from another"
        )
    gates = (table - low) / (high - low)
    binary = bool(((gates == 0) | (gates == 1)).all())
    # of gates of two values only the exact share falls between them
    ratio = float(gates.mean()) if binary else asked.ratio
    content = {**EDGES, "method": scores.recipe.get("kind"), "ratio": ratio}
    if ratio is not None:
        content["sparsity"] = 1 - ratio
    lines = ("\t".join(f"{gate:.18e}" for gate in row) for row in gates)
    write_atomically(path / DUO_FILE, "".join(f"{line}\n" for line in lines))
    write_json(path / CONFIG_FILE, content)
    return path
