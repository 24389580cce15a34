"""Head masks as pictures: layers down, KV heads across; the mask, its votes and its CVs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from catekv.evaluation.report.document import NOTE, Block, Figure, Section, Text
from catekv.evaluation.report.heat_map import Grid, heat_map
from catekv.evaluation.report.inputs import shown_mask
from catekv.evaluation.report.names import file_stem
from catekv.methods.head_mask import STATISTICS_FILE, HeadMask, load_statistics
from catekv.methods.head_votes import count_votes

_NOTE = (
    "Rows are layers, columns KV heads. Adaptive heads keep all tokens (or a share of them), the "
    "others a small fixed set. Votes: share of the reference samples that call a head adaptive. "
    "CV: mean coefficient of variation of its hits; low ones are adaptive. Framed: adaptive."
)


def head_section(
    methods: Mapping[str, Any], folders: Iterable[Path], scale: str, stem: str
) -> Section | None:
    """One row of pictures per different mask of a run's methods.

    Args:
        methods: of a manifest: label to its options, which hold the mask.
        folders: mask folders whose statistics are shown where they make exactly that mask.
    """
    statistics = [folder for folder in folders if (folder / STATISTICS_FILE).is_file()]
    shown: dict[HeadMask, list[str]] = {}
    for label, method in methods.items():
        content = method.get("options", {}).get("head_mask")
        if isinstance(content, dict) and content.get("adaptive"):
            shown.setdefault(_mask(content, method.get("mask")), []).append(label)
    section = Section("Head masks", [Text(_NOTE, NOTE)])
    for mask, labels in shown.items():
        section.blocks += mask_figures(mask, ", ".join(labels), statistics, scale, stem)
    return section if shown else None


def folder_section(folder: Path, scale: str) -> Section:
    """The mask of a folder, with votes and CVs where it holds statistics.

    Raises:
        UserError: the folder's files cannot be read.
    """
    mask = shown_mask(folder)
    statistics = [folder] if (folder / STATISTICS_FILE).is_file() else []
    section = Section(f"Head mask {folder.name}", [Text(_NOTE, NOTE)])
    section.blocks += mask_figures(
        mask, folder.name, statistics, scale, f"mask-{file_stem(folder.name)}"
    )
    return section


def _mask(content: Mapping[str, Any], meta: Any) -> HeadMask:
    origin = {**content.get("meta", {}), **(meta if isinstance(meta, dict) else {})}
    return HeadMask.from_dict({**content, "meta": origin})


def mask_figures(
    mask: HeadMask, name: str, statistics: Sequence[Path], scale: str, stem: str
) -> list[Block]:
    """The mask, and votes and CVs of the first folder whose statistics make it."""
    count = int(mask.adaptive.sum())
    title = f"mask: {count} of {mask.adaptive.numel()} adaptive"
    adaptive = [(layer, head) for layer, head in mask.adaptive.nonzero().tolist()]
    panels: list[tuple[str, str, torch.Tensor, int]] = [("mask", title, mask.adaptive.double(), 0)]
    for folder in statistics:
        found = _statistics(mask, folder)
        if found is not None:
            votes, cv = found
            panels += [("votes", "votes, share of samples", votes, 2), ("cv", "mean CV", cv, 2)]
            break
    blocks: list[Block] = []
    for kind, heading, values, digits in panels:
        greatest = float(values.max()) if kind == "cv" else 1.0
        grid = Grid(
            values.tolist(),
            [str(layer) for layer in range(mask.layers)],
            [str(head) for head in range(mask.kv_heads)],
            "layer",
            "KV head",
        )
        picture = heat_map(
            grid,
            heading,
            span=(0.0, greatest),
            scale=scale,
            digits=digits,
            framed=() if kind == "mask" else adaptive,
        )
        blocks.append(
            Figure(f"{stem}-{file_stem(name)}-{kind}", picture, f"{name}: {_caption(kind, mask)}")
        )
    return blocks


def _caption(kind: str, mask: HeadMask) -> str:
    if kind != "mask":
        return {"votes": "votes of the reference samples.", "cv": "mean CV."}[kind]
    recipe = mask.meta.get("recipe")
    if not isinstance(recipe, dict):
        return "head mask, 1 adaptive."
    parts = [str(recipe.get("kind", "given"))]
    parts += [
        f"{key} {recipe[key]}" for key in ("reference", "k", "alpha", "seed") if key in recipe
    ]
    return f"head mask, 1 adaptive; {', '.join(parts)}."


def _statistics(mask: HeadMask, folder: Path) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Vote shares and mean CVs [layers, kv_heads]; None if the folder makes another mask."""
    cvs, _ = load_statistics(folder / STATISTICS_FILE)
    if tuple(cvs.shape[1:]) != tuple(mask.adaptive.shape):
        return None
    ratio = mask.nominal_ratio
    if not 0 < ratio <= 1 or HeadMask.load(folder, ratio) != mask:
        return None
    return count_votes(cvs, ratio).double() / cvs.shape[0], cvs.mean(dim=0)
