"""Train the embedded model: ``python -m experiments.embedded.train --output ckpt/embedded``.

One run is a number of steps fixed at its start (``--steps``), so it can be interrupted and
continued with ``--resume`` to the same weights. Working files (``state.pt``) go to ``--work``,
the finished checkpoint with tokenizer, ``curve.csv`` and ``training.json`` to ``--output``.
"""

from __future__ import annotations

import argparse
import copy
import json
import platform
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from catekv.commands.cli import Parser, run_safely
from catekv.commands.numbers import token_count, whole
from catekv.errors import UserError
from catekv.evaluation.options import MOST_LAYERS
from catekv.files import read_json, replacing, write_atomically, write_table
from catekv.tasks.wording.tokenizer import build_tokenizer
from experiments.embedded.initialise import initialise
from experiments.embedded.language import DocumentSampler, Mixture
from experiments.embedded.network import build_config, hidden_states, logits
from experiments.embedded.optimiser import Optimiser
from experiments.embedded.probe import probe

#: threads that share a step's documents; part of the recipe because it decides the sums
WORKERS = 2


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the result, besides the library versions."""

    steps: int = 2400
    seed: int = 1
    #: tokens a step, shared by documents of one length
    tokens: int = 4096
    matrix_rate: float = 0.01
    other_rate: float = 1e-3
    #: the last steps, in which the learning rates fall linearly and documents become long
    cooldown: int = 800
    #: further steps on long documents, with rates that start again at ``long_rate`` and fall
    long_steps: int = 260
    long_rate: float = 0.3
    #: weight of plain language modelling beside the answers
    language_weight: float = 0.05
    #: share of the other tokens whose language loss is computed
    language_share: float = 0.2
    dtype: str = "bfloat16"


#: step at which a stage before the cool-down ends, and its document lengths (drawn uniformly)
STAGES: tuple[tuple[int, tuple[int, ...]], ...] = (
    (180, (64, 128)),
    (720, (128, 256, 512)),
    (sys.maxsize, (128, 256, 256, 512, 512, 1024)),
)

#: Step at which a phase ends, and its documents. Lists in any order only need to tell what has been
#: said; their own marker tells the list from the text. Both phases were added when the curve had
#: shown that lists were not learned without.
CURRICULUM: tuple[tuple[int, Mixture], ...] = (
    (800, Mixture(list_marker="note")),
    (1300, Mixture(frequent_share=0.2, shuffled=True, list_marker="note")),
    (sys.maxsize, Mixture(frequent_share=0.2, frequent_every=24, value_counts=(4,), shuffled=True)),
)

#: share of the cool-down at which a stage ends, and its document lengths
COOLDOWN_STAGES: tuple[tuple[float, tuple[int, ...]], ...] = (
    (0.5, (128, 256, 256, 512, 512, 1024)),
    (0.85, (256, 512, 1024, 1024, 2048)),
    (1.0, (512, 1024, 2048, 4096)),
)


#: document lengths of the long steps
LONG_LENGTHS: tuple[int, ...] = (512, 1024, 2048, 4096, 4096)


def total_steps(recipe: Recipe) -> int:
    return recipe.steps + recipe.long_steps


def cooling(recipe: Recipe, step: int) -> float:
    """Progress of the cool-down, 0 before it and below 1 in it."""
    return max(0.0, 1.0 - (recipe.steps - step) / recipe.cooldown)


def document_length(recipe: Recipe, step: int) -> int:
    """Length of all documents of a step."""
    progress = cooling(recipe, step)
    if progress >= 1:
        lengths = LONG_LENGTHS
    elif progress > 0:
        lengths = next(lengths for end, lengths in COOLDOWN_STAGES if progress < end)
    else:
        lengths = next(lengths for end, lengths in STAGES if step < end)
    return Random(f"embedded-length {recipe.seed} {step}").choice(lengths)


def rate_factor(recipe: Recipe, step: int) -> float:
    """Warm-up over 50 steps, plateau, linear fall to a fiftieth; the long steps fall again."""
    if step >= recipe.steps:
        return recipe.long_rate * (1.0 - 0.98 * (step - recipe.steps) / recipe.long_steps)
    return min(1.0, (step + 1) / 50) * (1.0 - 0.98 * cooling(recipe, step))


def same_until(one: Recipe, other: Recipe, step: int) -> bool:
    """Whether two recipes, which may end differently, are the same before ``step``."""
    ends = {name: getattr(other, name) for name in ("steps", "cooldown", "long_steps", "long_rate")}
    return replace(one, **ends) == other and all(
        rate_factor(one, earlier) == rate_factor(other, earlier)
        and document_length(one, earlier) == document_length(other, earlier)
        for earlier in range(step)
    )


class Trainer:
    """Weights, optimiser and the number of the next step."""

    def __init__(self, recipe: Recipe, config: Any) -> None:
        from transformers import LlamaForCausalLM

        self.recipe, self.config = recipe, config
        self.model = LlamaForCausalLM(config).float()
        self.weights: dict[str, Tensor] = dict(self.model.named_parameters())
        with torch.no_grad():
            initialise({n: w.data for n, w in self.weights.items()}, config, recipe.seed)
        self.optimiser = Optimiser(self.weights, recipe.matrix_rate, recipe.other_rate)
        self.dtype = getattr(torch, recipe.dtype)
        # One torch thread per worker beats parallel loops inside every operation by far.
        self.pool = ThreadPoolExecutor(WORKERS)
        self.next_step = 0

    def gradients(self, step: int, worker: int) -> tuple[Sequence[Tensor], float, float]:
        """Gradients of one worker's documents of ``step`` with the answer and language loss."""
        torch.set_num_threads(1)
        length = document_length(self.recipe, step)
        count = max(1, self.recipe.tokens // WORKERS // length)
        first = (step * WORKERS + worker) * 1000
        mixture = next(mixture for end, mixture in CURRICULUM if step < end)
        sampler = DocumentSampler(self.recipe.seed, mixture)
        documents = [sampler.document(first + i, length) for i in range(count)]
        tokens = torch.from_numpy(np.stack([d.tokens for d in documents]))
        positions = torch.from_numpy(np.stack([d.positions for d in documents]))
        answers = torch.from_numpy(np.stack([d.answers for d in documents]))[:, 1:].flatten()
        hidden = hidden_states(self.weights, self.config, tokens, positions, self.dtype)
        hidden = hidden[:, :-1].flatten(0, 1)
        targets = tokens[:, 1:].flatten()
        generator = torch.Generator().manual_seed(self.recipe.seed * 1_000_003 + first)
        chosen = torch.rand(len(targets), generator=generator) < self.recipe.language_share
        chosen &= ~answers
        rows = answers.nonzero().flatten(), chosen.nonzero().flatten()
        scores = logits(self.weights, hidden[torch.cat(rows)], self.dtype)
        losses = F.cross_entropy(scores, targets[torch.cat(rows)], reduction="none")
        parts = losses.split([len(rows[0]), len(rows[1])])
        answer, language = (part.sum() / max(1, len(part)) for part in parts)
        total = (answer + self.recipe.language_weight * language) / WORKERS
        return (
            torch.autograd.grad(total, list(self.weights.values())),
            answer.item(),
            language.item(),
        )

    def step(self) -> tuple[float, float]:
        """One optimiser step; returns the mean answer and language loss of the documents."""
        workers = range(WORKERS)
        parts = list(self.pool.map(self.gradients, [self.next_step] * WORKERS, workers))
        for weight, gradients in zip(
            self.weights.values(), zip(*(part[0] for part in parts), strict=True), strict=True
        ):
            weight.grad = torch.stack(gradients).sum(0)
        self.optimiser.step(rate_factor(self.recipe, self.next_step), self.pool)
        self.next_step += 1
        return sum(p[1] for p in parts) / WORKERS, sum(p[2] for p in parts) / WORKERS

    def save_state(self, file: Path, curve: list[dict[str, float]], seconds: float) -> None:
        """Everything that a resumed run needs; written aside first, so never half a file."""
        state = {
            "recipe": asdict(self.recipe),
            "weights": {n: w.detach() for n, w in self.weights.items()},
            "optimiser": self.optimiser.state(),
            "next_step": self.next_step,
            "curve": curve,
            "seconds": seconds,
        }
        with replacing(file) as partial:
            torch.save(state, partial)

    def load_state(self, file: Path) -> tuple[list[dict[str, float]], float]:
        state = torch.load(file, weights_only=True)
        if not same_until(Recipe(**state["recipe"]), self.recipe, state["next_step"]):
            raise UserError(f"{file} belongs to another recipe: use its settings or another --work")
        with torch.no_grad():
            for name, weight in self.weights.items():
                weight.copy_(state["weights"][name])
        self.optimiser.load(state["optimiser"])
        self.next_step = state["next_step"]
        return state["curve"], state["seconds"]

    def export(self, folder: Path) -> None:
        """Write the model and the tokenizer as transformers reads them.

        Weights are stored in bfloat16 to halve the file, but ``config.json`` asks for float32, in
        which the model is meant to be run on a CPU and in which equality can be tested.
        """
        folder.mkdir(parents=True, exist_ok=True)
        copy.deepcopy(self.model).to(torch.bfloat16).save_pretrained(folder)
        file = folder / "config.json"
        write_atomically(file, json.dumps({**read_json(file), "dtype": "float32"}, indent=2))
        build_tokenizer().save_pretrained(folder)


def write_curve(file: Path, curve: list[dict[str, float]]) -> None:
    columns = list(dict.fromkeys(key for row in curve for key in row))
    write_table(file, columns, [[row.get(name, "") for name in columns] for row in curve])


def run(
    trainer: Trainer,
    output: Path,
    work: Path,
    resume: bool = False,
    report_every: int = 100,
    probe_every: int = 500,
    probe_length: int = 512,
    probe_count: int = 16,
    stop_after: int | None = None,
) -> list[dict[str, float]]:
    """Train to the end of the recipe (or ``stop_after`` steps) and export; returns the curve."""
    state_file = work / "state.pt"
    curve: list[dict[str, float]] = []
    spent = 0.0
    if resume and state_file.exists():
        curve, spent = trainer.load_state(state_file)
    started = time.monotonic()
    recipe = trainer.recipe
    last = total_steps(recipe)
    if stop_after is not None:
        last = min(last, stop_after)
    recent: list[tuple[float, float]] = []
    while trainer.next_step < last:
        recent.append(trainer.step())
        step = trainer.next_step
        if step % report_every and step != last:
            continue
        seconds = spent + time.monotonic() - started
        answer, language = (float(np.mean(column)) for column in zip(*recent, strict=True))
        recent = []
        row: dict[str, float] = {
            "step": step,
            "seconds": round(seconds, 1),
            "answer_loss": round(answer, 4),
            "language_loss": round(language, 4),
        }
        if step % probe_every == 0 or step == last:
            row |= probe(trainer.weights, trainer.config, probe_length, probe_count, trainer.dtype)
        curve.append(row)
        print(" ".join(f"{key} {value}" for key, value in row.items()), flush=True)
        seconds = spent + time.monotonic() - started
        trainer.save_state(state_file, curve, seconds)
    if trainer.next_step == total_steps(recipe):
        trainer.export(output)
        write_curve(output / "curve.csv", curve)
        summary = {
            "recipe": asdict(recipe),
            "seconds": round(spent + time.monotonic() - started, 1),
            "workers": WORKERS,
            "torch": torch.__version__,
            "machine": platform.machine(),
            "stages": (*STAGES[:-1], (None, STAGES[-1][1])),
            "cooldown_stages": COOLDOWN_STAGES,
            "long_lengths": LONG_LENGTHS,
            "curriculum": [(end, asdict(mixture)) for end, mixture in CURRICULUM],
        }
        write_atomically(output / "training.json", json.dumps(summary, indent=2) + "\n")
    return curve


def main(arguments: Sequence[str] | None = None) -> int:
    defaults = Recipe()
    parser = Parser(prog="python -m experiments.embedded.train", description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("ckpt/embedded"))
    parser.add_argument("--work", type=Path, default=Path("runs/embedded"))
    parser.add_argument("--steps", type=whole(1), default=defaults.steps)
    parser.add_argument("--cooldown", type=whole(1), default=defaults.cooldown)
    parser.add_argument("--long-steps", type=whole(0), default=defaults.long_steps)
    parser.add_argument("--seed", type=int, default=defaults.seed)
    parser.add_argument("--tokens", type=token_count, default=defaults.tokens, help="tokens a step")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default=defaults.dtype)
    parser.add_argument("--layers", type=whole(3, MOST_LAYERS), default=4)
    parser.add_argument("--resume", action="store_true", help="continue from --work")
    parser.add_argument("--stop-after", type=whole(1), default=None, help="pause after this step")
    parser.add_argument("--probe-every", type=whole(1), default=500)
    options = parser.parse_args(arguments)
    return run_safely(lambda: _command(options))


def _command(options: argparse.Namespace) -> int:
    torch.set_num_threads(1)
    recipe = Recipe(
        steps=options.steps,
        cooldown=options.cooldown,
        long_steps=options.long_steps,
        seed=options.seed,
        tokens=options.tokens,
        dtype=options.dtype,
    )
    trainer = Trainer(recipe, build_config(num_hidden_layers=options.layers))
    run(
        trainer,
        options.output,
        options.work,
        resume=options.resume,
        probe_every=options.probe_every,
        stop_after=options.stop_after,
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
