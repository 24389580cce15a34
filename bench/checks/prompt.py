"""The kernels that see a whole prompt: scores, statistics, packing, page bounds."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from bench.cases import Case, Result, Stage
from bench.checks.compare import checked, relative_error, short_name
from bench.checks.decode import make_prefix
from catekv import kernels
from catekv.kernels.packing import pack
from catekv.kernels.page_bounds import REDUCTIONS

#: Scores are computed in float32 from the stored numbers; the order of the sums is free.
SCORE_TOLERANCE = 1e-4
#: Share of hits that may fall on the other side of a limit, by rounding.
HIT_TOLERANCE = 2e-3


#: (type, head dimension, group, chunk, rule): every head dimension, rule and type once.
_HALF, _OTHER, _FULL = torch.bfloat16, torch.float16, torch.float32
_SUM, _MAX = "sum_of_chunk_max", "max_of_chunk_sum"
SCORES = (
    (_HALF, 128, 4, 8, _SUM), (_HALF, 128, 4, 8, _MAX), (_HALF, 64, 2, 1, _SUM),
    (_HALF, 96, 1, 8, _SUM), (_HALF, 256, 8, 16, _MAX), (_OTHER, 128, 7, 8, _SUM),
    (_FULL, 128, 4, 8, _SUM), (_FULL, 64, 16, 16, _MAX),
)  # fmt: skip
TINY_SCORES = ((_OTHER, 64, 2, 1, _SUM), (_OTHER, 64, 2, 8, _MAX), (_FULL, 64, 1, 8, _SUM))


def cases(stage: Stage) -> list[Case]:
    """Scores, statistics, packing with rows of every kind, pages, the copy."""
    found = []
    for dtype, head_dim, group, chunk, rule in TINY_SCORES if stage.tiny else SCORES:
        name = f"window_scores {short_name(dtype)} d{head_dim} g{group} c{chunk} {rule}"
        run = functools.partial(check_scores, stage, name, dtype, head_dim, group, chunk, rule)
        found.append(Case(name, run, 2.0))
    for dtype in (_OTHER,) if stage.tiny else (_HALF, _OTHER, _FULL):
        name = f"window_statistics {short_name(dtype)}"
        found.append(Case(name, functools.partial(check_statistics, stage, name, dtype), 3.0))
        for kernel, check in (("pack", check_pack), ("pages", check_pages), ("copy", check_copy)):
            name = f"{kernel} {short_name(dtype)}"
            found.append(Case(name, functools.partial(check, stage, name, dtype), 3.0))
    return found


def _prompt(
    stage: Stage, dtype: torch.dtype, head_dim: int, group: int
) -> tuple[Tensor, Tensor, int]:
    """Queries, keys and their number of tokens."""
    tokens = 200 if stage.tiny else 9000
    window = 16 if stage.tiny else 64
    queries = torch.randn(2, 3 * group, window, head_dim, device=stage.device).to(dtype)
    keys = torch.randn(2, 3, tokens, head_dim, device=stage.device).to(dtype)
    return queries, keys, tokens


def check_scores(
    stage: Stage, name: str, dtype: torch.dtype, head_dim: int, group: int, chunk: int, rule: str
) -> Result:
    """The middle of a prompt, and a range that reaches into the window, for some of the heads."""
    queries, keys, tokens = _prompt(stage, dtype, head_dim, group)
    heads = torch.tensor([0, 2], device=stage.device)
    worst = 0.0
    for start, stop, scored, some in (
        (64, tokens - 40, None, None),
        (0, tokens, tokens - 9, heads),
    ):

        def run(
            backend: str,
            queries: Tensor,
            keys: Tensor,
            start: int = start,
            stop: int = stop,
            scored: int | None = scored,
            some: Tensor | None = some,
        ) -> Tensor:
            return kernels.window_scores(
                queries, keys, head_dim**-0.5, start, stop, chunk, rule, scored=scored, heads=some,
                backend=backend,
            )  # fmt: skip

        wanted = run("torch", queries.float(), keys.float())
        worst = max(worst, relative_error(run("triton", queries, keys), wanted))
    return checked(name, {"triton": worst}, SCORE_TOLERANCE, dtype)


def check_statistics(stage: Stage, name: str, dtype: torch.dtype) -> Result:
    """Order statistics of the window's probabilities and the hits above limits made from them."""
    queries, keys, tokens = _prompt(stage, dtype, 64 if stage.tiny else 128, 2)
    start, stop = 16, tokens - 24
    count = queries.shape[2] * (stop - start)
    positions = [int(0.9 * count), int(0.99 * count), count - 1]

    def limits(statistics: Tensor) -> Tensor:
        return statistics[:, :2].contiguous()

    def run(backend: str, queries: Tensor, keys: Tensor) -> tuple[Tensor, list[Tensor]]:
        return kernels.window_statistics(
            queries, keys, queries.shape[-1] ** -0.5, start, stop, positions, limits, (1, 8),
            backend=backend,
        )  # fmt: skip

    wanted, wanted_hits = run("torch", queries.float(), keys.float())
    found, hits = run("triton", queries, keys)
    errors = {"statistics": relative_error(found, wanted)}
    result = checked(name, errors, SCORE_TOLERANCE, dtype)
    for unit, ours, theirs in zip((1, 8), hits, wanted_hits, strict=True):
        moved = float((ours.long() - theirs.long()).abs().sum()) / max(1.0, float(theirs.sum()))
        result.rows[0]["errors"] += f", hits by {unit}: {moved:.1e} moved"
        if not moved <= HIT_TOLERANCE:
            result.wrong, result.note = True, f"{moved:.1e} of the hits by {unit} differ"
    return result


def check_pack(stage: Stage, name: str, dtype: torch.dtype) -> Result:
    """Every row holds its kept entries in prompt order, whatever the memory order of the prompt."""
    tokens = 150 if stage.tiny else 20000
    wrong = []
    for head_dim in (64, 96) if stage.tiny else (64, 96, 128, 256):
        keep = torch.rand(2, 3, tokens, device=stage.device) < 0.4
        keep[0, 1], keep[1, 2] = False, True
        # as a model stores a prompt, and as it hands it over
        keys = torch.randn(2, 3, tokens, head_dim, device=stage.device).to(dtype)
        values = torch.randn(2, tokens, 3, head_dim, device=stage.device).to(dtype).transpose(1, 2)
        prefix = pack(keys, values, keep)
        offsets, slots = prefix.offsets, prefix.slots
        packed = kernels.pack(keys, values, keep, offsets, slots, backend="triton")
        for b in range(2):
            for head in range(3):
                chosen = keep[b, head]
                wanted = keys[b, head][chosen], values[b, head][chosen]
                start = int(offsets[b, head])
                own = tuple(tensor[start : start + int(chosen.sum())] for tensor in packed)
                for path, found in (("layout", prefix.row(b, head)[:2]), ("triton", own)):
                    if not all(torch.equal(x, y) for x, y in zip(found, wanted, strict=True)):
                        wrong.append(f"{path} d{head_dim} row {b}, {head}")
    return checked(name, {"rows": float(len(wrong))}, 0.0, dtype, "; ".join(wrong[:3]))


def check_pages(stage: Stage, name: str, dtype: torch.dtype) -> Result:
    """Bounds of pages are exact; the bound of a query is a sum in float32."""
    longest = 70 if stage.tiny else 9000
    errors: dict[str, float] = {}
    for head_dim, group, size in ((64, 2, 16), (128, 4, 32)):
        prefix = make_prefix(stage, [0, 5, 33, longest, 16, 48], 3, head_dim, dtype, False)
        wanted = kernels.page_bounds(prefix, size, backend="torch")
        found = kernels.page_bounds(prefix, size, backend="triton")
        same = torch.equal(found.low, wanted.low) and torch.equal(found.high, wanted.high)
        errors[f"bounds d{head_dim}"] = 0.0 if same else float("inf")
        queries = torch.randn(2, 3 * group, 1, head_dim, device=stage.device).to(dtype)
        for reduction in REDUCTIONS:
            theirs = kernels.page_scores(queries.float(), wanted, reduction, backend="torch")
            ours = kernels.page_scores(queries, wanted, reduction, backend="triton")
            there = theirs.isfinite()
            error = relative_error(ours[there], theirs[there])
            if not torch.equal(there, ours.isfinite()):
                error = float("inf")
            errors[f"{reduction} d{head_dim}"] = error
    return checked(name, errors, SCORE_TOLERANCE, dtype)


def check_copy(stage: Stage, name: str, dtype: torch.dtype) -> Result:
    """The yardstick of all bandwidths copies everything."""
    wrong = 0
    for numbers in (4096, 1 << 16, (1 << 16) + 64) if stage.tiny else (4096, 1 << 24, 12_345_664):
        source = torch.randn(numbers, device=stage.device).to(dtype)
        target = torch.zeros_like(source)
        kernels.copy(target, source, backend="triton")
        wrong += not torch.equal(source, target)
    return checked(name, {"copies": float(wrong)}, 0.0, dtype)
