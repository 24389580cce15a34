"""Command lines of a careless user: sound ones in which words and files are damaged by chance."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tiny_checkpoint import save_tiny_checkpoint

from catekv.calibration.head_masks.cv_files import write_cv
from catekv.commands.cli import main
from catekv.methods.head_mask import HeadMask, save_statistics
from catekv.models import embedded

ODD_WORDS = (
    "",
    " ",
    "-1",
    "0",
    "nan",
    "inf",
    "1e-320",
    "1.5",
    "9" * 20,
    "9" * 5000,
    "1000000000",
    "0x10",
    "x" * 300,
    "half\udc80",
    "half\ud800",
    "../outside",
    "/dev/null",
    "--",
    "=",
    "catekv:head_mask=3",
    "snapkv:budget=" + "9" * 30,
    "random:" + "9" * 30,
    "{}",
    "\N{ARABIC-INDIC DIGIT THREE}",
)
ODD_VALUES = (None, -1, 0, 10**30, 1e400, "text", [], {}, [[]], True, 0.5)
#: sound command lines; ``{name}`` is a file of the playground, ``new`` a place to write to
CALLS = (
    "plan --model {model} --length 512 --batch-size 2 --ratio 0.4 --new-tokens 8 --output {new}",
    "plan --model {model} --length 512 --mask {mask} --device-memory 1GiB --bandwidth 100",
    "doctor --model {model} --mask {mask}",
    "mask show {mask} --ratio 0.5",
    "mask convert {mask} {new} --ratios 0.5",
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
    "atskv train --model {model} --task {samples} --lengths 256 --samples 2 --held-out 1 "
    "--epochs 1 "
    "--learning-rate 0.1 --output {new}",
    "static.py --input {cvs} --ratios 0.5 --num_samples 1 --seed 1 --output {new}",
    "prepare.py {model} --lengths 512 --num_samples 1 --tasks niah_single_1 --seed 1 "
    "--output {new} --family plain",
    "eval_acc.py --model_name {model} --head_classification_path {mask} --datalen 64 --method full "
    "--sparse_budget 16 --chunk_size 8 --dataset_name {samples} --output {new}",
    "eval_efficiency.py --model_name {model} --datalen 64 --method full --chunk_size 8 "
    "--batch_size 1 --output {new}",
)


#: commands with actions, each of which has options of its own
NESTED = ("mask", "cokv", "atskv")
#: files of the user in a run folder, with names close to the toolkit's own
FOREIGN = ("summary.docx", "samples_train.jsonl", "thesis.partial")


@dataclass(frozen=True)
class Call:
    """Words of a command line, and what was damaged first."""

    words: tuple[str, ...]
    damage: str

    @property
    def surely_wrong(self) -> bool:
        """Whether no reading of the words makes sense: one of them is empty."""
        return any(not word.strip() for word in self.words)


class Playground:
    """A folder with one sound file of every kind, and calls that read and damage them.

    ``options(command)`` gives the options that a command or a script knows.
    """

    def __init__(self, folder: Path, options: Callable[[str], Sequence[str]]) -> None:
        self.folder = folder
        self.files = _make_files(folder)
        self.options = options

    def sound(self) -> dict[Path, bytes]:
        """Contents of all files."""
        return {file: file.read_bytes() for file in self.folder.rglob("*") if file.is_file()}

    def restore(self, contents: dict[Path, bytes]) -> None:
        """Bring back what a damage changed."""
        for file, content in contents.items():
            if file.is_dir() and not file.is_symlink():
                file.rmdir()
            if not os.path.lexists(file) or file.is_symlink() or file.read_bytes() != content:
                file.unlink(missing_ok=True)
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(content)

    def call(self, draw: random.Random, new: Path) -> Call:
        """A sound command line that writes to ``new``, and one damage to it or to a file of it."""
        template = draw.choice(CALLS)
        names = [name for name in re.findall(r"{(\w+)}", template) if name != "new"]
        words = list(self.sound_call(template, new).words)
        kind = draw.choices(("file", "word", "option"), (2, 1, 1))[0]
        if kind == "file" and names:
            return Call(tuple(words), self._damage(draw, self.files[draw.choice(names)]))
        if kind == "option":
            known = self.options(" ".join(words[: 2 if words[0] in NESTED else 1]))
            added = [draw.choice(known), draw.choice(ODD_WORDS)]
            return Call((*words, *added), f"added {added[0]} {added[1][:40]!a}")
        values = [at for at, word in enumerate(words) if at > 0 and not word.startswith("--")]
        chosen = values if values and draw.random() < 0.8 else range(1, len(words))
        position = draw.choice(chosen)
        words[position] = draw.choice(ODD_WORDS)
        return Call(tuple(words), f"word {position} of {len(words)}")

    def sound_call(self, template: str, new: Path) -> Call:
        """One of ``CALLS`` as it is, which writes to ``new``."""
        files = {**self.files, "new": new}
        return Call(tuple(_filled(word, files) for word in template.split()), "nothing")

    def _damage(self, draw: random.Random, path: Path) -> str:
        file = (
            draw.choice(sorted(f for f in path.rglob("*") if f.is_file()))
            if (path.is_dir())
            else path
        )
        kinds = [name for name in DAMAGES if name != "value" or file.suffix == ".json"]
        if file.suffix == ".json":
            kinds += ["value"] * len(kinds)
        kind = draw.choice(kinds)
        return f"{kind} {file.name}: {DAMAGES[kind](draw, file)}"


def _filled(word: str, files: dict[str, Path]) -> str:
    return str(files[word[1:-1]]) if word[0] == "{" else word


def _torn(draw: random.Random, file: Path) -> None:
    data = file.read_bytes()
    file.write_bytes(data[: draw.randrange(len(data) + 1)])


def _flipped(draw: random.Random, file: Path) -> None:
    data = bytearray(file.read_bytes())
    for _ in range(3):
        data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    file.write_bytes(bytes(data))


def _huge_header(draw: random.Random, file: Path) -> None:
    file.write_bytes(b"\xff" * 7 + b"\x7f" + file.read_bytes()[8:])


def _deep(draw: random.Random, file: Path) -> None:
    file.write_text("[" * 50_000)


def _gone(draw: random.Random, file: Path) -> None:
    file.unlink()


def _folder(draw: random.Random, file: Path) -> None:
    file.unlink()
    file.mkdir()


def _device(draw: random.Random, file: Path) -> None:
    file.unlink()
    file.symlink_to("/dev/null")


def _other_kind(draw: random.Random, file: Path) -> None:
    np.savez(file.parent / "other.npz", values=np.array(["text"]))
    (file.parent / "other.npz").replace(file)


def _value(draw: random.Random, file: Path) -> str:
    """One value of a JSON file, at any depth, becomes another."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError:
        return "no JSON"
    place, path = content, ""
    while isinstance(place, dict | list) and place:
        key = draw.choice(list(place) if isinstance(place, dict) else range(len(place)))
        path += f"/{key}"
        inner = place[key]  # type: ignore[call-overload]
        if not isinstance(inner, dict | list) or not inner or draw.random() < 0.3:
            place[key] = draw.choice(ODD_VALUES)  # type: ignore[call-overload]
            path += f" = {place[key]!r}"  # type: ignore[call-overload]
            break
        place = inner
    file.write_text(json.dumps(content), encoding="utf-8")
    return path


DAMAGES: dict[str, Callable[[random.Random, Path], str | None]] = {
    "torn": _torn,
    "flipped": _flipped,
    "huge header": _huge_header,
    "deep": _deep,
    "gone": _gone,
    "folder": _folder,
    "device": _device,
    "other kind": _other_kind,
    "value": _value,
}


def _make_files(folder: Path) -> dict[str, Path]:
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
    }
    files["text"].write_text("The key of room seven is blue. " * 8)
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
    on_model = f"--model {files['model']} --samples 2"
    for words in (
        f"evaluate {on_model} --tasks ruler/vt --lengths 256 --methods full --quiet "
        f"--output {files['run']}",
        f"tasks --build ruler/vt {on_model} --length 256 --output {folder / 'rows'}",
        f"cokv score {on_model} --task ruler/vt --length 256 --slices 1 --max-draws 40 "
        f"--check-every 1 --window 4 --quiet --output {files['scores'].parent}",
    ):
        assert main(words.split()) == 0
    (rows,) = (folder / "rows").rglob("validation.jsonl")
    files["samples"] = rows
    for name in FOREIGN:
        (files["run"] / name).write_text("of the user")
    return files


def remaining(folder: Path, apart: Sequence[Path]) -> dict[Path, bytes]:
    """Contents of all files of a folder that are not in ``apart``."""
    return {
        file: file.read_bytes()
        for file in sorted(folder.rglob("*"))
        if file.is_file() and not any(file.is_relative_to(place) for place in apart)
    }
