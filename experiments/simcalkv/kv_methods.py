"""The methods of the comparison by their published names, at the memory that a ratio leaves."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from catekv import methods
from catekv.errors import UserError
from catekv.methods import Method, ModelShape
from catekv.methods.formulas.merging import removed_count
from catekv.methods.options import Rule
from catekv.methods.pyramidinfer import PyramidInferKV
from catekv.methods.simcalkv.merge import CALIBRATIONS
from catekv.methods.simcalkv.method import SimCalKV

#: published name to method. What the public comparison ran under the three other names were
#: simpler methods: ``simcalkv_keepkv``, ``simcalkv_pyramidinfer`` and ``simcalkv_cam``.
PUBLISHED = {
    "simcalkv": "simcalkv",
    "keepkv": "keepkv",
    "pyramidinfer": "pyramidinfer_kv",
    "cam": "cam",
}
_SHOWN = {"simcalkv": "SimCalKV", "keepkv": "KeepKV", "pyramidinfer": "PyramidInfer", "cam": "CaM"}


#: parts of [0, 1] in which PyramidInfer's share is looked for
_STEPS = 500


@dataclass(frozen=True)
class Choice:
    """A method at a ratio.

    Attributes:
        kv_method: published name, or any of ``catekv methods``.
        ratio: share of the prompt's entries that is removed.
        threshold, calibration: of SimCalKV; None: its defaults.
        options: further options of the method.
    """

    kv_method: str
    ratio: float
    threshold: float | None = None
    calibration: str | None = None
    preset: str = "published"
    options: tuple[tuple[str, Any], ...] = ()

    @property
    def name(self) -> str:
        """The method's name in catekv."""
        key = self.kv_method.lower()
        return PUBLISHED.get(key, key)

    @property
    def label(self) -> str:
        """Name in files and tables: the published one, and what is not as published."""
        label = _SHOWN.get(self.kv_method.lower(), self.name)
        if self.preset != "published":
            label += f"-{self.preset}"
        if self.calibration is not None and self.calibration != self._usual("calibration"):
            label += f"-{self.calibration}"
        if self.threshold is not None and self.threshold != self._usual("threshold"):
            label += f"-threshold{self.threshold:g}"
        for name, value in self.options:
            label += f"-{name}{value}"
        return label

    def _usual(self, option: str) -> Any:
        """What the preset says; None of an option that the method does not have."""
        return getattr(methods.create(self.name, preset=self.preset), option, None)

    def method(self) -> Method:
        """The method; for one with a budget, before it has that of the ratio.

        Raises:
            UserError: unknown method or option, a ratio or threshold out of range, or an option
                that this method does not have.
        """
        options: dict[str, Any] = dict(self.options)
        given = {"threshold": self.threshold, "calibration": self.calibration}
        options |= {name: value for name, value in given.items() if value is not None}
        if self.name == "simcalkv":
            options["ratio"] = self.ratio
        else:
            Rule(least=0, most=1).check(self.kv_method, "ratio", self.ratio)
            if self.calibration is not None:
                raise UserError(
                    f"{self.kv_method} has no calibration, SimCalKV has; leave --calibration out"
                )
        return methods.create(self.name, preset=self.preset, **options)

    def of_length(self, method: Method, tokens: int, shape: ModelShape) -> Method:
        """The method keeping as many entries of a prompt of ``tokens`` tokens as the ratio leaves.

        Raises:
            UserError: the method cannot keep so few.
        """
        if isinstance(method, SimCalKV):
            return method
        heads = shape.layers * shape.kv_heads
        total = heads * (tokens - removed_count(tokens, self.ratio))
        if isinstance(method, PyramidInferKV):
            return _pyramid(method, total, tokens, shape)
        return method.with_total(total, tokens, shape)


def calibrations(wanted: list[str] | None) -> list[str | None]:
    """Calibrations as given, ``all`` standing for every one."""
    if wanted is None:
        return [None]
    named = list(CALIBRATIONS) if wanted == ["all"] else wanted
    return [name for index, name in enumerate(named) if name not in named[:index]]


def _pyramid(method: PyramidInferKV, total: int, tokens: int, shape: ModelShape) -> PyramidInferKV:
    """The largest share handed from layer to layer that keeps no more than ``total``."""

    def kept(share: float) -> int:
        return replace(method, least_ratio=share).total_kept(tokens, shape)

    # what is kept does not always grow with the share: a layer whose choice would be too small
    # keeps everything that it was handed
    steps = [step / _STEPS for step in range(_STEPS + 1)]
    sizes = [kept(share) for share in steps]
    smallest = min(sizes)
    if smallest > total:
        heads = shape.layers * shape.kv_heads
        raise UserError(
            f"PyramidInfer keeps at least {smallest} entries of {tokens} tokens in {heads} heads, "
            f"the ratio leaves {total}: its first layer keeps everything, and the recent tokens "
            "stay; use a smaller --compress_ratio"
        )
    last = max(step for step, size in enumerate(sizes) if size <= total)
    if last == _STEPS:
        return replace(method, least_ratio=1.0)
    low, high = steps[last], steps[last + 1]
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (middle, high) if kept(middle) <= total else (low, middle)
    return replace(method, least_ratio=low)
