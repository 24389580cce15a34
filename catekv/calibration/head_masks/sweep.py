"""Make head masks for a model: reference passes, a sweep of k and alpha, choice by accuracy."""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from catekv.calibration.head_masks import answers
from catekv.calibration.head_masks.ablation import ablation_mask
from catekv.calibration.head_masks.contrast import RANDOM, REVERSED, contrasts
from catekv.calibration.head_masks.cv_files import short_task
from catekv.calibration.head_masks.reference import (
    HELD_OUT_STREAM,
    REFERENCE_STREAM,
    ReferencePass,
    build_samples,
)
from catekv.calibration.head_masks.result import (
    Candidate,
    SweepResult,
    SweepSettings,
)
from catekv.errors import UserError
from catekv.evaluation.run.overlap import context_hash, refuse_overlap
from catekv.methods import create
from catekv.methods.catekv import CateKV
from catekv.methods.equal_memory import keeps_everything
from catekv.methods.head_mask import HeadMask, refuse_other_model, save_statistics, vote
from catekv.methods.head_votes import STANDARD_RATIOS, adaptive_count
from catekv.models.shape import config_hash
from catekv.models.source import short_name
from catekv.tasks.core.prompt import encode
from catekv.tasks.core.sample import Sample

if TYPE_CHECKING:
    from catekv.model import CateKVModel

RANDOM_MASKS = 2
#: A task that the full cache solves less often decides nothing: compression may even raise it.
SOLVED = 0.9
#: the control that takes the heads which the chosen mask does not
REVERSED_LABEL = "chosen, reversed"


def sweep(
    model: CateKVModel,
    settings: SweepSettings,
    output: Path,
    *,
    model_name: str = "",
    model_hash: str = "",
    test_samples: Sequence[Sample] = (),
    progress: bool = True,
    begin: Callable[[], None] = lambda: None,
) -> SweepResult:
    """Observe the references, vote, and score every distinct mask on held-out samples.

    :func:`best` chooses by the held-out tasks that the full cache solves (90 %; all if none is).

    Args:
        output: folder for the per-sample CVs; a killed sweep goes on with them.
        model_name, model_hash: recorded; another model in the same folder is refused.
        test_samples: a test set that reference and held-out samples must not overlap.
        begin: called once all is found usable, before anything is measured.

    Raises:
        UserError: overlapping sets, prompts that are too short to observe, options out of range.
    """
    digest = _checked(model, settings, output)
    references, held_out = _sample_sets(model, settings)
    hashes = _hashes(references, held_out, test_samples)
    begin()
    names = (model_name, model_hash)
    masks, candidates = _label(_observed(model, settings, output, names, references, progress))
    drawn = _random_masks(model, settings)

    def scored(what: str, tried: Mapping[str, HeadMask]) -> list[answers.Answer]:
        with _bar(what, len(held_out) * len(settings.questions), progress) as advance:
            return _score(model, settings, held_out, tried, advance)

    found = scored("held-out", {**masks, **drawn})
    deciding = _deciding(found)
    candidates = [_judged(candidate, found, deciding) for candidate in candidates]
    chosen = best(candidates)
    controls = {REVERSED_LABEL: chosen.mask.reversed()} if settings.reverse else {}
    found += scored("reversed", controls) if controls else []
    oracle = _oracle(model, settings, held_out, progress) if settings.oracle else None
    if oracle is not None:
        controls["oracle"] = oracle
        found += scored("oracle", {"oracle": oracle})
    against = {RANDOM: set(drawn), REVERSED: {REVERSED_LABEL}}
    return SweepResult(
        settings=settings,
        model=model_name,
        candidates=tuple(candidates),
        chosen=chosen,
        best_of={task: best([c for c in candidates if c.reference == task]) for task in references},
        controls={n: answers.mean_by_task(found, n) for n in (answers.FULL, *drawn, *controls)},
        deciding_tasks=deciding,
        reference_hashes=hashes,
        contrasts=contrasts(found, chosen.label, against, deciding),
        oracle=oracle,
        config_hash=digest,
    )


def _observed(
    model: CateKVModel,
    settings: SweepSettings,
    output: Path,
    names: tuple[str, str],
    references: Mapping[str, Sequence[Sample]],
    progress: bool,
) -> list[Candidate]:
    """The candidates of all reference texts, those of a text together."""
    with _bar("reference", settings.samples * len(references), progress) as advance:
        observe = partial(_observe, model, settings, output, names, advance)
        parts = [observe(task, samples) for task, samples in references.items()]
    return [candidate for part in parts for candidate in part]


def _checked(model: CateKVModel, settings: SweepSettings, output: Path) -> str:
    """The hash of the model's configuration, once model, options and folder are found usable."""
    if model.tokenizer is None:
        raise UserError("this model came without a tokenizer; pass a folder that holds one too")
    base = create("catekv", head_mask=HeadMask.random(model.shape, 1.0), **settings.method_options)
    base.validate(model.shape)
    digest = config_hash(model.config)
    refuse_other_model(output / "chosen", model.shape.layers, model.shape.kv_heads, digest)
    return digest


def _random_masks(model: CateKVModel, settings: SweepSettings) -> dict[str, HeadMask]:
    return {
        f"random-{seed}": HeadMask.random(model.shape, settings.ratio, seed)
        for seed in range(RANDOM_MASKS)
    }


def _deciding(found: Sequence[answers.Answer]) -> tuple[str, ...]:
    """The tasks that the full cache solves; all if it solves none."""
    full = answers.mean_by_task(found, answers.FULL)
    return tuple(task for task, score in full.items() if score >= SOLVED) or tuple(full)


def _sample_sets(
    model: CateKVModel, settings: SweepSettings
) -> tuple[dict[str, list[Sample]], list[Sample]]:
    """Samples to observe by reference text, and those that decide, which masks must compress."""
    references = {
        task: _samples(model, settings, task, settings.samples, REFERENCE_STREAM)
        for task in settings.references
    }
    count, allowance = settings.held_out_samples, settings.max_new_tokens
    held_out = [
        sample
        for task in settings.held_out_tasks
        for sample in _samples(model, settings, task, count, HELD_OUT_STREAM, allowance)
    ]
    _refuse_untouched(model, settings, held_out)
    return references, held_out


def _hashes(
    references: Mapping[str, Sequence[Sample]],
    held_out: Sequence[Sample],
    test_samples: Sequence[Sample],
) -> dict[str, tuple[str, ...]]:
    """Hashes of the reference contexts by task; ``UserError`` where two of the sets overlap."""
    hashes = {task: tuple(map(context_hash, samples)) for task, samples in references.items()}
    observed = {value for found in hashes.values() for value in found}
    refuse_overlap(observed, held_out, "the held-out set")
    refuse_overlap({*observed, *map(context_hash, held_out)}, test_samples, "the test set")
    return hashes


def _oracle(
    model: CateKVModel, settings: SweepSettings, held_out: Sequence[Sample], progress: bool
) -> HeadMask:
    """The mask of a per-head ablation on the held-out samples."""
    with _bar("ablation", len(held_out) * len(settings.questions), progress) as advance:
        return ablation_mask(
            model,
            held_out,
            settings.ratio,
            settings.method_options,
            settings.questions,
            chat_template=settings.chat_template,
            chunk_size=settings.chunk_size,
            advance=advance,
        )


def _refuse_untouched(
    model: CateKVModel, settings: SweepSettings, held_out: Sequence[Sample]
) -> None:
    """``UserError`` where no mask compresses anything: all of them would score alike."""
    mask = HeadMask.random(model.shape, settings.ratio)
    method = CateKV(head_mask=mask, **settings.method_options)
    longest = 0
    for sample in held_out:
        tokens = len(encode(sample, model.tokenizer, settings.chat_template).context_ids)
        if not keeps_everything(method, tokens, model.shape):
            return
        longest = max(longest, tokens)
    raise UserError(
        f"nothing would be compressed: with a budget of {method.budget} tokens all heads keep the "
        f"whole of these prompts (at most {longest} tokens), so that no mask differs from another; "
        "give a larger --length, or a smaller --budget with smaller --init-tokens and "
        "--recent-tokens"
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
    output: Path,
    names: tuple[str, str],
    advance: Callable[[], None],
    task: str,
    samples: Sequence[Sample],
) -> list[Candidate]:
    """Reference pass of one text, and the masks of every (k, alpha) pair.

    ``names`` are the model's name and hash.
    """
    model_name, model_hash = names
    configs = settings.configs()
    folder = output / f"headmask_new{file_name(model_name)}"
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


def file_name(model: str) -> str:
    return re.sub(r"[^\w.-]+", "_", short_name(model)) or "model"
