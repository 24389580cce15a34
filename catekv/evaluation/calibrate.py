"""Make head masks for a model: reference passes, a sweep of k and alpha, choice by accuracy."""

from __future__ import annotations

import argparse
import contextlib
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from catekv.calibration import CVConfig, vote
from catekv.errors import UserError
from catekv.evaluation import answers, calibration_report, defaults, environment
from catekv.evaluation.ablation import ablation_mask
from catekv.evaluation.cv_files import short_task
from catekv.evaluation.reference import (
    HELD_OUT_STREAM,
    REFERENCE_STREAM,
    ReferencePass,
    build_samples,
    context_hash,
    refuse_overlap,
)
from catekv.head_mask import (
    STANDARD_RATIOS,
    HeadMask,
    adaptive_count,
    check_ratio,
    config_hash,
    refuse_other_model,
    save_statistics,
)
from catekv.methods import create
from catekv.methods.catekv import DEFAULT_RATIO
from catekv.tasks.sample import Sample

if TYPE_CHECKING:
    from catekv.model import CateKVModel

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
DEFAULT_SAMPLES = 50
DEFAULT_HELD_OUT_SAMPLES = 8
RANDOM_MASKS = 2
#: A task that the full cache solves less often decides nothing: compression may even raise it.
SOLVED = 0.9


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

    references: tuple[str, ...] = REFERENCES
    length: int = DEFAULT_LENGTH
    samples: int = DEFAULT_SAMPLES
    ks: tuple[float, ...] = K_GRID
    alphas: tuple[float, ...] = ALPHA_GRID
    ratio: float = DEFAULT_RATIO
    cv: CVConfig = field(default_factory=CVConfig)
    method_options: Mapping[str, Any] = field(default_factory=dict)
    held_out_tasks: tuple[str, ...] = HELD_OUT_TASKS
    held_out_samples: int = DEFAULT_HELD_OUT_SAMPLES
    questions: tuple[str, ...] = ("agnostic", "aware")
    seed: int = 42
    static_vote: str = "per_ratio"
    vote_count: str = "exact"
    max_new_tokens: int | None = None
    oracle: bool = False
    chat_template: str = "auto"
    chunk_size: int = 8192

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
    reversed. ``deciding_tasks`` are the tasks that the full cache solves.
    """

    settings: SweepSettings
    model: str
    candidates: tuple[Candidate, ...]
    chosen: Candidate
    best_of: Mapping[str, Candidate]
    controls: Mapping[str, Mapping[str, float]]
    deciding_tasks: tuple[str, ...]
    reference_hashes: Mapping[str, tuple[str, ...]]
    oracle: HeadMask | None = None
    config_hash: str = ""


def sweep(
    model: CateKVModel,
    settings: SweepSettings,
    output: Path,
    *,
    model_name: str = "",
    model_hash: str = "",
    test_samples: Sequence[Sample] = (),
    progress: bool = True,
) -> SweepResult:
    """Observe the references, vote, and score every distinct mask on held-out samples.

    The best candidate has the highest mean accuracy over the held-out tasks that the full cache
    solves (at least 90 %; all tasks if it solves none); ties go to the higher log probability of
    the full cache's answers, then to the earlier reference and the earlier pair of the grid.

    Args:
        output: folder for the per-sample CVs; a killed sweep goes on with them.
        model_name, model_hash: recorded; another model in the same folder is refused.
        test_samples: a test set that reference and held-out samples must not overlap.

    Raises:
        UserError: overlapping sets, prompts that are too short to observe, options out of range.
    """
    if model.tokenizer is None:
        raise UserError("this model came without a tokenizer; pass a folder that holds one too")
    base = create("catekv", head_mask=HeadMask.random(model.shape, 1.0), **settings.method_options)
    base.validate(model.shape)
    digest = config_hash(model.config)
    refuse_other_model(output / "chosen", model.shape.layers, model.shape.kv_heads, digest)
    references = {
        task: _samples(model, settings, task, settings.samples, REFERENCE_STREAM)
        for task in settings.references
    }
    held_out = [
        sample
        for task in settings.held_out_tasks
        for sample in _samples(
            model,
            settings,
            task,
            settings.held_out_samples,
            HELD_OUT_STREAM,
            settings.max_new_tokens,
        )
    ]
    hashes = {task: tuple(map(context_hash, found)) for task, found in references.items()}
    everything = {value for found in hashes.values() for value in found}
    refuse_overlap(everything, held_out, "the held-out set")
    refuse_overlap({*everything, *map(context_hash, held_out)}, test_samples, "the test set")

    candidates: list[Candidate] = []
    total = settings.samples * len(references)
    with _bar("reference", total, progress) as advance:
        for task, samples in references.items():
            candidates += _observe(
                model, settings, task, samples, output, model_name, model_hash, advance
            )
    masks, candidates = _label(candidates)
    for seed in range(RANDOM_MASKS):
        masks[f"random-{seed}"] = HeadMask.random(model.shape, settings.ratio, seed)
    units = len(held_out) * len(settings.questions)
    with _bar("held-out", units, progress) as advance:
        found = _score(model, settings, held_out, masks, advance)
    full = answers.mean_by_task(found, answers.FULL)
    deciding = tuple(task for task, score in full.items() if score >= SOLVED) or tuple(full)
    candidates = [_judged(candidate, found, deciding) for candidate in candidates]
    chosen = best(candidates)
    with _bar("reversed", units, progress) as advance:
        reverse = {"chosen, reversed": chosen.mask.reversed()}
        found += _score(model, settings, held_out, reverse, advance)
    labels = [answers.FULL, *(label for label in masks if label.startswith("random")), *reverse]
    oracle = None
    if settings.oracle:
        with _bar("ablation", units, progress) as advance:
            oracle = ablation_mask(
                model,
                held_out,
                settings.ratio,
                settings.method_options,
                settings.questions,
                chat_template=settings.chat_template,
                chunk_size=settings.chunk_size,
                advance=advance,
            )
        with _bar("oracle", units, progress) as advance:
            found += _score(model, settings, held_out, {"oracle": oracle}, advance)
        labels.append("oracle")
    return SweepResult(
        settings=settings,
        model=model_name,
        candidates=tuple(candidates),
        chosen=chosen,
        best_of={task: best([c for c in candidates if c.reference == task]) for task in references},
        controls={label: answers.mean_by_task(found, label) for label in labels},
        deciding_tasks=deciding,
        reference_hashes=hashes,
        oracle=oracle,
        config_hash=digest,
    )


def best(candidates: Sequence[Candidate]) -> Candidate:
    """Highest accuracy, then highest log probability, then the earlier one.

    Differences below 1e-9 are ties.
    """
    return max(candidates, key=lambda c: (round(c.accuracy, 9), round(c.log_probability, 9)))


def _samples(
    model: CateKVModel,
    settings: SweepSettings,
    task: str,
    count: int,
    stream: str,
    max_new_tokens: int | None = None,
) -> list[Sample]:
    return build_samples(
        task,
        model.tokenizer,
        settings.length,
        count,
        settings.seed,
        stream,
        settings.chat_template,
        max_new_tokens,
    )


def _observe(
    model: CateKVModel,
    settings: SweepSettings,
    task: str,
    samples: Sequence[Sample],
    output: Path,
    model_name: str,
    model_hash: str,
    advance: Callable[[], None],
) -> list[Candidate]:
    """Reference pass of one text, and the masks of every (k, alpha) pair."""
    configs = settings.configs()
    folder = output / f"headmask_new{_file_name(model_name)}"
    description = {
        "model": model_name,
        "model_hash": model_hash,
        "task": task,
        "length": settings.length,
        "seed": settings.seed,
        "chat_template": settings.chat_template,
        "variant": settings.cv.variant,
        "hit_unit": settings.cv.hit_unit,
        "threshold": settings.cv.threshold,
        "comparison": settings.cv.comparison,
        "std": settings.cv.std,
        "chunk_size, window, init, recent, guard": list(settings.cv.geometry),
    }
    reference = ReferencePass(folder, task, configs, description)
    cvs = reference.run(model, samples, settings.chat_template, settings.chunk_size, advance)
    return [
        Candidate(task, config, one, _vote(one, settings.ratio, settings))
        for config, one in zip(configs, cvs, strict=True)
    ]


def _vote(cvs: Tensor, ratio: float, settings: SweepSettings) -> HeadMask:
    return vote(cvs, ratio, settings.static_vote, settings.vote_count)


def _label(candidates: Sequence[Candidate]) -> tuple[dict[str, HeadMask], list[Candidate]]:
    """Give candidates with the same mask the same label: each mask is scored once."""
    names: dict[HeadMask, str] = {}
    labelled = []
    for candidate in candidates:
        label = names.setdefault(candidate.mask, f"mask-{len(names)}")
        labelled.append(replace(candidate, label=label))
    return {label: mask for mask, label in names.items()}, labelled


def _score(
    model: CateKVModel,
    settings: SweepSettings,
    held_out: Sequence[Sample],
    masks: Mapping[str, HeadMask],
    advance: Callable[[], None],
) -> list[answers.Answer]:
    methods = {
        label: create("catekv", head_mask=mask, **settings.method_options)
        for label, mask in masks.items()
    }
    return answers.score_methods(
        model,
        held_out,
        methods,
        settings.questions,
        chat_template=settings.chat_template,
        chunk_size=settings.chunk_size,
        advance=advance,
    )


def _judged(
    candidate: Candidate, found: Sequence[answers.Answer], deciding: Sequence[str]
) -> Candidate:
    by_task = answers.mean_by_task(found, candidate.label)
    return replace(
        candidate,
        by_task=by_task,
        accuracy=sum(by_task[task] for task in deciding) / len(deciding),
        log_probability=answers.mean_log_probability(
            [answer for answer in found if answer.task in deciding], candidate.label
        ),
    )


def write_masks(result: SweepResult, output: Path) -> list[Path]:
    """Masks at the standard ratios with their statistics: ``chosen/`` and one folder per reference.

    Returns the folders written.
    """
    settings = result.settings
    ratios = [ratio for ratio in STANDARD_RATIOS if ratio != settings.ratio] + [settings.ratio]
    named = {"chosen": result.chosen}
    named.update({short_task(task): found for task, found in result.best_of.items()})
    folders = []
    for name, candidate in named.items():
        folder = output / name
        config = candidate.config
        recipe = {
            "kind": "vote",
            "reference": candidate.reference,
            "length": settings.length,
            "samples": candidate.cvs.shape[0],
            "seed": settings.seed,
            "k": config.k,
            "alpha": config.alpha,
            "variant": config.variant,
            "hit_unit": config.hit_unit,
            "threshold": config.threshold,
            "comparison": config.comparison,
            "std": config.std,
            "window": config.window,
            "chunk_size": config.chunk_size,
            "init_tokens": config.init_tokens,
            "recent_tokens": config.recent_tokens,
            "guard_tokens": config.guard_tokens,
            "static_vote": settings.static_vote,
            "vote_count": settings.vote_count,
            "held_out_accuracy": candidate.accuracy,
        }
        meta = {"model": result.model, "config_hash": result.config_hash, "recipe": recipe}
        for ratio in ratios:
            mask = _vote(candidate.cvs, ratio, settings)
            replace(mask, meta={**meta, "ratio": ratio}).save(folder)
        hashes = list(result.reference_hashes[candidate.reference])
        save_statistics(folder, candidate.cvs, **meta, reference_contexts=hashes)
        folders.append(folder)
    if result.oracle is not None:
        oracle = result.oracle
        assert oracle.order is not None
        heads = int(result.chosen.cvs[0].isfinite().sum())
        for ratio in ratios:
            meta = {**oracle.meta, "model": result.model, "config_hash": result.config_hash}
            own = {**meta, "ratio": ratio}
            count = adaptive_count(ratio, heads)
            HeadMask.from_order(oracle.order, count, oracle.layers, oracle.kv_heads, own).save(
                output / "oracle"
            )
        folders.append(output / "oracle")
    return folders


@contextlib.contextmanager
def _bar(what: str, total: int, shown: bool) -> Iterator[Callable[[], None]]:
    from tqdm import tqdm

    with tqdm(
        total=total, desc=what, unit="sample", disable=not shown, file=sys.stderr
    ) as progress:
        yield lambda: progress.update() and None


def _file_name(model: str) -> str:
    return re.sub(r"[^\w.-]+", "_", Path(model).name) or "model"


# --- command line ---------------------------------------------------------------------------------


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``catekv calibrate``."""
    add = parser.add_argument
    add("--model", metavar="MODEL", help="local folder or hub name (default: the embedded model)")
    add("--dtype", default="auto", help="auto, float32, bfloat16 or float16 (default: auto)")
    add("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    add("--attention", default="auto", help="attention of the prefill: auto, sdpa, eager, ...")
    add(
        "--references",
        nargs="+",
        metavar="TASK",
        default=list(REFERENCES),
        help=f"reference texts: task names or JSONL files (default: {' '.join(REFERENCES)})",
    )
    add("--length", type=int, help="tokens of reference and held-out prompts")
    add(
        "--samples",
        type=int,
        default=DEFAULT_SAMPLES,
        help=f"reference samples per text (default: {DEFAULT_SAMPLES})",
    )
    add("--k", nargs="+", type=float, default=list(K_GRID), help="percentiles k of the sweep")
    add("--alpha", nargs="+", type=float, default=list(ALPHA_GRID), help="scales alpha")
    add("--ratio", type=float, help="r, share of adaptive heads to compare at (default: 0.4)")
    add("--retention", type=float, help="eta, share of chunks adaptive heads keep (default: 1)")
    add("--budget", type=int, help="b, tokens a consistent head keeps (default: 2048)")
    add("--window", type=int, help="L, last prompt queries observed (default: 64)")
    add("--chunk-size", type=int, help="tokens per chunk (default: 8)")
    add("--init-tokens", type=int, help="first tokens always kept (default: 64)")
    add("--recent-tokens", help="last tokens always kept, or b/128 (default: 256)")
    add("--variant", default="official", help="official (as released) or paper (as printed)")
    add("--held-out-tasks", nargs="+", metavar="TASK", help="tasks that decide")
    add(
        "--held-out-samples",
        type=int,
        default=DEFAULT_HELD_OUT_SAMPLES,
        help=f"samples per deciding task (default: {DEFAULT_HELD_OUT_SAMPLES})",
    )
    add(
        "--question",
        choices=("agnostic", "aware", "both"),
        default="both",
        help="question after compression, inside the context, or both (default)",
    )
    add(
        "--test", nargs="+", default=[], metavar="FILE", help="test sets (JSONL) to keep apart from"
    )
    add("--max-new-tokens", type=int, help="overrides the tasks' own allowance for answers")
    add("--seed", type=int, default=42, help="of the samples (default: 42)")
    add("--static-vote", default="per_ratio", help="per_ratio or cumulative")
    add("--vote-count", default="exact", help="exact or keep_ties")
    add("--oracle", action="store_true", help="also the mask of a per-head ablation")
    add("--chat-template", default="auto", help="auto, base, a name, or text with {prompt}")
    add("--prefill-chunk", type=int, default=8192, help="tokens per prefill step (default: 8192)")
    add("--no-picture", action="store_true", help="do not draw the heads")
    add("--output", type=Path, metavar="DIR", help="default: results/headmask-MODEL")


def settings_from(arguments: argparse.Namespace, embedded: bool) -> SweepSettings:
    """Settings of a command line; ``embedded`` says whose defaults hold."""
    given = {
        name: getattr(arguments, name)
        for name in ("retention", "budget", "window", "chunk_size", "init_tokens")
    }
    recent = arguments.recent_tokens
    given["recent_tokens"] = int(recent) if recent is not None and recent.isdigit() else recent
    options = {
        **defaults.method_defaults(embedded).get("catekv", {}),
        **{name: value for name, value in given.items() if value is not None},
        "variant": arguments.variant,
    }
    of_cv = ("window", "chunk_size", "init_tokens", "recent_tokens", "budget", "variant")
    held_out = arguments.held_out_tasks
    if held_out is None:
        held_out = defaults.EMBEDDED_TASKS if embedded else HELD_OUT_TASKS
    length, ratio = arguments.length, arguments.ratio
    if length is None:
        length = defaults.EMBEDDED_LENGTH if embedded else DEFAULT_LENGTH
    return SweepSettings(
        references=tuple(arguments.references),
        length=length,
        samples=arguments.samples,
        ks=tuple(arguments.k),
        alphas=tuple(arguments.alpha),
        ratio=DEFAULT_RATIO if ratio is None else ratio,
        cv=CVConfig(**{name: options[name] for name in of_cv if name in options}),
        method_options=options,
        held_out_tasks=tuple(held_out),
        held_out_samples=arguments.held_out_samples,
        questions=("agnostic", "aware") if arguments.question == "both" else (arguments.question,),
        seed=arguments.seed,
        static_vote=arguments.static_vote,
        vote_count=arguments.vote_count,
        max_new_tokens=arguments.max_new_tokens,
        oracle=arguments.oracle,
        chat_template=arguments.chat_template,
        chunk_size=arguments.prefill_chunk,
    )


def run(arguments: argparse.Namespace) -> int:
    """The command ``catekv calibrate``: sweep, masks, report. Returns the exit code."""
    from catekv import tasks
    from catekv.evaluation import session

    request = session.Request(
        model=arguments.model,
        dtype=arguments.dtype,
        device=arguments.device,
        attention=arguments.attention,
    )
    settings = settings_from(arguments, request.embedded)
    test_samples = [sample for path in arguments.test for sample in tasks.read(path)]
    model = session.open_model(request)
    name = arguments.model or "embedded"
    output = arguments.output or session.RESULTS / f"headmask-{_file_name(name)}"
    path = session.model_path(request)
    result = sweep(
        model,
        settings,
        output,
        model_name=name,
        model_hash=environment.model_identity(path, session.revision_of(model)),
        test_samples=test_samples,
    )
    folders = write_masks(result, output)
    calibration_report.write(result, output, picture=not arguments.no_picture)
    print(calibration_report.summary(result))
    print(f"Masks: {', '.join(str(folder) for folder in folders)}")
    print(f"Report: {output / 'report.md'} (report.json, candidates.csv, heads.png)")
    return 0
