"""Command lines of a careless user: sound ones in which words and files are damaged by chance."""

from __future__ import annotations

import json
import os
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from sound_calls import CALLS, NESTED, filled, make_files

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
        self.files = make_files(folder)
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
        return Call(tuple(filled(template, {**self.files, "new": new})), "nothing")

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


def remaining(folder: Path, apart: Sequence[Path]) -> dict[Path, bytes]:
    """Contents of all files of a folder that are not in ``apart``."""
    return {
        file: file.read_bytes()
        for file in sorted(folder.rglob("*"))
        if file.is_file() and not any(file.is_relative_to(place) for place in apart)
    }
