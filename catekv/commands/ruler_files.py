"""Write RULER files for one tokenizer in the folder layout of the CateKV release."""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from catekv.commands.arguments import Building
from catekv.commands.cli import Parser, run_safely
from catekv.commands.schema import Group, add_options
from catekv.errors import UserError
from catekv.evaluation.options import REQUIRED, option, refuse_twice
from catekv.files import check_name, read_text
from catekv.models.embedded import clone
from catekv.models.source import model_source, short_name
from catekv.tasks.building import generate
from catekv.tasks.core.prompt import TEMPLATES, prompt_format
from catekv.tasks.core.sample import Sample
from catekv.tasks.core.tokenizers import tokenizer_hash
from catekv.tasks.drawing.words import list_name
from catekv.tasks.families.ruler.tasks import PUBLISHED
from catekv.tasks.files import sample_path, write
from catekv.tasks.registry import find

LENGTHS = (8192, 16384, 32768, 65536, 131072, 262144)
NUM_SAMPLES = 96


def load_tokenizer(model: str) -> Any:
    """The tokenizer of a model; ``UserError`` says why it cannot be had."""
    source = model_source(model)
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(source.place, **source.options)
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
        raise UserError(
            f"cannot load a tokenizer from {model!r}: {reason}; give a folder with a tokenizer or "
            "a model name that can be downloaded"
        ) from None


def existing(path: Path, count: int, recipe: dict[str, Any]) -> bool:
    """Whether ``path`` already holds ``count`` samples made by the same recipe.

    Raises:
        UserError: if it holds anything else.
    """
    if not path.exists():
        return False
    try:
        rows = [json.loads(line) for line in read_text(path).splitlines()]
        made_by = [{key: row["metadata"].get(key) for key in recipe} for row in rows]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        made_by = []
    if len(made_by) == count and all(found == recipe for found in made_by):
        return True
    raise UserError(
        f"{path} holds other samples (tokenizer, template, seed, options or number differ); use "
        "--overwrite or another --output"
    )


def prepare(
    tokenizer: Any,
    output: Path,
    family: str,
    *,
    chat_template: str = "auto",
    tasks: Sequence[str] = PUBLISHED,
    lengths: Sequence[int] = LENGTHS,
    num_samples: int = NUM_SAMPLES,
    seed: int = 42,
    overwrite: bool = False,
    progress: bool = True,
    options: dict[str, dict[str, Any]] | None = None,
    words_path: str | None = None,
) -> list[Path]:
    """Write ``output/<family>/<length>/<task>/validation.jsonl`` for all tasks and lengths.

    A file that the same call wrote before is left alone, so an interrupted run can be repeated.

    Args:
        options: options of single tasks by full task name.
        words_path: word list to draw keys and common words from (file or folder).

    Returns:
        The files, in the order of lengths and tasks.

    Raises:
        UserError: a family that leads out of ``output``, other samples in a file, or an unwritable
            place.
    """
    from tqdm import tqdm

    check_name("the family", family)
    names = [find(task).name for task in tasks]
    refuse_twice("the list of tasks", names)
    refuse_twice("the list of lengths", lengths)
    prompt_format(tokenizer, chat_template)
    words = list_name(words_path) if words_path else None
    read: dict[str, Any] = {"chat_template": chat_template, "words_path": words_path}
    paths: list[Path] = []
    total = len(names) * len(lengths) * num_samples
    with tqdm(total=total, unit="sample", disable=not progress, file=sys.stderr) as bar:
        for length, name in itertools.product(lengths, names):
            path = sample_path(output, family, length, name)
            paths.append(path)
            chosen = (options or {}).get(name, {})
            recipe = {
                "seed": seed,
                "options": json.loads(json.dumps(chosen)),
                "tokenizer_hash": tokenizer_hash(tokenizer),
                "chat_template": chat_template,
                "words": words,
            }
            bar.set_description(f"{name} {length}")
            if not overwrite and existing(path, num_samples, recipe):
                bar.update(num_samples)
                continue
            made = generate(name, tokenizer, length, num_samples, seed, **read, **chosen)
            write(path, _counted(made, bar))
    return paths


def _counted(samples: Iterator[Sample], bar: Any) -> Iterator[Sample]:
    for sample in samples:
        yield sample
        bar.update(1)


def task_options(
    names: Sequence[str],
    essays: str | None,
    squad: str | None,
    hotpotqa: str | None,
    begin_answer: bool = True,
) -> dict[str, dict[str, Any]]:
    """Options that make the tasks read the user's own files, and leave out the begun answer."""
    options: dict[str, dict[str, Any]] = {}
    for task in [find(name) for name in names]:
        own: dict[str, Any] = {}
        if essays and getattr(task.options, "haystack", "") == "essay":
            own["essay_path"] = essays
        elif squad and task.name == "ruler/qa_1":
            own["squad_path"] = squad
        elif hotpotqa and task.name == "ruler/qa_2":
            own["hotpotqa_path"] = hotpotqa
        if not begin_answer and "begin_answer" in task.option_names():
            own["begin_answer"] = False
        if own:
            options[task.name] = own
    return options


@dataclass(frozen=True)
class RulerFiles:
    """Which files ``data/ruler/prepare.py`` writes."""

    model: str = option(
        REQUIRED, "folder, .gguf file or hub name whose tokenizer counts the tokens",
        positional=True,
    )  # fmt: skip
    template: str = option(
        "auto",
        f"chat template: auto (the tokenizer's own; default) or {', '.join(TEMPLATES)}",
        positional=True,
    )
    lengths: tuple[int, ...] = option(LENGTHS, "tokens (default: {default})", metavar="N", least=1)
    tasks: tuple[str, ...] = option(PUBLISHED, "default: the 12 published tasks")
    family: str | None = option(
        None, "name of the folder below the root (default: template, or model name)"
    )
    essay_path: str | None = option(None, "prose for the essay tasks: file, folder or JSON")
    squad_path: str | None = option(None, "SQuAD v2 JSON for qa_1")
    hotpotqa_path: str | None = option(None, "HotpotQA distractor JSON for qa_2")
    words_path: str | None = option(
        None, "words for keys and common words: file or folder, one word a line"
    )
    no_answer_prefix: bool = option(
        False, "end with the question, for chat interfaces that cannot continue a begun answer"
    )


def groups() -> tuple[Group[RulerFiles], Group[Building]]:
    """Options of ``data/ruler/prepare.py``; the default place depends on where this runs."""
    building = Group(
        Building,
        ("samples", "seed", "output", "overwrite"),
        flags={"samples": "--num_samples"},
        defaults={
            "samples": NUM_SAMPLES,
            "output": (clone() or Path()) / "data" / "ruler" / "data",
        },
        helps={
            "samples": "per task and length (default {default})",
            "output": "root of <family>/<length>/<task>/validation.jsonl (default data/ruler/data)",
        },
        separator="_",
    )
    return Group(RulerFiles, separator="_"), building


def main(arguments: Sequence[str] | None = None) -> int:
    """``data/ruler/prepare.py``; returns 0, or 2 after one line on stderr for wrong input."""
    made = Parser(
        prog="data/ruler/prepare.py",
        description="Build RULER JSONL files for the tokenizer of a model.",
    )
    files, building = groups()
    add_options(made, (files, building))
    given = made.parse_args(arguments)
    return run_safely(lambda: _prepare(files.read(given), building.read(given)))


def _prepare(files: RulerFiles, building: Building) -> int:
    options = task_options(
        files.tasks,
        files.essay_path,
        files.squad_path,
        files.hotpotqa_path,
        begin_answer=not files.no_answer_prefix,
    )
    family = files.family or (
        short_name(files.model) if files.template == "auto" else files.template
    )
    paths = prepare(
        load_tokenizer(files.model),
        building.output,
        family,
        chat_template=files.template,
        tasks=files.tasks,
        lengths=files.lengths,
        num_samples=building.samples,
        seed=building.seed,
        overwrite=building.overwrite,
        options=options,
        words_path=files.words_path,
    )
    print(f"{len(paths)} files under {building.output / family}")
    return 0
