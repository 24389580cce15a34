"""The reference pass: coefficients of variation of every head on texts that are no test samples.

One pass serves every (k, alpha) pair. Prompts are read layer by layer, so that one layer is dense
at a time, and every finished sample is on disk: a pass that was killed goes on where it stopped.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from catekv import tasks
from catekv.calibration import CVConfig
from catekv.calibration.head_masks.cv_files import pair_folder, read_cv, short_task, stack, write_cv
from catekv.calibration.observation import observe_many
from catekv.errors import UserError
from catekv.evaluation.records.recipe import refuse_other
from catekv.files import read_object, write_atomically
from catekv.methods.base import Method, Needs, Observed, Selection
from catekv.tasks.core.prompt import encode
from catekv.tasks.core.sample import Sample

if TYPE_CHECKING:
    from catekv.model import CateKVModel

#: Random streams of :func:`catekv.tasks.build`; tests use ``test``, so the three never share draws.
REFERENCE_STREAM = "reference"
HELD_OUT_STREAM = "held-out"

_NAME_LENGTH = 10


def build_samples(
    task: str,
    tokenizer: Any,
    length: int,
    count: int,
    seed: int,
    stream: str,
    chat_template: str = "auto",
    max_new_tokens: int | None = None,
) -> list[Sample]:
    """Samples of a task in a stream of their own, or the first ``count`` of a JSONL file.

    ``max_new_tokens`` takes the place of the task's allowance.
    """
    if task.endswith((".json", ".jsonl")):
        samples = tasks.read(task)
        if len(samples) < count:
            raise UserError(f"{task} holds {len(samples)} samples, {count} were asked for")
        if max_new_tokens is None:
            return samples[:count]
        return [replace(sample, max_new_tokens=max_new_tokens) for sample in samples[:count]]
    return tasks.build(
        task,
        tokenizer,
        length,
        count,
        seed=seed,
        stream=stream,
        chat_template=chat_template,
        max_answer_tokens=max_new_tokens,
    )


@dataclass(frozen=True, eq=False)
class CalibrationProbe(Method):
    """A method that records the CVs of every layer and keeps only the window.

    Args:
        configs: options of the observation, of equal geometry.
        records: filled with CVs, fp64 [configs, kv_heads], by layer (batch 1).
    """

    name: ClassVar[str] = "calibration_probe"

    configs: tuple[CVConfig, ...] = ()
    records: dict[int, Tensor] = field(default_factory=dict, repr=False)

    @property
    def needs(self) -> Needs:
        return Needs(window=self.configs[0].window)

    def select_observed(self, observed: Observed) -> Selection:
        found = observe_many(
            observed.queries,
            observed.keys,
            self.configs,
            scaling=observed.scaling,
            form=observed.form,
        )
        self.records[observed.layer] = torch.stack([one.cv[0] for one in found]).cpu()
        keep = torch.zeros(observed.keys.shape[:3], dtype=torch.bool, device=observed.keys.device)
        keep[..., -self.configs[0].window :] = True
        return Selection(keep)


def observe_prompt(
    model: CateKVModel, ids: Sequence[int], configs: Sequence[CVConfig], chunk_size: int = 8192
) -> Tensor:
    """CVs of one prompt, fp64 [configs, layers, kv_heads]; NaN in layers that are not compressed.

    Raises:
        UserError: a prompt without a middle, or a model without a layer that is compressed.
    """
    probe = CalibrationProbe(tuple(configs))
    model.prefill(list(ids), chunk_size=chunk_size, method=probe)
    if not probe.records:
        raise UserError(
            "no layer of this model attends to the whole context, so nothing is compressed and no "
            "head has a type; calibrate a model with full attention"
        )
    absent = torch.full_like(next(iter(probe.records.values())), torch.nan)
    layers = range(model.shape.layers)
    return torch.stack([probe.records.get(layer, absent) for layer in layers], dim=1)


@dataclass(frozen=True)
class ReferencePass:
    """Where CVs of one model and one reference text are collected.

    Args:
        folder: ``headmask_new<model>`` folder of the published layout.
        task: task or JSONL file of the reference samples.
        configs: one per (k, alpha) pair, of equal geometry.
        description: model, length, seed and so on; a folder made with others is refused.
    """

    folder: Path
    task: str
    configs: tuple[CVConfig, ...]
    description: dict[str, Any]

    def pair_folders(self) -> list[Path]:
        return [
            self.folder / pair_folder(self.task, config.k, config.alpha, config.window)
            for config in self.configs
        ]

    def prepare(self) -> None:
        """Make the folder, or check that what it holds was made with the same settings."""
        path = self.folder / f"{short_task(self.task)}.json"
        if path.exists():
            there = read_object(path, f"delete {self.folder} and start again")
            remedy = "choose another output folder or delete it"
            refuse_other(self.folder, there, self.description, remedy, "a reference pass")
            return
        content = json.dumps(self.description, indent=2, sort_keys=True, default=str)
        write_atomically(path, content + "\n")

    def run(
        self,
        model: CateKVModel,
        samples: Sequence[Sample],
        chat_template: str = "auto",
        chunk_size: int = 8192,
        advance: Callable[[], None] = lambda: None,
    ) -> Tensor:
        """CVs of all samples, fp64 [configs, samples, layers, kv_heads].

        Samples with a file in every (k, alpha) folder are read back, the others measured.
        """
        self.prepare()
        folders = self.pair_folders()
        rows: list[list[Tensor]] = [[] for _ in folders]
        for sample in samples:
            ids = encode(sample, model.tokenizer, chat_template).ids
            name = sample_name(ids)
            files = [folder / f"{name}.csv" for folder in folders]
            if not all(file.is_file() for file in files):
                try:
                    for file, cvs in zip(
                        files, observe_prompt(model, ids, self.configs, chunk_size), strict=True
                    ):
                        write_cv(file, cvs)
                except OSError as error:
                    raise UserError(
                        f"cannot write to {self.folder}: {error.strerror or error}; choose "
                        "another folder"
                    ) from error
            for row, file in zip(rows, files, strict=True):
                row.append(read_cv(file))
            advance()
        names = [folders[0] / str(sample.index) for sample in samples]
        return torch.stack([stack(row, names) for row in rows])


def sample_name(ids: Sequence[int]) -> str:
    """File name of a sample: 10 letters and digits that depend on its token ids only."""
    text = ",".join(str(token) for token in ids)
    return hashlib.sha256(text.encode()).hexdigest()[:_NAME_LENGTH]
