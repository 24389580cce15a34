"""What tensor-parallel processes and a single one must agree on. Started by torchrun as

    tensor_parallel_cases.py FOLDER OUTPUT

with ``FOLDER/FAMILY`` the checkpoints; every rank writes ``OUTPUT/FAMILY.RANK.json``.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from catekv import methods
from catekv.errors import UserError
from catekv.methods.base import Method, Needs
from catekv.methods.head_mask import HeadMask
from catekv.model import CateKVModel
from catekv.models.shape import ModelShape

#: Llama's grouped KV heads are shared out; Phi-3's are held by every process.
FAMILIES = ("llama", "phi3")
TOKENS, PADDED = 90, 70
CHUNK = 32
NEW_TOKENS = 6
QUESTION = [5, 6, 7]
#: cases that also run from one prefill for many methods, and as a padded batch
SHARED_PREFILL = ("catekv", "adakv", "dynamickv")
BATCHES = ("catekv", "adakv")


def cases(shape: ModelShape) -> dict[str, Method]:
    """The methods, by the way in which they depend on other heads."""
    mask = HeadMask.random((shape.layers, shape.kv_heads), 0.5, seed=3)
    catekv: dict[str, Any] = {
        "head_mask": mask, "budget": 24, "init_tokens": 4, "recent_tokens": 8, "guard_tokens": 4,
        "window": 8, "chunk_size": 4,
    }  # fmt: skip
    return {
        "full": methods.create("full"),
        "catekv": methods.create("catekv", **catekv),
        "snapkv": methods.create("snapkv", budget=20, window=8),
        "snapkv at a total": methods.create("snapkv", total=900, budget=40, window=8),
        "adakv": methods.create("adakv", budget=20, window=8),
        "adakv with heads as in the mask": methods.create(
            "adakv", budget=20, window=8, budgets={"kind": "mask", "mask": mask}
        ),
        "dynamickv": methods.create("dynamickv", budget=20, window=8),
        "quest": methods.create("quest", page=4, budget=24),
        "h2o": methods.create("h2o", budget=30),
        "simcalkv_cam": methods.create("simcalkv_cam", ratio=0.5),
    }


def prompt(batch: int = 1) -> tuple[Tensor, Tensor | None]:
    """Ids [batch, tokens] and their mask; the second sequence of a batch is padded."""
    ids = torch.randint(3, 97, (batch, TOKENS), generator=torch.Generator().manual_seed(0))
    if batch == 1:
        return ids, None
    mask = torch.ones_like(ids)
    mask[1, : TOKENS - PADDED] = 0
    return ids, mask


def answers(model: CateKVModel) -> dict[str, dict[str, Any]]:
    """Logits, tokens and stored entries of every case, of this process."""
    found: dict[str, dict[str, Any]] = {}
    chosen = cases(model.shape)
    ids, _ = prompt()
    for name, method in chosen.items():
        found[name] = _answer(model, model.prefill(ids, CHUNK, method))
    dense = model.observe(ids, chunk_size=CHUNK, needs=Needs.of_all(chosen.values()))
    for name in SHARED_PREFILL:
        found[f"{name}, from a shared prefill"] = _answer(model, dense.compress(chosen[name]))
    padded, mask = prompt(batch=2)
    for name in BATCHES:
        context = model.prefill(padded, CHUNK, chosen[name], attention_mask=mask)
        found[f"{name}, padded"] = _answer(model, context)
    return found


def _answer(model: CateKVModel, context: Any) -> dict[str, Any]:
    batch = context.input_ids.shape[0]
    generation = model.generate_ids([QUESTION] * batch, context, NEW_TOKENS, [])
    return {
        "logits": context.last_logits.tolist(),
        "tokens": generation.rows,
        "kept": [layer.tolist() for layer in context.lengths()],
    }


def refusals(model: CateKVModel) -> dict[str, str]:
    """What cannot be done with a part of the heads, and says so."""
    ids, _ = prompt()
    told = {}
    for method in (
        methods.create("h2o", budget=30, total=900),
        methods.create("cam", budget=30, expected=False),
    ):
        try:
            model.prefill(ids, CHUNK, method)
        except UserError as error:
            told[method.name] = str(error)
    return told


def main(folder: Path, output: Path) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo")
    rank = torch.distributed.get_rank()
    for family in FAMILIES:
        model = CateKVModel.from_pretrained(
            folder / family, method="full", device="cpu", tensor_parallel=True
        )
        result = {"answers": answers(model), "refusals": refusals(model)}
        (output / f"{family}.{rank}.json").write_text(json.dumps(result))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
