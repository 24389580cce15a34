"""Muon for matrices and AdamW for embeddings and norms, small enough to resume exactly."""

from __future__ import annotations

from concurrent.futures import Executor
from typing import Any

import torch
from torch import Tensor


def orthogonalise(matrices: Tensor, steps: int = 5) -> Tensor:
    """Nearest semi-orthogonal matrices of ``[count, rows, columns]`` by Newton-Schulz steps.

    Coefficients and method: Muon (K. Jordan et al., 2024).
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    x = matrices.bfloat16()
    tall = x.shape[1] > x.shape[2]
    if tall:
        x = x.transpose(1, 2)
    x = x / (x.flatten(1).norm(dim=1)[:, None, None] + 1e-7)
    for _ in range(steps):
        gram = x @ x.transpose(1, 2)
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.transpose(1, 2) if tall else x).float()


class Optimiser:
    """Muon (momentum 0.95, Nesterov) on layer matrices, AdamW (0.9, 0.95) on everything else."""

    def __init__(self, weights: dict[str, Tensor], matrix_rate: float, other_rate: float) -> None:
        self.weights = weights
        self.matrix_rate, self.other_rate = matrix_rate, other_rate
        self.matrices = [n for n, w in weights.items() if w.ndim == 2 and ".layers." in n]
        self.others = [n for n in weights if n not in set(self.matrices)]
        self.momentum = {n: torch.zeros_like(weights[n]) for n in weights}
        self.square = {n: torch.zeros_like(weights[n]) for n in self.others}
        self.steps = 0

    def state(self) -> dict[str, Any]:
        return {"momentum": self.momentum, "square": self.square, "steps": self.steps}

    def load(self, state: dict[str, Any]) -> None:
        self.momentum, self.square = state["momentum"], state["square"]
        self.steps = state["steps"]

    @torch.no_grad()
    def _directions(self, names: list[str], gradients: dict[str, Tensor]) -> Tensor:
        directions = []
        for name in names:
            momentum = self.momentum[name].mul_(0.95).add_(gradients[name], alpha=0.05)
            directions.append(gradients[name].lerp(momentum, 0.95))
        return orthogonalise(torch.stack(directions))

    @torch.no_grad()
    def step(self, factor: float, pool: Executor) -> None:
        """One update from the gradients in ``weights``, rates times ``factor``; clears them."""
        self.steps += 1
        gradients = {n: w.grad for n, w in self.weights.items() if w.grad is not None}
        norm = torch.sqrt(torch.stack([g.square().sum() for g in gradients.values()]).sum())
        clip = torch.clamp(1.0 / (norm + 1e-6), max=1.0)
        shapes: dict[tuple[int, ...], list[str]] = {}
        for name in self.matrices:
            shapes.setdefault(tuple(self.weights[name].shape), []).append(name)
        updates = pool.map(lambda names: self._directions(names, gradients), shapes.values())
        for (shape, names), found in zip(shapes.items(), updates, strict=True):
            rate = self.matrix_rate * factor * max(1.0, shape[0] / shape[1]) ** 0.5
            for name, update in zip(names, found, strict=True):
                self.weights[name].add_(update, alpha=-rate)
        for name in self.others:
            gradient = gradients[name] * clip
            momentum = self.momentum[name].mul_(0.9).add_(gradient, alpha=0.1)
            square = self.square[name].mul_(0.95).addcmul_(gradient, gradient, value=0.05)
            corrected = square / (1 - 0.95**self.steps)
            update = momentum / (1 - 0.9**self.steps) / (corrected.sqrt() + 1e-8)
            self.weights[name].add_(update, alpha=-self.other_rate * factor)
        for weight in self.weights.values():
            weight.grad = None
