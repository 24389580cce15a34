"""Head masks: which KV heads of a model are adaptive (keep all tokens) and which are consistent.

A mask lives in a plain CSV file, one line per layer, one 0/1 integer per KV head, 1 = adaptive, as
the published CateKV masks do. A folder holds such files for several ratios and may hold
``statistics.npz`` (the coefficients of variation of every reference sample), from which a mask of
any ratio can be made.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from catekv.errors import UserError
from catekv.files import read_arrays, read_object, write_arrays, write_atomically
from catekv.methods.head_tables import read_numbers, read_table
from catekv.methods.head_votes import (
    STANDARD_RATIOS,
    adaptive_count,
    adaptive_order,
    check_ratio,
    count_votes,
    typed_layers,
)
from catekv.models.shape import model_shape_of, refuse_other_extents

MASK_FILE = re.compile(r"head_type_p(\d+)\.csv")
DUO_FILE, RLKV_FILE = "full_attention_heads.tsv", "adapter_weights.tsv"
META_FILE = "meta.json"
STATISTICS_FILE = "statistics.npz"
#: What a recipe says about the prompt's edges, in tokens, and the least of each.
EDGES = {"window": 1, "init_tokens": 0, "recent_tokens": 0, "guard_tokens": 0}


def percents_in(folder: Path) -> dict[int, Path]:
    """The ``head_type_pNN.csv`` of a folder, by their NN."""
    return {
        int(match.group(1)): path
        for path in folder.iterdir()
        if (match := MASK_FILE.fullmatch(path.name))
    }


def mask_file_name(ratio: float) -> str:
    """``head_type_pNN.csv`` of a ratio, rounded and never truncated (0.29 is p29)."""
    return f"head_type_p{round(100 * ratio)}.csv"


@dataclass(frozen=True, eq=False)
class HeadMask:
    """Adaptive heads of a model.

    Args:
        adaptive: bool [layers, kv_heads], True = adaptive. Layers may be empty or full.
        meta: where the mask comes from: ``ratio`` that was asked for, ``model``, ``config_hash``,
            ``recipe``. Plain values only; it is written to ``meta.json``.
        order: flat head indices, the first to become adaptive first; None where unknown.
    """

    adaptive: Tensor
    meta: dict[str, Any] = field(default_factory=dict)
    order: tuple[int, ...] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        adaptive = torch.as_tensor(self.adaptive)
        if adaptive.dim() != 2 or adaptive.numel() == 0:
            raise UserError(
                f"a head mask has the shape [layers, KV heads], not {list(adaptive.shape)}"
            )
        object.__setattr__(self, "adaptive", adaptive.detach().bool().cpu())

    @property
    def layers(self) -> int:
        return self.adaptive.shape[0]

    @property
    def kv_heads(self) -> int:
        return self.adaptive.shape[1]

    @property
    def ratio(self) -> float:
        """Share of adaptive heads really in the mask."""
        return float(self.adaptive.double().mean())

    @property
    def nominal_ratio(self) -> float:
        """The ratio that was asked for where known (it names the file), else the real share."""
        return float(self.meta.get("ratio", self.ratio))

    @property
    def edges(self) -> dict[str, int]:
        """Edges and window (:data:`EDGES`) that the mask was made with, or one that it is derived
        from; empty where nobody knows.

        Raises:
            UserError: the recipe says something else than numbers of tokens.
        """
        recipe = self.meta.get("recipe")
        while isinstance(recipe, dict) and not recipe.keys() & EDGES.keys():
            recipe = recipe.get("reversed") or recipe.get("of")
        found = {name: recipe[name] for name in EDGES if name in recipe} if recipe else {}
        for name, value in found.items():
            if type(value) is not int or value < EDGES[name]:
                raise UserError(
                    f"the head mask's recipe says {name} {value!r}, which is no number of tokens; "
                    f"correct its {META_FILE}, or give {name}"
                )
        return found

    def with_edges(self, edges: Mapping[str, int]) -> HeadMask:
        """The mask with edges to follow, unless its recipe has its own."""
        if self.edges or not edges:
            return self
        recipe = {**(self.meta.get("recipe") or {}), **edges}
        return replace(self, meta={**self.meta, "recipe": recipe})

    def __eq__(self, other: object) -> bool:
        """Masks are equal if they name the same heads; where they come from does not matter."""
        return isinstance(other, HeadMask) and torch.equal(self.adaptive, other.adaptive)

    def __hash__(self) -> int:
        return hash((self.adaptive.shape, self.adaptive.numpy().tobytes()))

    def __str__(self) -> str:
        return self.show()

    def validate(self, config: Any) -> None:
        """Raise ``UserError`` unless the mask fits ``config`` (ModelShape or transformers)."""
        refuse_other_extents(
            "the head mask has",
            (self.layers, self.kv_heads),
            model_shape_of(config),
            "make a mask for this model with ./run_headmask.sh MODEL",
        )

    def reversed(self) -> HeadMask:
        """A mask of equal size whose order of preference is turned round.

        The heads that would become adaptive last come first: the control that shows whether the
        order carries information.

        Raises:
            UserError: a mask that was read without its order (a single CSV file).
        """
        if self.order is None:
            raise UserError(
                "this head mask has no order to reverse; load it from a folder with "
                f"{STATISTICS_FILE} or with masks of several ratios"
            )
        meta = {**self.meta, "recipe": {"reversed": self.meta.get("recipe")}}
        return HeadMask.from_order(
            self.order[::-1], int(self.adaptive.sum()), self.layers, self.kv_heads, meta
        )

    def complement(self) -> HeadMask:
        """Adaptive and consistent heads exchanged."""
        meta = {"recipe": {"kind": "complement", "of": self.meta.get("recipe")}}
        return HeadMask(~self.adaptive, {**self.meta, **meta, "ratio": 1 - self.nominal_ratio})

    def show(self) -> str:
        """Text picture: one line per layer, ``#`` adaptive, ``.`` consistent."""
        width = len(str(self.layers - 1))
        lines = [
            f"layer {layer:>{width}}  " + "".join("#" if head else "." for head in row)
            for layer, row in enumerate(self.adaptive.tolist())
        ]
        count = int(self.adaptive.sum())
        title = f"{count} of {self.adaptive.numel()} KV heads adaptive ({100 * self.ratio:.1f} %)"
        return "\n".join([title, *lines])

    def to_dict(self) -> dict[str, Any]:
        """Plain values for manifests; :meth:`from_dict` reads them back."""
        return {
            "layers": self.layers,
            "kv_heads": self.kv_heads,
            "ratio": self.ratio,
            "adaptive": ["".join("1" if head else "0" for head in r) for r in self.adaptive],
            "meta": self.meta,
        }

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> HeadMask:
        if not isinstance(content.get("adaptive"), list | tuple):
            raise UserError("a head mask as plain values needs 'adaptive', one text of 0/1 a layer")
        rows = [[letter == "1" for letter in row] for row in content["adaptive"]]
        return cls(torch.tensor(rows), dict(content.get("meta", {})))

    @classmethod
    def random(cls, shape: Any, ratio: float, seed: int = 0) -> HeadMask:
        """``ceil(ratio * heads)`` adaptive heads drawn uniformly over all layers.

        ``shape`` is a ModelShape, a transformers configuration or (layers, kv_heads).
        """
        layers, heads = shape if isinstance(shape, tuple) else model_shape_of(shape)
        order = torch.randperm(layers * heads, generator=torch.Generator().manual_seed(seed))
        meta = {"recipe": {"kind": "random", "seed": seed}}
        return cls.from_ratio(order.tolist(), ratio, layers, heads, meta)

    @classmethod
    def from_scores(cls, scores: Tensor, ratio: float, **meta: Any) -> HeadMask:
        """The ``ceil(ratio * heads)`` heads with the highest score; ties: lower flat index.

        ``scores`` [layers, kv_heads].
        """
        layers, heads = scores.shape
        order = scores.flatten().double().sort(descending=True, stable=True).indices
        return cls.from_ratio(order.tolist(), ratio, layers, heads, meta)

    @classmethod
    def from_order(
        cls, order: Sequence[int], count: int, layers: int, heads: int, meta: dict[str, Any]
    ) -> HeadMask:
        """The first ``count`` of all flat head indices in ``order`` are adaptive."""
        adaptive = torch.zeros(layers * heads, dtype=torch.bool)
        adaptive[list(order[:count])] = True
        return cls(adaptive.view(layers, heads), meta, tuple(order))

    @classmethod
    def from_ratio(
        cls, order: Sequence[int], ratio: float, layers: int, heads: int, meta: dict[str, Any]
    ) -> HeadMask:
        """The first ``ceil(ratio * heads)`` of all flat head indices in ``order`` are adaptive."""
        count = adaptive_count(ratio, layers * heads)
        return cls.from_order(order, count, layers, heads, {**meta, "ratio": ratio})

    @classmethod
    def given(
        cls,
        mask: HeadMask | str | Path | dict[str, Any],
        ratio: float | None = None,
        default_ratio: float | None = None,
    ) -> HeadMask:
        """A mask as options name it: itself, its :meth:`to_dict`, or a path to :meth:`load`.

        Raises:
            UserError: a mask that is not of the ``ratio`` wanted, something else than a mask, or as
                :meth:`load`.
        """
        if isinstance(mask, str | Path):
            return cls.load(mask, ratio, default_ratio)
        mask = cls.from_dict(mask) if isinstance(mask, dict) else mask
        if not isinstance(mask, HeadMask):
            raise UserError(f"a head mask is a HeadMask, its values or a path, not {mask!r:.40}")
        if ratio is None or abs(mask.nominal_ratio - ratio) < 1e-6:
            return mask
        # one without its origin says only how many heads that ratio once gave
        if int(mask.adaptive.sum()) != adaptive_count(ratio, mask.adaptive.numel()):
            raise UserError(
                f"the head mask given is of ratio {mask.nominal_ratio:g}, not {ratio:g}; leave the "
                "ratio out, or give the path of a folder with the mask of that ratio"
            )
        return mask

    @classmethod
    def load(
        cls, path: str | Path, ratio: float | None = None, default_ratio: float | None = None
    ) -> HeadMask:
        """Read a mask.

        Args:
            path: a folder with ``head_type_pNN.csv`` files, a single CSV file, or a DuoAttention
                ``full_attention_heads.tsv`` (or its folder).
            ratio: which file of a folder; any other ratio in (0, 1] is made from the folder's
                ``statistics.npz``. Needed for a DuoAttention pattern, whose heads with the largest
                gates become adaptive. Optional for a folder with one mask and for a single CSV.
            default_ratio: taken where a ratio is needed and none is given.

        Raises:
            UserError: nothing there, no such ratio, or a file that is no mask.
        """
        path = Path(path)
        if ratio is not None:
            check_ratio(ratio)
        if not path.exists():
            raise UserError(f"no head mask at {path}; ./run_headmask.sh makes masks for a model")
        if path.is_file() and path.suffix != ".tsv":
            return _load_csv(path, ratio)
        if path.is_file():
            return _load_duo(path, default_ratio if ratio is None else ratio)
        return _load_folder(path, ratio, default_ratio)

    def save(self, folder: str | Path) -> Path:
        """Write ``head_type_pNN.csv`` and ``meta.json`` into ``folder``; returns the CSV's path.

        ``meta.json`` describes the mask saved last at its top level and lists every mask of the
        folder under ``files``, with what differs from the top level.

        Raises:
            UserError: no write permission, or a folder with masks of another model.
        """
        folder = Path(folder)
        path = folder / mask_file_name(self.nominal_ratio)
        meta = {
            "model": None,
            "config_hash": None,
            "recipe": None,
            **{key: value for key, value in self.meta.items() if key != "source"},
            "ratio": self.nominal_ratio,
            "adaptive_heads": int(self.adaptive.sum()),
            "layers": self.layers,
            "kv_heads": self.kv_heads,
        }
        refuse_other_model(folder, self.layers, self.kv_heads, meta["config_hash"])
        rows = (",".join(str(int(head)) for head in row) for row in self.adaptive)
        described = {**_describe_files(_read_meta(folder)), path.name: meta}
        # what all masks of a folder share stands once, at the top level
        files = {
            name: {key: value for key, value in one.items() if meta.get(key) != value}
            for name, one in sorted(described.items())
        }
        content = {**meta, "files": files}
        write_atomically(path, "".join(f"{row}\n" for row in rows))
        write_atomically(folder / META_FILE, json.dumps(content, indent=2, default=str) + "\n")
        return path


def vote(
    cvs: Tensor,
    ratio: float,
    static_vote: str = "per_ratio",
    vote_count: str = "exact",
    *,
    ratios: Sequence[float] = STANDARD_RATIOS,
    gamma_rule: str = "le",
    **meta: Any,
) -> HeadMask:
    """Fix a model's head mask from the CVs of several reference samples.

    Args:
        cvs: [samples, layers, kv_heads]; NaN in layers that are not compressed.
        ratio: r in (0, 1], share of adaptive heads.
        static_vote, vote_count, ratios, gamma_rule: see
            :func:`~catekv.methods.head_votes.adaptive_order`.
        meta: further entries of the mask's ``meta``.

    Raises:
        UserError: no samples, CVs that are not finite, or an unknown option.
    """
    order, count = adaptive_order(
        cvs, ratio, static_vote, vote_count, ratios=ratios, gamma_rule=gamma_rule
    )
    recipe = {
        "kind": "vote",
        "samples": cvs.shape[0],
        "static_vote": static_vote,
        "vote_count": vote_count,
        "gamma_rule": gamma_rule,
        **meta.pop("recipe", {}),
    }
    layers, heads = cvs.shape[1:]
    return HeadMask.from_order(
        order, count, layers, heads, {"ratio": ratio, "recipe": recipe, **meta}
    )


def refuse_other_model(folder: str | Path, layers: int, kv_heads: int, digest: str | None) -> None:
    """Raise ``UserError`` if ``folder`` holds masks of another model.

    ``digest`` is the model's :func:`config_hash`; None where it is unknown.
    """
    there = _read_meta(Path(folder))
    wanted = {"layers": layers, "kv_heads": kv_heads, "config_hash": digest}
    for name, now in wanted.items():
        before = there.get(name)
        if before is not None and now is not None and before != now:
            raise UserError(
                f"{folder} holds masks of another model ({name} {before}, not {now}); choose "
                "another folder or delete it"
            )


def refuse_other_mask(folder: Path, mask: HeadMask) -> None:
    """Raise ``UserError`` where a mask would replace another one."""
    path = folder / mask_file_name(mask.nominal_ratio)
    if path.is_file() and not torch.equal(_load_csv(path, None).adaptive, mask.adaptive):
        raise UserError(f"{path} is another mask; choose another folder, or delete it")


def save_statistics(folder: str | Path, cvs: Tensor, **recipe: Any) -> Path:
    """Store the CV of every reference sample, float [samples, layers, kv_heads], beside masks.

    :meth:`HeadMask.load` makes masks of any ratio from it. Votes at the standard ratios and the
    mean CV are stored too, for people who look into the file.
    """
    cvs = cvs.double().cpu()
    votes = torch.stack([count_votes(cvs, ratio) for ratio in STANDARD_RATIOS])
    return write_arrays(
        Path(folder) / STATISTICS_FILE,
        {
            "cvs": cvs.numpy(),
            "mean_cv": cvs.mean(dim=0).numpy(),
            "ratios": np.array(STANDARD_RATIOS),
            "votes": votes.numpy(),
            "recipe": np.array(json.dumps(recipe, default=str)),
        },
    )


def load_statistics(path: str | Path) -> tuple[Tensor, dict[str, Any]]:
    """CVs float64 [samples, layers, kv_heads] and the recipe written by :func:`save_statistics`."""
    path = Path(path)
    try:
        content = read_arrays(path)
        cvs = torch.from_numpy(content["cvs"]).double()
        recipe = json.loads(str(content["recipe"]))
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(
            f"{path} is not a readable statistics file; make it again with ./run_headmask.sh"
        ) from error
    if cvs.ndim != 3 or not isinstance(recipe, dict):
        raise UserError(
            f"{path} holds no CVs [samples, layers, kv_heads] with a recipe; make it again with "
            "./run_headmask.sh"
        )
    try:
        typed_layers(cvs)
    except ValueError as error:
        raise UserError(
            f"{path} holds statistics that are not finite; make it again with ./run_headmask.sh"
        ) from error
    return cvs, recipe


def _read_meta(folder: Path) -> dict[str, Any]:
    path = folder / META_FILE
    if not path.exists():
        return {}
    content = read_object(path, "delete it or make the masks again")
    files = content.get("files", {})
    if content and not {"files", "ratio", "recipe"} & content.keys():
        raise UserError(f"{path} describes no head masks; move it away or use another folder")
    if not isinstance(files, dict) or not all(isinstance(one, dict) for one in files.values()):
        raise UserError(
            f"{path} does not say what its files are; delete it or make the masks again"
        )
    if not isinstance(content.get("recipe"), dict | None):
        raise UserError(f"{path} holds a recipe that is none; delete it or make the masks again")
    return content


def _describe_files(meta: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Full description of every mask that a folder's ``meta.json`` lists, by file name."""
    shared = {key: value for key, value in meta.items() if key != "files"}
    return {name: {**shared, **own} for name, own in meta.get("files", {}).items()}


def _load_csv(path: Path, ratio: float | None) -> HeadMask:
    rows = read_table(path, ",")
    wrong = next((cell for row in rows for cell in row if cell not in ("0", "1")), None)
    if wrong is not None:
        raise UserError(
            f"{path} holds {wrong[:20]!r}; a head mask is 0/1 integers (1 = adaptive), comma "
            "separated, without header"
        )
    meta = _describe_files(_read_meta(path.parent)).get(path.name, {})
    named = MASK_FILE.fullmatch(path.name)
    if named:
        percent = int(named.group(1))
        if ratio is not None and round(100 * ratio) != percent:
            raise UserError(
                f"{path} is the mask for ratio {percent / 100:g}, not {ratio:g}; leave the ratio "
                "out, or pass the folder"
            )
        meta.setdefault("ratio", percent / 100)
    meta["source"] = path.name
    return HeadMask(torch.tensor([[cell == "1" for cell in row] for row in rows]), meta)


def gates_in(folder: Path) -> Path:
    """The file of gates in a folder, DuoAttention's or RLKV's; it need not be there."""
    rlkv = folder / RLKV_FILE
    return rlkv if rlkv.is_file() else folder / DUO_FILE


def _load_duo(path: Path, ratio: float | None) -> HeadMask:
    if ratio is None:
        raise UserError(f"{path} holds gate values, not a mask; say which share with ratio=0.4")
    meta = {"recipe": {"kind": "duo_attention"}, "source": path.name}
    return HeadMask.from_scores(read_numbers(path, "\t"), ratio, **meta)


def _nested_order(files: Iterable[Path]) -> tuple[int, ...] | None:
    """Order of the heads by how many of a folder's masks hold them; ties: lower flat index."""
    masks = [_load_csv(path, None).adaptive for path in files]
    if len(masks) < 2 or len({mask.shape for mask in masks}) > 1:
        return None
    return HeadMask.from_scores(torch.stack(masks).sum(dim=0), 1.0).order


def _load_folder(folder: Path, ratio: float | None, default_ratio: float | None) -> HeadMask:
    files = percents_in(folder)
    statistics = folder / STATISTICS_FILE
    if ratio is None:
        if len(files) == 1 and not statistics.is_file():
            return _load_csv(next(iter(files.values())), None)
        if not files and not statistics.is_file() and not gates_in(folder).is_file():
            raise UserError(
                f"{folder} holds no head_type_pNN.csv; ./run_headmask.sh makes masks for a model"
            )
        if default_ratio is None:
            raise UserError(f"{folder} holds masks of several ratios; say which with ratio=0.4")
        ratio = default_ratio
    voted: HeadMask | None = None
    if statistics.is_file():
        cvs, recipe = load_statistics(statistics)
        voted = vote(cvs, ratio)
        voted = replace(voted, meta={**recipe, "ratio": ratio, "source": statistics.name})
    percent = round(100 * ratio)
    if percent in files:
        mask = _load_csv(files[percent], None)
        if abs(mask.nominal_ratio - ratio) < 1e-6:
            return replace(mask, order=voted.order if voted else _nested_order(files.values()))
    if voted is not None:
        return voted
    if gates_in(folder).is_file():
        return _load_duo(gates_in(folder), ratio)
    if not files:
        raise UserError(
            f"{folder} holds no head_type_pNN.csv; ./run_headmask.sh makes masks for a model"
        )
    there = ", ".join(f"{percent / 100:g}" for percent in sorted(files))
    raise UserError(
        f"{folder} has no mask for ratio {ratio:g} and no {STATISTICS_FILE} to make one from; "
        f"available ratios: {there}"
    )
