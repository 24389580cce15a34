"""What one sample takes here and now, from which long runs say how long they will take."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from catekv.calibration.head_masks.reference import HELD_OUT_STREAM, build_samples
from catekv.calibration.head_masks.result import SweepSettings
from catekv.evaluation.run.asking import Trial
from catekv.evaluation.run.progress import foretold
from catekv.methods import create

if TYPE_CHECKING:
    from catekv.model import CateKVModel

#: A mask of a calibration is tried with one forward over the full cache's answer, together with
#: others: this share of the time of that answer.
_TRIED = 0.25
_RANDOM_MASKS = 2
_SHORTER = (
    "fewer --samples, --held-out-samples, --held-out-tasks or --references, a smaller "
    "--length, fewer values of --k and --alpha"
)


@dataclass(frozen=True)
class FirstSample:
    """Seconds to read a prompt, and to answer its question with the full cache."""

    read: float
    answered: float

    @classmethod
    def of(
        cls,
        model: CateKVModel,
        task: str,
        length: int,
        seed: int,
        chat_template: str,
        chunk_size: int,
        max_new_tokens: int | None = None,
    ) -> FirstSample:
        """Read and answer a held-out sample of a task."""
        (sample,) = build_samples(
            task, model.tokenizer, length, 1, seed, HELD_OUT_STREAM, chat_template, max_new_tokens
        )
        trial = Trial.of(sample, model.tokenizer, "agnostic", chat_template)
        start = time.perf_counter()
        dense = model.observe(trial.context_ids, chunk_size=chunk_size)
        read = time.perf_counter() - start
        full = dense.compress(create("full"))
        model.generate_ids(trial.question_ids, full, sample.max_new_tokens)
        return cls(read, time.perf_counter() - start - read)

    def foretell(self, seconds: float, shorter: str) -> str:
        """The line that says how long a run will take and how to shorten it."""
        sample = f"{self.read:.1f} s to read, {self.answered:.1f} s to answer"
        return foretold(seconds, sample, shorter)


def sweep_seconds(first: FirstSample, settings: SweepSettings) -> float:
    """About how long a sweep with these settings will take."""
    texts, questions = len(settings.references), len(settings.questions)
    trials = len(settings.held_out_tasks) * settings.held_out_samples * questions
    masks = texts * len(settings.ks) * len(settings.alphas) + _RANDOM_MASKS
    # all masks on every held-out sample, and the reverse of the chosen one on all of them again
    readings = 2 if settings.reverse else 1
    seconds = texts * settings.samples * first.read
    return seconds + trials * (readings * first.read + (4 + _TRIED * masks) * first.answered)


def calibration_time(model: CateKVModel, settings: SweepSettings, quick: bool = False) -> str:
    """About how long a sweep will take, and how to shorten it."""
    first = FirstSample.of(
        model, settings.held_out_tasks[0], settings.length, settings.seed,
        settings.chat_template, settings.chunk_size, settings.max_new_tokens,
    )  # fmt: skip
    seconds = sweep_seconds(first, settings)
    return first.foretell(seconds, _SHORTER if quick else f"--quick; or {_SHORTER}")
