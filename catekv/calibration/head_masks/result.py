"""Settings, candidates and result of a search for head masks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from catekv.calibration import CVConfig
from catekv.errors import UserError
from catekv.evaluation.options import MOST_SAMPLES, option
from catekv.evaluation.report.statistics import Estimate
from catekv.evaluation.run.request import QUESTIONS
from catekv.methods.catekv import DEFAULT_RATIO
from catekv.methods.head_mask import HeadMask
from catekv.methods.head_votes import check_ratio

#: The grid of the published sweep.
K_GRID = (0.984, 0.986, 0.988, 0.99, 0.992, 0.994, 0.996, 0.998)
ALPHA_GRID = (1.0, 0.8)
#: Published variable tracking, and its dense form, in which every sentence is a fact.
REFERENCES = ("ruler/vt", "ruler/vt_dense")
HELD_OUT_TASKS = (
    "ruler/niah_multikey_1",
    "ruler/niah_multikey_2",
    "ruler/niah_multiquery",
    "ruler/vt",
    "ruler/vt_dense",
)
DEFAULT_LENGTH = 4096


#: What a first look needs: a few minutes on two CPU cores with a small model. So short prompts need
#: small budgets and edges: :func:`catekv.evaluation.columns.defaults.short_prompts`.
QUICK: Mapping[str, Any] = {
    "references": ("ruler/vt",),
    "length": 1024,
    "samples": 4,
    "ks": (0.986, 0.99, 0.994),
    "alphas": (1.0,),
    "held_out_tasks": ("ruler/niah_single_2", "ruler/niah_multikey_1"),
    "held_out_samples": 4,
    "questions": ("agnostic",),
}


@dataclass(frozen=True)
class SweepSettings:
    """What a sweep tries and how it decides.

    Args:
        references: tasks or JSONL files whose prompts are observed, one mask family each.
        length: tokens of reference and held-out prompts.
        samples: reference samples per reference text.
        ks, alphas: the grid.
        ratio: r at which candidates are compared.
        cv: observation options; its ``k`` and ``alpha`` are replaced by the grid's.
        method_options: of the method ``catekv`` that candidates are scored with.
        held_out_tasks, held_out_samples: what decides; samples per task.
        questions: ``agnostic`` and/or ``aware``.
        seed: of reference and held-out samples, each in a stream of its own.
        static_vote, vote_count: see :func:`catekv.calibration.vote`.
        max_new_tokens: overrides the tasks' own allowance for held-out answers.
        oracle: also make the mask of a per-head ablation.
        chat_template, chunk_size: as everywhere.
    """

    references: tuple[str, ...] = option(
        REFERENCES,
        "reference texts: task names or JSONL files (default: {default})",
        verbatim=True,
        metavar="TASK",
    )
    length: int = option(DEFAULT_LENGTH, "tokens of reference and held-out prompts")
    samples: int = option(
        50, "reference samples per text (default: {default})", least=1, most=MOST_SAMPLES
    )
    ks: tuple[float, ...] = option(K_GRID, "percentiles k of the sweep", flag="--k", metavar="K")
    alphas: tuple[float, ...] = option(ALPHA_GRID, "scales alpha", flag="--alpha", metavar="ALPHA")
    ratio: float = option(
        DEFAULT_RATIO, "r, share of adaptive heads to compare at (default: {default})"
    )
    cv: CVConfig = field(default_factory=CVConfig)
    method_options: Mapping[str, Any] = field(default_factory=dict)
    held_out_tasks: tuple[str, ...] = option(
        HELD_OUT_TASKS, "tasks that decide", verbatim=True, metavar="TASK"
    )
    held_out_samples: int = option(
        8, "samples per deciding task (default: {default})", least=1, most=MOST_SAMPLES
    )
    questions: tuple[str, ...] = option(
        QUESTIONS["both"],
        "question after compression, inside the context, or both (default)",
        flag="--question",
        choices=QUESTIONS,
    )
    seed: int = option(42, "of the samples (default: {default})")
    static_vote: str = option("per_ratio", "per_ratio or cumulative")
    vote_count: str = option("exact", "exact or keep_ties")
    max_new_tokens: int | None = option(None, "overrides the tasks' own allowance for answers")
    oracle: bool = option(False, "also the mask of a per-head ablation")
    #: whether the reverse of the chosen mask is scored beside it, a second reading of all samples
    reverse: bool = True
    chat_template: str = option("auto", "auto, base, a name, or text with {prompt}")
    chunk_size: int = option(
        8192, "tokens per prefill step (default: {default})", flag="--prefill-chunk"
    )

    def __post_init__(self) -> None:
        check_ratio(self.ratio)
        for name in ("references", "ks", "alphas", "held_out_tasks", "questions"):
            if not getattr(self, name):
                raise UserError(f"{name} is empty; give at least one value")
        for name in ("samples", "held_out_samples", "length", "max_new_tokens"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise UserError(f"{name} {getattr(self, name)} must be at least 1")
        self.configs()

    def configs(self) -> tuple[CVConfig, ...]:
        """One observation configuration per (k, alpha) pair, in the order of the grid."""
        return tuple(self.cv.with_values(k=k, alpha=a) for k in self.ks for a in self.alphas)


@dataclass(frozen=True, eq=False)
class Candidate:
    """One mask of the sweep: ``cvs`` fp64 [samples, layers, kv_heads] and what came of it.

    ``label`` is shared by candidates with the same mask: it was scored once. ``accuracy`` is the
    mean over the deciding tasks, ``by_task`` over all.
    """

    reference: str
    config: CVConfig
    cvs: Tensor
    mask: HeadMask
    label: str = ""
    accuracy: float = float("nan")
    log_probability: float = float("nan")
    by_task: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class SweepResult:
    """Everything a report says.

    ``candidates`` in the order of the grid; ``chosen`` is one of them, ``best_of`` the best of each
    reference. ``controls`` are scores by task of the full cache, random masks and the chosen mask
    reversed; ``contrasts`` the chosen mask's accuracy minus theirs. ``deciding_tasks`` are the
    tasks that the full cache solves.
    """

    settings: SweepSettings
    model: str
    candidates: tuple[Candidate, ...]
    chosen: Candidate
    best_of: Mapping[str, Candidate]
    controls: Mapping[str, Mapping[str, float]]
    deciding_tasks: tuple[str, ...]
    reference_hashes: Mapping[str, tuple[str, ...]]
    contrasts: Mapping[str, Estimate]
    oracle: HeadMask | None = None
    config_hash: str = ""
