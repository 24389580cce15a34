"""The shipped checkpoint is what its card says, and retrieves."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from catekv import tasks
from catekv.models import embedded
from catekv.tasks.wording import vocabulary
from experiments.embedded.card import write_card
from experiments.embedded.evaluate import answer
from experiments.embedded.train import Recipe, total_steps

FILES = ("MODEL_CARD.md", "config.json", "curve.csv", "evaluation.json", "training.json")


def test_files_are_complete_and_small() -> None:
    folder = embedded.path()
    assert all((folder / name).is_file() for name in FILES)
    assert sum(file.stat().st_size for file in folder.iterdir()) < 16e6


def test_tokenizer_is_the_one_of_the_vocabulary() -> None:
    tokenizer = AutoTokenizer.from_pretrained(embedded.path())
    assert tokenizer.get_vocab() == vocabulary.index()
    assert tokenizer.init_kwargs["catekv_wording"] == "small"


def test_card_and_curve_come_from_the_recorded_numbers(tmp_path: Path) -> None:
    folder = embedded.path()
    for name in (*FILES, "model.safetensors"):
        shutil.copy(folder / name, tmp_path)
    write_card(tmp_path)
    assert (tmp_path / "MODEL_CARD.md").read_text() == (folder / "MODEL_CARD.md").read_text()
    scores = json.loads((folder / "evaluation.json").read_text())["scores"]
    assert {f"{task} {length}" for task in ("vt", "vt_dense") for length in (1024, 4096)} <= set(
        scores
    )
    assert all(len(cell["strict"]) >= 100 for cell in scores.values())
    with (folder / "curve.csv").open() as stream:
        steps = [int(row["step"]) for row in csv.DictReader(stream)]
    assert steps == sorted(set(steps))
    training = json.loads((folder / "training.json").read_text())
    assert steps[-1] == total_steps(Recipe(**training["recipe"]))


@pytest.mark.parametrize("task", ["niah_single_1", "niah_multiquery", "vt"])
def test_it_answers(task: str) -> None:
    torch.set_num_threads(1)
    model = AutoModelForCausalLM.from_pretrained(embedded.path())
    assert isinstance(model, LlamaForCausalLM)
    tokenizer = AutoTokenizer.from_pretrained(embedded.path())
    samples = tasks.build(f"ruler/{task}", tokenizer, 512, 4, stream="shipped-checkpoint")
    scores = [tasks.score(answer(model, tokenizer, s), s)["strict"] for s in samples]
    assert sum(scores) / len(scores) > 0.7
