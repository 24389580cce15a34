"""Command lines that go all the way, and the files that they read: one of every kind."""

from __future__ import annotations

import json
import re
import runpy
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from unittest import mock

import torch
from tiny_checkpoint import save_tiny_checkpoint

from catekv.calibration.head_masks.cv_files import write_cv
from catekv.commands.cli import main
from catekv.methods.atskv.files import PredictorSet, save_predictors
from catekv.methods.atskv.relevance import PredictorConfig, untrained_predictor
from catekv.methods.head_mask import HeadMask, save_statistics
from catekv.models import embedded

ROOT = Path(__file__).resolve().parents[2]
#: sound command lines; ``{name}`` is a file of the playground, ``new`` a place to write to
CALLS = (
    "plan --model {model} --length 512 --batch-size 2 --ratio 0.4 --new-tokens 8 --output {new}",
    "plan --model {model} --length 512 --mask {mask} --device-memory 1GiB --bandwidth 100",
    "doctor --model {model} --mask {mask}",
    "mask show {mask} --ratio 0.5",
    "mask convert {mask} {new} --ratios 0.5",
    "heads curves {model} --texts {text} --length 96 --later 8 --samples 1 "
    "--selector snapkv:window=8 --quiet --output {new}",
    "heads compare a={mask} b={cvs} --ratio 0.5 --output {new}",
    "heads import {heads} --shape 2x2x4 --output {new}",
    "heads export {mask} --to tangram --group-size 2 --ratio 0.5 --output {new}",
    "mask random {new} --layers 2 --kv-heads 2 --ratio 0.5 --seed 3",
    "generate --model {model} --context {text} --question Who? --method snapkv:budget=16 "
    "--max-new-tokens 2 --temperature 1 --top-k 3 --top-p 0.9 --seed 1",
    "generate --model {model} --context {text} --question Who? --mask {mask} --max-new-tokens 2",
    "evaluate --model {model} --tasks ruler/vt --lengths 256 --samples 1 --methods full "
    "--max-new-tokens 2 --seed 1 --quiet --output {run} --overwrite",
    "evaluate --model {model} --tasks {samples} --samples 1 --methods {methods} --lengths 64 "
    "--max-new-tokens 2 --quiet --output {new}",
    "calibrate --model {model} --references ruler/vt --held-out-tasks ruler/niah_single_1 "
    "--held-out-samples 1 --length 512 --samples 1 --k 0.9 --alpha 0.5 "
    "--ratio 0.5 --window 8 --budget 64 --init-tokens 8 --recent-tokens 16 --no-picture "
    "--output {new}",
    "efficiency --model {model} --lengths 64 --methods full --new-tokens 2 --batch-sizes 1 "
    "--repeats 1 --output {new}",
    "report {run} --output {new} --trained-length 100",
    "report {results} --output {new}",
    "methods snapkv",
    "methods --json",
    "tasks ruler/vt",
    "tasks --build ruler/vt --length 256 --samples 1 --seed 2 --output {new}",
    "sweep {grid} --dry-run --output {new}",
    "cokv show {scores} --shape 2x2 --output {new}",
    "cokv tune --model {model} --scores {scores} --capacities 16 --alphas 1 --output {new}",
    "cokv score --model {model} --task ruler/vt --length 256 --samples 2 --slices 1 "
    "--max-draws 40 --check-every 1 --window 4 "
    "--quiet --output {new}",
    "atskv show {predictors}",
    "atskv train --model {model} --task {samples} --samples 2 --held-out 1 "
    "--epochs 1 "
    "--learning-rate 0.1 --output {new}",
    "select_headmask/static.py --input {cvs} --ratios 0.5 --num_samples 1 --seed 1 --output {new}",
    "data/ruler/prepare.py {model} --lengths 512 --num_samples 1 --tasks niah_single_1 --seed 1 "
    "--output {new} --family plain",
    "test/eval_acc.py --model_name {model} --head_classification_path {mask} --datalen 64 "
    "--method full --sparse_budget 16 --chunk_size 8 --dataset_name {samples} --output {new}",
    "test/eval_efficiency.py --model_name {model} --datalen 64 --method full --chunk_size 8 "
    "--batch_size 1 --output {new}",
    "check {model} --tasks ruler/vt --methods snapkv --length 256 --samples 1 --passages 1 "
    "--references 1 --seed 1 --quiet --output {new}",
    "fidelity --model {model} --text {text} --tasks ruler/vt --methods snapkv:budget=16 "
    "--lengths 256 --samples 1 --forced 4 --ratios 0.5 --quiet --output {new}",
    "fidelity --model {model} --text {text} --tasks none --methods snapkv --lengths 64 --samples 1 "
    "--forced 4 --quiet --output {fidelity}",
    "lm-eval run --tasks local --include_path {harness} --limit 1 "
    "--model_args pretrained={model},method=snapkv,budget=8,window=4 --output_path {new}",
    "bench/suite.py --scale tiny --stages smoke --plan --budget-seconds 20 --output {new}",
    "bench/cpu_decode.py --length 64 --ratio 0.5 --budget 32 --threads 1 --rounds 2 "
    "--batch-sizes 1 --output {new}",
    "bench/cpu_selection.py --length 64 --methods knorm --dtype float32 --threads 1 --rounds 1",
    "experiments/atskv/cost.py --model_name {model} --predictor {untrained} --context_sizes 64 "
    "--rounds 1 --output {new}",
    "experiments/atskv/run_experiment.py --model_name {model} --context_sizes 256 --methods full "
    "--benchmarks synthetic --examples 1 --max_new_tokens 2 --no_plots --output_dir {new}",
    "experiments/cokv/split.py --model {model} --tasks ruler/vt --length 256 --samples 4 "
    "--share 0.5 --seed 1 --output {new}",
    "experiments/cokv/score.py --model {model} --tasks ruler/vt --split {split} --max-draws 40 "
    "--check-every 1 --output {new}",
    "experiments/cokv/importance.py --model {model} --tasks ruler/vt --scores {task_scores} "
    "--output {new}",
    "experiments/cokv/longbench.py --model {model} --tasks ruler/vt --scores {task_scores} "
    "--split {split} --methods snapkv --capacities 16 --alphas 1 --limit 1 "
    "--head-scores {heads} --quiet --output {new}",
    "experiments/cokv/masking.py --model {model} --tasks ruler/vt --scores {task_scores} "
    "--split {split} --counts 1 --random-draws 1 --limit 1 --quiet --output {new}",
    "experiments/cokv/latency.py --model {model} --scores {scores} --capacities 16 --alpha 1 "
    "--outputs 2 --contexts 64 --prompt 64 --rounds 1 --output {new}",
    "experiments/cokv/needle.py --model {model} --scored 256 --lengths 256 --depths 2 "
    "--capacities 16 --alphas 1 --methods snapkv --max-draws 40 "
    "--head-scores {heads} --output {new}",
    "experiments/cokv/benchmark_coalitions.py --model {model} --tasks ruler/vt --length 256 "
    "--coalitions 2 --rounds 1 --output {new}",
    "experiments/embedded/evaluate.py --model {trained} --lengths 256 --samples 1 --tasks vt",
    "experiments/simcalkv/llama_eval.py --model_name {model} --dataset xsum --source built-in "
    "--split test[:1] --max_input_tokens 128 --max_new_tokens 2 --compress_ratio 0.4 "
    "--output_dir {new}",
    "experiments/simcalkv/sweep.py --model_name {model} --dataset xsum --source built-in "
    "--split test[:1] --max_input_tokens 128 --max_new_tokens 2 --compress_ratio 0.4 --no_plots "
    "--output_dir {new}",
    "experiments/simcalkv/analyse.py attention --model_name {model} --dataset xsum "
    "--source built-in --split test[:1] --max_input_tokens 128 --layer 0 --head 0 --no_plots "
    "--output_dir {new}",
)


#: commands with actions, each of which has options of its own
NESTED = ("mask", "heads", "cokv", "atskv")
#: files of the user in a run folder, with names close to the toolkit's own
FOREIGN = ("summary.docx", "samples_train.jsonl", "thesis.partial")


def _write_harness_task(folder: Path) -> None:
    """A task of lm-evaluation-harness with rows of its own."""
    rows, task = folder / "rows.jsonl", folder / "local.yaml"
    folder.mkdir()
    rows.write_text(json.dumps({"context": "the old farmer found a horse", "target": "."}) + "\n")
    content = {
        "task": "local",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(rows)}},
        "test_split": "test",
        "output_type": "generate_until",
        "generation_kwargs": {"max_gen_toks": 2},
        "doc_to_text": "{{context}}",
        "doc_to_target": "{{target}}",
        "metric_list": [{"metric": "exact_match"}],
    }
    task.write_text(json.dumps(content))


def run_words(words: Sequence[str]) -> int:
    """Run a command line in this process; return its exit code."""
    first, *rest = words
    try:
        if not first.endswith(".py"):
            return main(words)
        with mock.patch.object(sys, "argv", [first, *rest]):
            runpy.run_path(str(ROOT / first), run_name="__main__")
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else 1
    return 0


def filled(template: str, files: Mapping[str, Path]) -> list[str]:
    """The words of a command line of ``CALLS``."""
    return [re.sub(r"{(\w+)}", lambda name: str(files[name[1]]), word) for word in template.split()]


def make_files(folder: Path) -> dict[str, Path]:
    """Sound files, made by the toolkit itself."""
    files = {
        "model": save_tiny_checkpoint(folder / "model"),
        "text": folder / "context.txt",
        "methods": folder / "methods.json",
        "grid": folder / "grid.yaml",
        "mask": folder / "mask",
        "cvs": folder / "cvs",
        "run": folder / "run",
        "results": folder / "results.json",
        "scores": folder / "scores" / "scores.npz",
        "predictors": folder / "predictors",
        "untrained": folder / "untrained",
        "fidelity": folder / "fidelity",
        "harness": folder / "harness",
        "split": folder / "split.json",
        "heads": folder / "heads.json",
        "task_scores": folder / "task_scores",
        "trained": folder / "trained",
    }
    files["text"].write_text("The key of room seven is blue. " * 48)
    files["methods"].write_text(json.dumps(["full", "snapkv:budget=16"]))
    grid = {"models": [str(files["model"])], "methods": ["full"], "tasks": ["ruler/vt"]}
    grid["lengths"] = [256]
    files["grid"].write_text(json.dumps(grid))
    files["results"].write_text(
        json.dumps([{"context_length": 64, "depth_percent": 50, "score": 1}])
    )
    torch.manual_seed(0)
    mask = HeadMask(torch.tensor([[True, False], [False, True]]))
    mask.save(files["mask"])
    save_statistics(files["mask"], torch.rand(3, 2, 2))
    files["cvs"].mkdir()
    write_cv(files["cvs"] / "a.csv", torch.rand(2, 2))
    shutil.copytree(embedded.path() / "atskv", files["predictors"])
    layers = tuple(untrained_predictor(PredictorConfig(32, 4), 0, layer) for layer in range(2))
    save_predictors(files["untrained"], PredictorSet(layers))
    _write_harness_task(files["harness"])
    on_model = f"--model {files['model']}"
    for words in (
        f"evaluate {on_model} --samples 2 --tasks ruler/vt --lengths 256 --methods full --quiet "
        f"--output {files['run']}",
        f"tasks --build ruler/vt {on_model} --samples 2 --length 256 --output {folder / 'rows'}",
        f"cokv score {on_model} --samples 2 --task ruler/vt --length 256 --slices 1 --max-draws 40 "
        f"--check-every 1 --window 4 --quiet --output {files['scores'].parent}",
        f"experiments/cokv/split.py {on_model} --samples 4 --tasks ruler/vt --length 256 "
        f"--output {files['split']}",
        f"experiments/cokv/score.py {on_model} --tasks ruler/vt --max-draws 40 "
        f"--check-every 1 --split {files['split']} --output {files['task_scores']}",
    ):
        assert run_words(words.split()) == 0
    (rows,) = (folder / "rows").rglob("validation.jsonl")
    files["samples"] = rows
    heads = {f"{layer}-{head}": [layer + head] for layer in range(2) for head in range(4)}
    files["heads"].write_text(json.dumps(heads))
    shutil.copytree(files["model"], files["trained"])
    for name in ("training.json", "evaluation.json"):
        shutil.copy(embedded.path() / name, files["trained"])
    for folder in ("run", "fidelity"):
        for name in FOREIGN:
            files[folder].mkdir(exist_ok=True)
            (files[folder] / name).write_text("of the user")
    return files
