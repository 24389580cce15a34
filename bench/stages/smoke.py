"""A minute's worth of doubt before anything is timed: one decode, one append, one recorded step."""

from __future__ import annotations

import torch
from torch import Tensor

from bench.cases import Result, Scale
from bench.loads import Load, make
from catekv import CateKVModel, kernels, methods
from catekv.decode.step import DecodeStep
from catekv.kernels.ragged import from_rows

#: Relative error that rounding explains, by the type of the inputs; a recorded step of a small
#: model in float32 repeats the same launches.
_TOLERANCE = {torch.bfloat16: 1e-2, torch.float32: 3e-5}
_STEPS = 4


def run(scale: Scale, name: str) -> Result:
    """Wrong if any of the three is."""
    dtype = torch.float32 if scale.tiny else torch.bfloat16
    errors = {"decode": _decode(scale, dtype), "append": _append(scale, dtype)}
    recorded, step = _recorded(scale)
    errors["recorded step"] = recorded
    limits = {"decode": _TOLERANCE[dtype], "append": 0.0, "recorded step": 3e-5}
    rows = [
        {"what": what, "error": f"{error:.1e}", "tolerance": f"{limits[what]:g}"}
        for what, error in errors.items()
    ]
    # not (error <= limit): NaN does not pass
    wrong = [what for what, error in errors.items() if not error <= limits[what]]
    if not (step.captured or scale.tiny):
        wrong.append("the step was not recorded")
    # the model's own forward runs instead: slower, and not wrong
    said = [*wrong, *(() if step.fused else (f"the step is not fused: {step.fused_reason}",))]
    return Result(rows, wrong=bool(wrong), note=", ".join(said))


def relative_error(found: Tensor, wanted: Tensor) -> float:
    """``|found - wanted| / |wanted|`` in float64; infinite where anything is not finite."""
    found, wanted = found.double(), wanted.double()
    if found.shape != wanted.shape or not bool(found.isfinite().all()):
        return float("inf")
    return float((found - wanted).norm() / wanted.norm().clamp_min(1e-30))


def _decode(scale: Scale, dtype: torch.dtype) -> float:
    rows = (0, 1, 130, 17) if scale.tiny else (0, 1, 60000, 17, 5000, 128, 2048, 300)
    load = Load("smoke", rows, kv_heads=2, dtype=dtype)
    queries, prefix, keys, values, scaling, used = make(scale, load)
    exact = from_rows(
        prefix.keys.float(), prefix.values.float(), None, prefix.host_rows, load.kv_heads
    )
    wanted = kernels.ragged_decode(
        queries.float(), exact, keys.float(), values.float(), scaling, tail_length=used,
        backend="reference",
    )  # fmt: skip
    found = kernels.ragged_decode(queries, prefix, keys, values, scaling, tail_length=used)
    return relative_error(found, wanted)


def _append(scale: Scale, dtype: torch.dtype) -> float:
    def draw(tokens: int) -> Tensor:
        return torch.randn(2, 3, tokens, 128, device=scale.device).to(dtype)

    buffers, new = [draw(64), draw(64)], [draw(2), draw(2)]
    wanted = [buffer.clone() for buffer in buffers]
    for buffer, entries in zip(wanted, new, strict=True):
        buffer[:, :, 7:9] = entries
    used = torch.tensor([9], dtype=torch.int32, device=scale.device)
    kernels.append(buffers[0], buffers[1], new[0], new[1], used)
    same = all(torch.equal(a, b) for a, b in zip(buffers, wanted, strict=True))
    return 0.0 if same else float("inf")


@torch.no_grad()
def _recorded(scale: Scale) -> tuple[float, DecodeStep]:
    """Error of the logits of a recorded, fused step against those of the model's own modules, and
    that step."""
    from transformers import LlamaConfig

    config = LlamaConfig(
        vocab_size=512, hidden_size=512, intermediate_size=512, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2,
    )  # fmt: skip
    model = CateKVModel.from_config(config, dtype="float32", device=scale.device)
    method = methods.create("snapkv", budget=64, window=16)
    ids = torch.randint(3, 512, (1, 300)).to(model.device)
    context = model.prefill(ids, method=method)
    found = []
    for graph, fused in (("off", "off"), ("auto", "on" if scale.tiny else "auto")):
        cache = context.cache.fork()
        step = DecodeStep(model.model, cache, _STEPS, graph=graph, fused_step=fused)
        fed = torch.arange(_STEPS, device=model.device) + 5
        found.append(torch.stack([step(token.view(1, 1)).clone() for token in fed]))
    return relative_error(found[1], found[0]), step
