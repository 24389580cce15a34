"""What recording the step as a CUDA graph is worth: the same step without it."""

from __future__ import annotations

import functools

from bench.cases import Case, Result, Stage
from bench.workload import catekv, failures, load_model, tokens, uncaptured
from catekv.evaluation.efficiency.measure import measure
from catekv.evaluation.efficiency.measurement import Measurement

NEW_TOKENS = 16


def cases(stage: Stage) -> list[Case]:
    """A short and a long context."""
    return [
        Case("8K", functools.partial(_measure, stage, 8_192), 30.0),
        Case("128K", functools.partial(_measure, stage, 131_072), 12.0),
    ]


def _measure(stage: Stage, length: int) -> Result:
    def run(graph: str) -> list[Measurement]:
        return measure(
            load_model(stage),
            [catekv(stage, 0.4, 1.0)],
            tokens(stage, length),
            new_tokens=2 if stage.tiny else NEW_TOKENS,
            repeats=2,
            baselines=("kernel",),
            graph=graph,
            breakdown=False,
        )

    eager, recorded = run("off"), run("auto")
    rows = []
    for slow, fast in zip(eager, recorded, strict=True):
        before, after = slow.median_step, fast.median_step
        rows.append(
            {
                "tokens": str(slow.length),
                "variant": slow.variant,
                "eager ms": "-" if before is None else f"{1000 * before:.3f}",
                "recorded ms": "-" if after is None else f"{1000 * after:.3f}",
                "ratio": "-" if before is None or after is None else f"{before / after:.2f}x",
                "graph MiB": f"{(fast.graph_bytes or 0) / 2**20:.1f}",
                "captured": "yes" if fast.captured else "no",
            }
        )
    bad = failures([*eager, *recorded])
    note = "; ".join(text for text in (bad, uncaptured(stage, recorded)) if text)
    data = [row.to_dict() for row in (*eager, *recorded)]
    return Result(rows, wrong=bool(bad), note=note, data=data)
