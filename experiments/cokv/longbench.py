"""Prediction and evaluation: methods at equal memory on the test samples of several tasks.

For every task alpha is chosen on the validation samples; results are measured on the test samples.
Writes ``pred/NAME/TASK.jsonl``, ``result_NAME.json``, ``list_result_NAME.json`` and ``runs.md``;
``finished.json`` names the tasks whose results these hold, so that an interrupted run goes on after
them.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tqdm import tqdm

from catekv.calibration.cokv.comparison import COMPARED, compare_methods, compared_method
from catekv.calibration.cokv.files import ScoreFile
from catekv.calibration.cokv.split import find_split, refuse_overlap
from catekv.calibration.cokv.tuning import ALPHA_FILE, tune
from catekv.commands.arguments import PROGRESS
from catekv.commands.numbers import item_count
from catekv.commands.schema import add_options
from catekv.evaluation.columns.settings import stable_hash
from catekv.evaluation.records import environment
from catekv.evaluation.run.cells import sample_hash
from catekv.files import claim_folder, read_object, read_text, write_atomically
from catekv.tasks.core.sample import Sample
from experiments.cokv.predictions import (
    comparison_table,
    paired_table,
    read_results,
    scores_of,
    short_name,
    write_predictions,
    write_results,
)
from experiments.cokv.shared import (
    TUNING,
    add_probe_options,
    head_scores,
    load_scores,
    main,
    open_model,
    parser,
)

#: The tasks that are measured; its file is the sign that a folder is of these runs.
FINISHED = "finished.json"


def compare(arguments: argparse.Namespace) -> int:
    tuning = TUNING.values(arguments)
    capacities, alphas = tuning["capacities"], tuning["alphas"]
    model = open_model(arguments)
    claim_folder(arguments.output, ("runs.md", "manifest.json"), FINISHED)
    probed = head_scores(arguments, model)
    names = ["full"]
    names += [f"{method}_{capacity}" for capacity in capacities for method in arguments.methods]
    shown: dict[str, dict[str, list[float]]] = {name: {} for name in names}
    chosen: dict[str, dict[int, int]] = {}
    finished = _Finished(arguments.output / FINISHED)
    for task in arguments.tasks:
        short = short_name(task)
        file = load_scores(arguments.scores, task, model)
        split = find_split(arguments.split, task)
        validation = split.build("validation", model.tokenizer)
        test = split.build("test", model.tokenizer)[: arguments.limit]
        refuse_overlap(file.recipe["sample_hashes"], test)
        batch = arguments.batch_size
        identity = _identity(arguments, file, probed, [*validation, *test])
        if all(_holds(arguments.output, name, short, len(test)) for name in names):
            alpha = finished.alpha(short, identity)
            if alpha is not None:
                print(f"{task}: results are there")
                chosen[short] = alpha
                continue
        tuned = tune(model, file, validation, capacities, alphas, batch_size=batch)
        tuned.write(arguments.scores / short / ALPHA_FILE, task=task)
        chosen[short] = {capacity: tuned.best(capacity) for capacity in capacities}
        methods: dict[str, Any] = {"full": (compared_method("full", 0), None)}
        for capacity in capacities:
            options: dict[str, dict[str, Any]] = {
                "headkv": {"scores": str(probed)},
                "cokv": {
                    "scores": file.estimates().tolist(),
                    "alpha": chosen[short][capacity],
                },
            }
            for name in arguments.methods:
                method = compared_method(name, capacity, **options.get(name, {}))
                methods[f"{name}_{capacity}"] = method, capacity
        with tqdm(total=len(test), desc=short, disable=arguments.quiet) as bar:
            answers = compare_methods(
                model,
                test,
                methods,
                arguments.question,
                batch_size=batch,
                advance=bar.update,
            )
        for name, found in answers.items():
            write_predictions(arguments.output, name, task, test, found)
            write_results(arguments.output, name, {task: scores_of(found)})
        finished.add(short, identity, chosen[short])
    for name in names:
        shown[name] = read_results(arguments.output, name)
    _write_runs(arguments, shown, names, chosen)
    return 0


def _identity(
    arguments: argparse.Namespace, file: ScoreFile, probed: Path, samples: Sequence[Sample]
) -> str:
    """What decides the results of a task: they are measured anew where any of it changed."""
    return stable_hash(
        [
            file.recipe["config_hash"],
            file.estimates().tolist(),
            read_text(probed),
            [sample_hash(sample) for sample in samples],
            arguments.dtype,
            arguments.question,
            arguments.methods,
            arguments.capacities,
            arguments.alphas,
            environment.versions(),
        ]
    )


def _holds(folder: Path, name: str, task: str, samples: int) -> bool:
    """Whether the results of a run are there for a task, all of them."""
    if not (folder / f"list_result_{name}.json").exists():
        return False
    return len(read_results(folder, name).get(task, ())) == samples


class _Finished:
    """Tasks whose results are written, with what decided them and the alphas that were chosen."""

    def __init__(self, path: Path):
        self.path = path
        self.held: dict[str, Any] = {}
        if path.exists():
            self.held = read_object(path, "remove it")

    def alpha(self, task: str, identity: str) -> dict[int, int] | None:
        """Alpha by capacity of a finished task; None if it is not, or was another measurement."""
        held = self.held.get(task)
        if not isinstance(held, dict) or held.get("identity") != identity:
            return None
        return {int(capacity): alpha for capacity, alpha in held["alpha"].items()}

    def add(self, task: str, identity: str, alpha: dict[int, int]) -> None:
        self.held[task] = {"identity": identity, "alpha": alpha}
        write_atomically(self.path, json.dumps(self.held, indent=1) + "\n")


def _write_runs(
    arguments: argparse.Namespace,
    shown: dict[str, dict[str, list[float]]],
    names: list[str],
    chosen: dict[str, dict[int, int]],
) -> None:
    pairs = [
        (f"cokv_{capacity}", f"{method}_{capacity}")
        for capacity in TUNING.values(arguments)["capacities"]
        for method in arguments.methods
        if method != "cokv" and "cokv" in arguments.methods
    ]
    lines = ["# All runs", "", comparison_table(shown, names), ""]
    lines += ["Differences over the same samples:", "", paired_table(shown, pairs), ""]
    lines += ["Alpha by task and capacity:", ""]
    lines += [f"- {task}: {json.dumps(by_capacity)}" for task, by_capacity in chosen.items()]
    write_atomically(arguments.output / "runs.md", "\n".join(lines) + "\n")
    manifest = {
        "model": arguments.model or "embedded",
        "question": arguments.question,
        "seed": arguments.seed,
        "capacities": arguments.capacities,
        "methods": arguments.methods,
        "tasks": arguments.tasks,
        "alpha": chosen,
        "versions": environment.versions(),
        "git_commit": environment.git_commit(),
    }
    write_atomically(arguments.output / "manifest.json", json.dumps(manifest, indent=1) + "\n")
    print("\n".join(lines[2:3]))
    print(arguments.output / "runs.md")


if __name__ == "__main__":
    options = parser(__doc__)
    options.add_argument("--scores", type=Path, required=True, help="folder of run_importance.sh")
    options.add_argument("--split", type=Path, required=True)
    add_options(options, (TUNING, PROGRESS))
    options.add_argument("--methods", nargs="+", default=list(COMPARED), metavar="METHOD")
    options.add_argument("--limit", type=item_count, help="test samples per task (default: all)")
    add_probe_options(options)
    main(options, compare)
