"""What a model, a method and a device will do, on paper: nothing is allocated."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from catekv.errors import UserError
from catekv.evaluation.columns import defaults
from catekv.evaluation.columns.specification import (
    option_names,
    parse_masks,
    parse_method,
    without_mask,
)
from catekv.evaluation.options import COUNT, MOST_TOKENS, REQUIRED, option
from catekv.evaluation.run.request import Request
from catekv.loading import read_config as read_model_config
from catekv.methods.base import Method, Needs
from catekv.methods.catekv import DEFAULT_RATIO
from catekv.methods.head_mask import HeadMask
from catekv.methods.head_votes import check_ratio
from catekv.methods.registry import create
from catekv.models.compat import context_window
from catekv.models.shape import ModelShape
from catekv.models.source import is_gguf, short_name
from catekv.prefill.capacity import RESERVE_BATCH, RESERVE_SINGLE, Workload
from catekv.prefill.devices import Device, find_device, read_bytes
from catekv.prefill.sizes import GB, ModelSizes, kept_table, sizes_of_config

DTYPES = {"bfloat16": 2, "float16": 2, "float32": 4}


@dataclass(frozen=True)
class Asked:
    """What is planned, beside what a request says of the model and the method's budget."""

    length: int = option(REQUIRED, "prompt length in tokens", **COUNT)
    name: str | None = option(
        None,
        "known shape, model folder or .gguf file (default: the embedded model)",
        positional=True,
        metavar="MODEL",
    )
    method: str = option("catekv", "[LABEL=]NAME[:option=value,...] (default: {default})")
    options: Mapping[str, Any] = option(
        {},
        "another option of the method; may be repeated",
        flag="--option",
        metavar="NAME=VALUE",
    )
    mask: str | None = option(
        None, "head mask to count heads in (default: the ratio alone)", metavar="SOURCE"
    )
    new_tokens: int = option(
        256, "room after the context (default: {default})", least=0, most=MOST_TOKENS
    )
    device_memory: str | None = option(None, "memory of the device, e.g. 80GiB", metavar="SIZE")
    bandwidth: float | None = option(None, "GB/s of the device's memory, for times")
    json: bool = option(False, "print the plan as JSON")
    output: Path | None = option(None, "also write the plan as JSON into this file", metavar="FILE")


@dataclass(frozen=True)
class SpreadCateKV(Method):
    """CateKV at a ratio, the same share of adaptive heads in every layer, for want of a mask.

    It answers what it would keep; it cannot choose.
    """

    name: ClassVar[str] = "catekv"

    adaptive: Method
    consistent: Method
    ratio: float

    @classmethod
    def at(
        cls,
        ratio: float,
        shape: ModelShape,
        edges: Mapping[str, int] | None = None,
        **options: Any,
    ) -> SpreadCateKV:
        """``edges``: as of a mask that was made with them; ``keep`` stands for the ratio."""
        keep = options.pop("keep", None)
        whole = torch.ones(shape.layers, shape.kv_heads, dtype=torch.bool)
        adaptive, consistent = (
            create("catekv", head_mask=HeadMask(heads).with_edges(edges or {}), **options)
            for heads in (whole, ~whole)
        )
        return cls(adaptive, consistent, check_ratio(ratio), keep=keep, store=adaptive.store)

    @property
    def needs(self) -> Needs:
        return self.adaptive.needs

    def budget_table(self, tokens: int, shape: ModelShape) -> Tensor:
        tables = [part.budget_table(tokens, shape) for part in (self.adaptive, self.consistent)]
        return self.ratio * tables[0] + (1 - self.ratio) * tables[1]

    def with_total(self, total: int, tokens: int, shape: ModelShape) -> SpreadCateKV:
        most, least = (part.total_kept(tokens, shape) for part in (self.adaptive, self.consistent))
        if total < least:
            raise UserError(
                f"{total} entries do not hold the {least} that consistent heads keep; lower budget"
            )
        ratio = min(1.0, (total - least) / (most - least)) if most > least else self.ratio
        return dataclasses.replace(self, ratio=ratio)

    def to_dict(self) -> dict[str, Any]:
        size = {"ratio": self.ratio} if self.keep is None else {"ratio": None, "keep": self.keep}
        return {**self.adaptive.to_dict(), "head_mask": None, **size}


@dataclass(frozen=True)
class Plan:
    """A request and what follows from it.

    Attributes:
        model: its name. sizes: of it. window: tokens it was made for, None if it does not say.
        label: name of the method's column. methods: full attention and the method.
        device: what must hold everything.
    """

    model: str
    sizes: ModelSizes
    window: int | None
    label: str
    methods: tuple[Method, Method]
    length: int
    batch: int
    new_tokens: int
    chunk_size: int
    dtype: str
    device: Device

    @property
    def works(self) -> tuple[Workload, Workload]:
        """Full attention and the method at work."""
        full, ours = (
            Workload(self.sizes, method, self.chunk_size, self.new_tokens, self.device.kind)
            for method in self.methods
        )
        return full, ours

    @property
    def ideal_ratio(self) -> float:
        """Bytes of a full decode step over those of the method's: it cannot become faster."""
        full, ours = (work.step_bytes(self.length, self.batch) for work in self.works)
        return full / ours

    def sides(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """The numbers of full attention and of the method, in bytes and tokens."""
        full, ours = (self._side(work) for work in self.works)
        return full, ours

    def _side(self, work: Workload) -> dict[str, Any]:
        length, batch, memory = self.length, self.batch, self.device.memory_bytes
        loaded = dataclasses.replace(work, prefilled=False)
        peak = work.peak(length, batch)
        assert work.method is not None
        table = kept_table(work.method, length, self.sizes.shape)
        step = work.step_bytes(length, batch)
        bandwidth = self.device.bandwidth
        return {
            "kept_tokens_per_head": length if table is None else float(table.double().mean()),
            "kept_is_known": table is not None,
            "weight_bytes": self.sizes.weight_bytes,
            "cache_bytes": work.cache_bytes(length, batch),
            "tail_bytes": work.tail_bytes(batch),
            "resident_bytes": work.resident_bytes(length, batch),
            "step_bytes": step,
            "step_seconds_at_least": step / bandwidth if bandwidth else None,
            "prefill_peak": {
                "bytes": peak.total,
                "moment": peak.moment,
                "layer": peak.layer,
                "terms": [dataclasses.asdict(term) for term in peak.terms],
            },
            "fits": work.fits(length, batch, memory),
            "fits_loaded": loaded.fits(length, batch, memory),
            "longest_context": work.longest_context(memory, batch),
            "longest_context_loaded": loaded.longest_context(memory, batch),
            "largest_batch": work.largest_batch(length, memory),
            "largest_batch_loaded": loaded.largest_batch(length, memory),
        }

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain values."""
        full, ours = self.sides()
        return {
            "model": self.model,
            "window": self.window,
            "length": self.length,
            "batch": self.batch,
            "new_tokens": self.new_tokens,
            "chunk_size": self.chunk_size,
            "dtype": self.dtype,
            "method": _without_heads(self.methods[1].to_dict()),
            "device": dataclasses.asdict(self.device),
            "reserve_bytes": {"single": RESERVE_SINGLE, "batch": RESERVE_BATCH},
            "ideal_ratio": self.ideal_ratio,
            "sides": [{"label": "full", **full}, {"label": self.label, **ours}],
        }


def _without_heads(options: dict[str, Any]) -> dict[str, Any]:
    """A head mask by its ratio and origin only: which heads it is made of changes nothing here."""
    mask = options.get("head_mask")
    if not isinstance(mask, dict):
        return options
    return {**options, "head_mask": {k: v for k, v in mask.items() if k != "adaptive"}}


def read_config(model: str | None) -> Any:
    """Configuration of a known shape, a local folder, or the embedded model (None).

    Raises:
        UserError: neither a known name nor a folder with a configuration.
    """
    from catekv.models import embedded, presets

    if model is not None and model.lower() in presets.available():
        return presets.preset_config(model)
    path = str(embedded.path()) if model is None else model
    if model is not None and not Path(model).is_dir() and not is_gguf(model):
        raise UserError(
            f"{model!r} is neither a folder, a GGUF file nor a known shape; known: "
            f"{', '.join(presets.available())}"
        )
    return read_model_config(path)


def plan_for(request: Request, asked: Asked) -> Plan:
    """The plan that a model and a budget (``request``), and what is asked of them, lead to.

    Raises:
        UserError: numbers out of range, an unknown model, method, option or device.
    """
    from transformers.utils import logging

    # notes on how a configuration could be written would stand between the user and the plan
    logging.set_verbosity_error()
    if request.dtype not in DTYPES:
        raise UserError(f"unknown dtype {request.dtype!r}; use {', '.join(DTYPES)}")
    model = asked.name if request.model is None else request.model
    if asked.name is not None and request.model is not None:
        raise UserError("the model is named twice; give MODEL or --model")
    config = read_config(model)
    sizes = sizes_of_config(config, DTYPES[request.dtype])
    label, method = _method(request, asked, model, sizes.shape)
    method.for_prompt(asked.length, sizes.shape)  # refuses a share that cannot be kept of so many
    return Plan(
        model=model or "embedded",
        sizes=sizes,
        window=context_window(config),
        label=label,
        methods=(create("full"), method),
        length=asked.length,
        batch=request.batch_size,
        new_tokens=asked.new_tokens,
        chunk_size=request.chunk_size,
        dtype=request.dtype,
        device=_device(request.device, asked.device_memory, asked.bandwidth),
    )


def _device(name: str, memory: str | None, bandwidth: float | None) -> Device:
    if memory is None:
        device = find_device(name)
    elif name == "auto":
        device = Device(f"a device of {memory}", "cuda", read_bytes(memory))
    else:
        device = dataclasses.replace(find_device(name), memory_bytes=read_bytes(memory))
    if bandwidth is not None:
        if not bandwidth > 0:
            raise UserError(f"--bandwidth {bandwidth} must be positive, in GB/s")
        device = dataclasses.replace(device, bandwidth=bandwidth * GB)
    return device


def _method(
    request: Request, asked: Asked, model: str | None, shape: ModelShape
) -> tuple[str, Method]:
    """Label and method; CateKV without a mask at its ratio, spread evenly."""
    written = parse_method(asked.method)
    flags = _budget(request, written.name)
    for name in flags:
        if name in asked.options:
            raise UserError(f"--{name} and --option {name} say the same; give one of them")
    written.refuse_flags([*flags, *asked.options])
    known = option_names(written.name)
    options: dict[str, Any] = {
        **defaults.method_defaults(model is None).get(written.name, {}),
        **flags,
        **asked.options,
        **written.options,
    }
    label = written.label or written.name
    if "head_mask" not in known or "head_mask" in options:
        if asked.mask is not None:
            why = "reads no head mask" if "head_mask" not in known else "names its own head mask"
            raise UserError(f"method {written.name!r} {why}; leave --mask out")
        return label, _fitting(create(written.name, **options), shape)
    ratio = options.pop("ratio", None)
    folder = None if asked.mask else defaults.shipped_masks(short_name(model or "embedded"))
    edges = defaults.mask_edges(model is None)
    source = asked.mask or (None if folder is None else str(folder))
    if source is not None:
        (mask,) = parse_masks([source], shape, ratio, edges).values()
        return label, _fitting(create(written.name, head_mask=mask, **options), shape)
    if written.name != "catekv":
        raise without_mask(written.name, model or "MODEL")
    ratio = DEFAULT_RATIO if ratio is None else ratio
    return label, SpreadCateKV.at(ratio, shape, edges, **options)


def _fitting(method: Method, shape: ModelShape) -> Method:
    method.validate(shape)
    return method


def _budget(request: Request, name: str) -> dict[str, Any]:
    """Options of the method that the request sets."""
    budget = {
        field: getattr(request, field)
        for field in ("ratio", "retention", "budget")
        if getattr(request, field) is not None
    }
    for field in budget:
        if field not in option_names(name):
            raise UserError(f"method {name!r} has no {field}; leave --{field} out")
    return budget
