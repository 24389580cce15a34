"""Estimate what every KV head is worth: draws, utilities, the stop rule and the score file."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from catekv.calibration.cokv.coalitions import WINDOW, CoalitionScorer
from catekv.calibration.cokv.course import Course
from catekv.calibration.cokv.drawing import RUNS, Draw, check_slices, default_slices
from catekv.calibration.cokv.files import ScoreFile
from catekv.calibration.cokv.game import Sums, require_visited
from catekv.calibration.cokv.journal import COURSE_FILE, Plan, ScoreFolder
from catekv.calibration.cokv.journal import SCORE_FILE as SCORE_FILE
from catekv.calibration.cokv.progress import Progress
from catekv.errors import UserError
from catekv.evaluation.options import option
from catekv.evaluation.records import environment
from catekv.evaluation.run.asking import QUESTIONS, Trial
from catekv.evaluation.run.cells import sample_hash
from catekv.files import write_atomically
from catekv.models.shape import config_hash

if TYPE_CHECKING:
    from catekv.model import CateKVModel
    from catekv.tasks.core.sample import Sample


@dataclass(frozen=True)
class Settings:
    """How scores are estimated.

    Attributes:
        slices: coalition sizes; empty: an eighth, a quarter, three eighths and half of the players.
        seed: of the draws.
        check_every: draws of every slice and run between two checks of the stop rule.
        max_draws: of every slice and run.
        tolerance: stop when the two runs differ by less on average; None: 1 / players.
        window, question: as in :mod:`catekv.calibration.cokv.coalitions`.
        chat_template: as in :func:`catekv.tasks.core.prompt.prompt_format`.
        part, parts: this process (from 0) of so many.
    """

    slices: tuple[int, ...] = option(
        (),
        "coalition sizes, e.g. 32,64,96,128 (default: 1/8, 1/4, 3/8 and 1/2 of the heads)",
        metavar="J",
    )
    seed: int = option(42, "of samples and draws (default: {default})")
    check_every: int = option(5, "draws per slice and run between two checks (default: {default})")
    max_draws: int = option(500, "per slice and run (default: {default})")
    tolerance: float | None = option(None, "stop below this MAE (default: 1 / number of heads)")
    window: int = option(WINDOW, "last tokens that every head sees (default: {default})")
    question: str = option(
        "published",
        "published (default): the whole prompt is read before heads are masked; aware: all but "
        "its last token; agnostic: the context without the question",
        choices=QUESTIONS,
    )
    chat_template: str = option("auto", "as in catekv evaluate")
    part: int = 0
    parts: int = 1

    def __post_init__(self) -> None:
        if self.check_every < 1 or self.max_draws < self.check_every:
            raise UserError(
                f"max_draws {self.max_draws} must be at least check_every {self.check_every}, and "
                "that at least 1"
            )
        if self.tolerance is not None and not self.tolerance > 0:
            raise UserError(f"a tolerance of {self.tolerance} is never reached; give one above 0")
        if not 0 <= self.part < self.parts:
            raise UserError(f"process {self.part + 1} of {self.parts} does not exist; e.g. 1/4")

    @property
    def blocks(self) -> int:
        return self.max_draws // self.check_every


@dataclass(frozen=True)
class Outcome:
    """What a run left: ``path`` of the score file (None while other processes have not finished
    their part), whether the runs agreed, and the course of their difference."""

    path: Path | None
    converged: bool
    course: Course


def score(
    model: CateKVModel,
    samples: Sequence[Sample],
    output: str | Path,
    settings: Settings | None = None,
    *,
    batch_size: int = 32,
    keep_prompts: bool = False,
    chunk_size: int = 8192,
    overwrite: bool = False,
    origin: dict[str, Any] | None = None,
    progress: bool = True,
) -> Outcome:
    """Estimate the scores of all heads for a task; goes on where an interrupted run stopped.

    Args:
        model: its own method is not used.
        samples: the validation samples; the utility is their mean official score.
        output: folder for the state, ``scores.npz`` and ``mae.csv``. Several processes share one.
        batch_size, keep_prompts, chunk_size: see :class:`CoalitionScorer`.
        origin: plain values for the recipe that say where model and samples come from. Another
            run in the same folder must give the same.

    Raises:
        UserError: no samples, slices that the model does not have, a folder of another recipe, or
            players that were never drawn when the draws are used up.
    """
    settings = settings or Settings()
    if not samples:
        raise UserError("scores need validation samples; give at least one")
    scorer = CoalitionScorer(
        model, settings.window, batch_size, keep_prompts=keep_prompts, chunk_size=chunk_size
    )
    players = scorer.layers * scorer.kv_heads
    slices = check_slices(settings.slices or default_slices(players), players)
    plan = Plan(players, slices, settings.seed, settings.check_every, len(samples), settings.parts)
    _refuse_too_few_draws(plan, settings.blocks * settings.check_every, scorer.kv_heads)
    recipe = _recipe(model, samples, plan, settings, scorer, origin)
    folder = ScoreFolder(output, plan, settings.part)
    folder.prepare(recipe, overwrite=overwrite)
    trials = [
        Trial.of(sample, model.tokenizer, settings.question, settings.chat_template)
        for sample in samples
    ]
    course = Course(plan)
    with folder, Progress(progress, plan, settings.blocks) as shown:
        _draw(scorer, trials, folder, course, settings, shown)
    return _finish(Path(output), course, settings, scorer, recipe)


def _refuse_too_few_draws(plan: Plan, draws: int, kv_heads: int) -> None:
    """Refuse now what would end without an estimate for some head: the seed says who is drawn."""
    for run in RUNS:
        slices = [Sums.empty(plan.players, size) for size in plan.slices]
        for index in range(draws):
            slices = [
                one.plus(Draw(index, one.size, run).members(plan.seed, plan.players), 0.0)
                for one in slices
            ]
        require_visited(slices, kv_heads)


def _draw(
    scorer: CoalitionScorer,
    trials: Sequence[Trial],
    folder: ScoreFolder,
    course: Course,
    settings: Settings,
    shown: Progress,
) -> None:
    """Measure this process's part, block by block, until the runs agree or the draws are used."""
    over = course.follow(folder.shards(), settings.tolerance, settings.blocks)
    shown.start(course)
    while not over:
        shard = folder.own()
        if shard.block >= settings.blocks:
            return
        if not shard.missing_samples():
            shard.close_if_complete()
            continue
        wanted = shard.wanted()
        for place in shard.missing_samples():
            folder.append(shard.block, place, scorer.scores(trials[place], wanted))
            shown.advance()
        over = course.follow(folder.shards(), settings.tolerance, settings.blocks)
        shown.check(course)


def _recipe(
    model: CateKVModel,
    samples: Sequence[Sample],
    plan: Plan,
    settings: Settings,
    scorer: CoalitionScorer,
    origin: dict[str, Any] | None,
) -> dict[str, Any]:
    """What decides the draws and utilities; runs that differ in it cannot share a folder."""
    return {
        "format": 1,
        "config_hash": config_hash(model.config),
        "task": samples[0].task,
        "metric": samples[0].metric,
        "sample_hashes": [sample_hash(sample) for sample in samples],
        "layers": scorer.layers,
        "kv_heads": scorer.kv_heads,
        "slices": list(plan.slices),
        "seed": plan.seed,
        "check_every": plan.per_block,
        "processes": plan.processes,
        "window": settings.window,
        "question": settings.question,
        "chat_template": settings.chat_template,
        "dtype": str(model.dtype).removeprefix("torch."),
        **(origin or {}),
    }


def _finish(
    folder: Path,
    course: Course,
    settings: Settings,
    scorer: CoalitionScorer,
    recipe: dict[str, Any],
) -> Outcome:
    if not course.over(settings.blocks):
        return Outcome(None, False, course)
    final = course.agreements[-1]
    for run in RUNS:
        require_visited(course.run(run), scorer.kv_heads)
    assert course.bounds is not None
    file = ScoreFile(
        scorer.layers,
        scorer.kv_heads,
        tuple(course.run(run) for run in RUNS),
        {
            **recipe,
            "draws": course.draws,
            "mae": final.error,
            "tolerance": final.tolerance,
            "converged": final.reached,
            "utility_full": course.bounds[0],
            "utility_window": course.bounds[1],
            "versions": environment.versions(),
            "git_commit": environment.git_commit(),
            "device": environment.device_description(str(scorer.model.device)),
            "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        },
    )
    path = file.save(folder / SCORE_FILE)
    _write_course(folder / COURSE_FILE, course)
    return Outcome(path, final.reached, course)


def _write_course(path: Path, course: Course) -> None:
    """One line per check: draws of every slice and run, and the runs' mean difference."""
    step = course.plan.per_block
    lines = [
        f"{(place + 1) * step},{one.error:.8g},{one.tolerance:.8g}"
        for place, one in enumerate(course.agreements)
    ]
    write_atomically(path, "\n".join(["draws,mae,tolerance", *lines]) + "\n")
