"""Pictures of heads: layers x KV heads."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from catekv.evaluation.figure_files import write_figure
from catekv.methods.head_mask import HeadMask

#: Area of the dot of an adaptive head, in square points: fits 80 layers.
_DOT = 22


def draw_heads(path: Path, panels: Mapping[str, Tensor], mask: HeadMask, title: str = "") -> None:
    """One heat map per panel, the adaptive heads of ``mask`` marked by dots.

    Args:
        path: PNG file to write.
        panels: title -> values [layers, kv_heads], for example mean CV and vote frequency.
    """
    from matplotlib.figure import Figure

    layers, heads = mask.adaptive.shape
    height = min(14.0, 1.8 + 0.28 * layers)
    width = max(3.2, 1.6 + 0.28 * heads)
    figure = Figure(figsize=(width * len(panels), height), layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for axis, (name, values) in zip(axes, panels.items(), strict=True):
        image = axis.imshow(values.numpy(), aspect="auto", cmap="cividis")
        figure.colorbar(image, ax=axis)
        axis.set(title=name, xlabel="KV head", ylabel="layer")
        axis.set_xticks(range(0, heads, max(1, heads // 8)))
        axis.set_yticks(range(0, layers, max(1, layers // 16)))
        # seen on every colour, with every kind of colour vision
        marked, column = mask.adaptive.nonzero(as_tuple=True)
        axis.scatter(column, marked, s=_DOT, c="white", edgecolors="black", linewidths=0.8)
    figure.suptitle(title)
    write_figure(path, figure)
