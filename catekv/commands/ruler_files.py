"""Write RULER files for one tokenizer in the folder layout of the CateKV release."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from catekv.commands.cli import Parser, run_safely
from catekv.commands.numbers import whole
from catekv.errors import UserError
from catekv.files import check_name, read_text
from catekv.models.embedded import clone
from catekv.models.source import model_source, short_name
from catekv.options import MOST_SAMPLES, MOST_TOKENS
from catekv.tasks.building import generate
from catekv.tasks.core.prompt import TEMPLATES, prompt_format, template_name
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
    prompt_format(tokenizer, chat_template)
    words = list_name(words_path) if words_path else None
    paths: list[Path] = []
    total = len(names) * len(lengths) * num_samples
    with tqdm(total=total, unit="sample", disable=not progress, file=sys.stderr) as bar:
        for length in lengths:
            for name in names:
                path = sample_path(output, family, length, name)
                paths.append(path)
                chosen = (options or {}).get(name, {})
                recipe = {
                    "seed": seed,
                    "options": json.loads(json.dumps(chosen)),
                    "tokenizer_hash": tokenizer_hash(tokenizer),
                    "chat_template": template_name(chat_template),
                    "words": words,
                }
                bar.set_description(f"{name} {length}")
                if not overwrite and existing(path, num_samples, recipe):
                    bar.update(num_samples)
                    continue

                def samples(name: str = name, length: int = length, chosen: Any = chosen) -> Any:
                    made = generate(
                        name,
                        tokenizer,
                        length,
                        num_samples,
                        seed,
                        chat_template=chat_template,
                        words_path=words_path,
                        **chosen,
                    )
                    return _counted(made, bar)

                write(path, samples())
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


def parser() -> argparse.ArgumentParser:
    """The command line of ``data/ruler/prepare.py``."""
    made = Parser(
        prog="data/ruler/prepare.py",
        description="Build RULER JSONL files for the tokenizer of a model.",
    )
    made.add_argument(
        "model", help="folder, .gguf file or hub name whose tokenizer counts the tokens"
    )
    made.add_argument(
        "template",
        nargs="?",
        default=argparse.SUPPRESS,
        help=f"chat template: auto (the tokenizer's own; default) or {', '.join(TEMPLATES)}",
    )
    made.add_argument(
        "--chat-template",
        dest="template",
        default="auto",
        metavar="TEMPLATE",
        help="the same, named as in catekv evaluate",
    )
    made.add_argument(
        "--lengths", type=whole(1, MOST_TOKENS), nargs="+", default=list(LENGTHS), metavar="N"
    )
    made.add_argument(
        "--num_samples",
        type=whole(1, MOST_SAMPLES),
        default=NUM_SAMPLES,
        help="per task and length (default 96)",
    )
    made.add_argument(
        "--tasks", nargs="+", default=list(PUBLISHED), help="default: the 12 published tasks"
    )
    made.add_argument("--seed", type=int, default=42)
    made.add_argument(
        "--output",
        type=Path,
        default=(clone() or Path()) / "data" / "ruler" / "data",
        help="root of <family>/<length>/<task>/validation.jsonl (default data/ruler/data)",
    )
    made.add_argument(
        "--family", help="name of the folder below the root (default: template, or model name)"
    )
    made.add_argument("--overwrite", action="store_true", help="replace files made differently")
    made.add_argument("--essay_path", help="prose for the essay tasks: file, folder or JSON")
    made.add_argument("--squad_path", help="SQuAD v2 JSON for qa_1")
    made.add_argument("--hotpotqa_path", help="HotpotQA distractor JSON for qa_2")
    made.add_argument(
        "--words_path", help="words for keys and common words: file or folder, one word a line"
    )
    made.add_argument(
        "--no_answer_prefix",
        action="store_true",
        help="end with the question, for chat interfaces that cannot continue a begun answer",
    )
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns 0, or 2 after one line on stderr for wrong input."""
    given = parser().parse_args(arguments)
    return run_safely(lambda: _prepare(given))


def _prepare(given: argparse.Namespace) -> int:
    tasks = [name for text in given.tasks for name in text.split(",") if name]
    if not tasks:
        raise UserError("--tasks names no task; leave it out for the 12 published ones")
    options = task_options(
        tasks,
        given.essay_path,
        given.squad_path,
        given.hotpotqa_path,
        begin_answer=not given.no_answer_prefix,
    )
    family = given.family or (
        short_name(given.model) if given.template == "auto" else given.template
    )
    paths = prepare(
        load_tokenizer(given.model),
        given.output,
        family,
        chat_template=given.template,
        tasks=tasks,
        lengths=given.lengths,
        num_samples=given.num_samples,
        seed=given.seed,
        overwrite=given.overwrite,
        options=options,
        words_path=given.words_path,
    )
    print(f"{len(paths)} files under {given.output / family}")
    return 0
