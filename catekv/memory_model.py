"""Analytic memory and decode traffic of a head-wise compressed cache.

A decode step of a memory-bound model reads its weights (without the embedding table) and its cache
once; the ratio of those bytes bounds the speed-up that compression can give.
"""

from __future__ import annotations

from dataclasses import dataclass

GIB = 2**30
GB = 1e9


@dataclass(frozen=True)
class MemoryModel:
    """A model's sizes; weights and cache both use ``element_bytes`` per number.

    ``parameters`` counts all weights, ``embedding_parameters`` the table that a step does not
    stream.
    """

    layers: int
    kv_heads: int
    head_dim: int
    parameters: int
    embedding_parameters: int = 0
    element_bytes: int = 2

    @property
    def kv_bytes_per_token(self) -> int:
        """Keys and values of one token in all layers."""
        return 2 * self.layers * self.kv_heads * self.head_dim * self.element_bytes

    def cache_bytes(self, tokens: float) -> float:
        """Cache of ``tokens`` tokens per head (the mean, if heads differ)."""
        return tokens * self.kv_bytes_per_token

    def resident_bytes(self, tokens: float, batch: int = 1) -> float:
        """Weights and cache."""
        return self.parameters * self.element_bytes + batch * self.cache_bytes(tokens)

    def step_bytes(self, tokens: float, batch: int = 1) -> float:
        """Bytes a decode step reads."""
        streamed = (self.parameters - self.embedding_parameters) * self.element_bytes
        return streamed + batch * self.cache_bytes(tokens)

    def decode_bound(self, tokens: int, kept: float, batch: int = 1) -> float:
        """Largest possible speed-up of a decode step, full cache over ``kept`` tokens per head."""
        return self.step_bytes(tokens, batch) / self.step_bytes(kept, batch)
