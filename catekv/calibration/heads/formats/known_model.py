"""What is known of the model that a head file belongs to, and its heads as that model has them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import numpy as np

from catekv.cache.cache import compressing_layers
from catekv.calibration.heads.head_scores import Floats
from catekv.errors import UserError
from catekv.loading import read_config
from catekv.models.compat import attention_sizes, text_config
from catekv.models.shape import config_hash

QUERY_RULES = ("max", "mean")
_SHAPE = re.compile(r"(\d{1,4})x(\d{1,4})(?:x(\d{1,4}))?")


@dataclass(frozen=True)
class KnownModel:
    """Attributes:
    layers, kv_heads, query_heads: 0 where nobody knows.
    full_layers: those that attend to the whole context.
    """

    layers: int = 0
    kv_heads: int = 0
    query_heads: int = 0
    full_layers: tuple[int, ...] = ()
    name: str | None = None
    config_hash: str | None = None

    @classmethod
    def of(cls, model: str | None, shape: str | None) -> KnownModel:
        """From a model's configuration, or from LAYERSxKV_HEADS[xQUERY_HEADS].

        Raises:
            UserError: both, or words that are no shape of a model.
        """
        if model is not None and shape is not None:
            raise UserError("--shape is read from --model; give one of them")
        if model is not None:
            config = read_config(model)
            sizes = attention_sizes(config)
            layers = text_config(config).num_hidden_layers
            full = tuple(compressing_layers(config))
            return cls(layers, sizes.kv_heads, sizes.query_heads, full, model, config_hash(config))
        if shape is None:
            return cls()
        found = _SHAPE.fullmatch(shape)
        if not found or "0" in found.groups():
            raise UserError(
                f"--shape {shape!r} is no LAYERSxKV_HEADS or LAYERSxKV_HEADSxQUERY_HEADS, e.g. "
                "32x8x32"
            )
        layers, heads, queries = (int(part or 0) for part in found.groups())
        if queries % heads:
            raise UserError(
                f"--shape {shape!r}: {queries} query heads are no multiple of {heads} KV heads; "
                "write LAYERSxKV_HEADSxQUERY_HEADS"
            )
        return cls(layers, heads, queries, tuple(range(layers)))

    def fitted(self, table: Floats, rule: str) -> tuple[Floats, dict[str, Any]]:
        """A table [..., layers, heads] as [..., layers, kv_heads] of the model, and what was done.

        A file of a hybrid model may list its layers with full attention only; the others get the
        lowest score. Scores of query heads become the ``max`` or ``mean`` of their group.

        Raises:
            UserError: another number of layers or heads; neither is known and they are needed.
        """
        rows, columns = table.shape[-2:]
        done: dict[str, Any] = {}
        if self.layers and rows == len(self.full_layers) != self.layers:
            whole = np.full((*table.shape[:-2], self.layers, columns), table.min())
            whole[..., list(self.full_layers), :] = table
            table, done["layers"] = whole, "only those with full attention were listed"
        elif self.layers and rows != self.layers:
            raise UserError(self._refused(f"{rows} layers"))
        if self.kv_heads and columns != self.kv_heads:
            if columns != self.query_heads or columns % self.kv_heads:
                raise UserError(self._refused(f"{columns} heads a layer"))
            grouped = table.reshape(*table.shape[:-1], self.kv_heads, -1)
            table = grouped.max(axis=-1) if rule == "max" else grouped.mean(axis=-1)
            done["query_heads"] = f"{rule} of a KV head's group"
        return table, done

    def _refused(self, found: str) -> str:
        queries = f" ({self.query_heads} query heads)" if self.query_heads else ""
        return (
            f"the file is for {found} but the model has {self.layers} layers x {self.kv_heads} KV "
            f"heads{queries}; use a file of this model"
        )

    @property
    def group(self) -> int:
        """Query heads of a KV head.

        Raises:
            UserError: nobody said.
        """
        if not self.query_heads or self.query_heads % self.kv_heads:
            raise UserError(
                "this format has query heads; say the model with --model, or its heads with "
                "--shape LAYERSxKV_HEADSxQUERY_HEADS"
            )
        return self.query_heads // self.kv_heads
