"""Decoding greedily from a compressed context."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from catekv.cache import RaggedCache
from catekv.prefill import positions_of


@dataclass(frozen=True)
class Generation:
    """Answer of one greedy run.

    ``tokens`` are the new tokens of the (single) sequence, stop token excluded; ``rows`` those of
    every sequence of the batch. ``question_seconds`` is the time of the forward over the question,
    ``decode_seconds`` that of the ``steps`` forwards of one token after it.
    """

    tokens: list[int]
    rows: list[list[int]]
    question_seconds: float
    decode_seconds: float
    steps: int


def synchronize(device: torch.device) -> None:
    """Wait for an accelerator, so that clocks measure work and not its queue."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@torch.no_grad()
def greedy(
    model: torch.nn.Module,
    cache: RaggedCache,
    question: Tensor,
    question_mask: Tensor | None,
    context_mask: Tensor | None,
    last_logits: Tensor,
    max_new_tokens: int,
    stop_token_ids: Sequence[int],
) -> Generation:
    """Feed a question after the context in ``cache`` (which it consumes) and decode greedily.

    Args:
        question: [batch, tokens], left-padded; may have no tokens.
        question_mask: [batch, tokens] or None without padding.
        context_mask: [batch, context columns] or None without padding.
        last_logits: [batch, vocabulary] of the context's last token, used if there is no question.
        max_new_tokens: tokens to generate at most.
        stop_token_ids: a row ends before the first of these.
    """
    device = last_logits.device
    batch, seen = question.shape[0], cache.get_seq_length()
    mask: Tensor | None = None
    if context_mask is not None or question_mask is not None:
        past = context_mask
        if past is None:
            past = torch.ones(batch, seen, dtype=torch.long, device=device)
        if question_mask is None:
            question_mask = torch.ones_like(question)
        mask = torch.cat([past.long(), question_mask.long()], dim=-1)
    clock = time.perf_counter()
    logits = last_logits
    if question.shape[1]:
        options: dict[str, Any] = {}
        if mask is not None:
            options["position_ids"] = positions_of(mask)[:, -question.shape[1] :]
            options["attention_mask"] = mask
        logits = model(
            question, past_key_values=cache, use_cache=True, logits_to_keep=1, **options
        ).logits[:, -1]
    synchronize(device)
    question_seconds = time.perf_counter() - clock

    stops = torch.tensor(sorted(set(stop_token_ids)), dtype=torch.long, device=device)
    positions = None if mask is None else mask.sum(dim=-1, keepdim=True)
    finished = torch.zeros(batch, dtype=torch.bool, device=device)
    chosen: list[Tensor] = []
    steps = 0
    clock = time.perf_counter()
    for step in range(max_new_tokens):
        tokens = logits.argmax(dim=-1)
        chosen.append(tokens)
        finished |= torch.isin(tokens, stops)
        if step + 1 == max_new_tokens or bool(finished.all()):
            break
        options = {}
        if mask is not None and positions is not None:
            mask = torch.cat([mask, mask.new_ones(batch, 1)], dim=-1)
            options = {"attention_mask": mask, "position_ids": positions}
            positions = positions + 1
        logits = model(
            tokens[:, None], past_key_values=cache, use_cache=True, logits_to_keep=1, **options
        ).logits[:, -1]
        steps += 1
    synchronize(device)
    decode_seconds = time.perf_counter() - clock
    rows = []
    for row in torch.stack(chosen, dim=1).tolist() if chosen else [[] for _ in range(batch)]:
        end = next((i for i, token in enumerate(row) if token in set(stop_token_ids)), len(row))
        rows.append(row[:end])
    return Generation(rows[0], rows, question_seconds, decode_seconds, steps)
