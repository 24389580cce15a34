"""The data sets of SimCalKV's comparison: which task each is, and how its answers are scored."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from catekv import tasks
from catekv.errors import UserError
from catekv.evaluation.options import MOST_SAMPLES
from catekv.tasks.building import find_wording
from catekv.tasks.core.prompt import encode
from catekv.tasks.rows.sources import DataOptions
from experiments.simcalkv.choices import EncodedChoices, choice_rows, encode_choices
from experiments.simcalkv.choices import questions as choice_questions
from experiments.simcalkv.split import Split

if TYPE_CHECKING:
    from catekv.tasks.core.sample import Sample

#: Rows asked for where a split names no end. No data set of the comparison has as many.
ALL_ROWS = 1_000_000
#: What :mod:`catekv.tasks` loads from the hub, except for multiple choice.
HUB_SPLIT = "test"


@dataclass(frozen=True)
class Dataset:
    """A data set.

    Attributes:
        task: name in :mod:`catekv.tasks`; None: multiple choice.
        metric: ``rouge``, ``f1``, ``accuracy`` or ``bleu``.
        input_tokens, new_tokens: of the published runs; ``new_tokens`` None: what the task allows.
    """

    task: str | None
    metric: str
    input_tokens: int = 4096
    new_tokens: int | None = None


DATASETS = {
    "xsum": Dataset("summarization/xsum", "rouge", 512, 64),
    "cnn_dailymail": Dataset("summarization/cnn_dailymail", "rouge", 1024, 64),
    "gov_report": Dataset("longbench/gov_report", "rouge", 4096, 512),
    "2wikimqa": Dataset("longbench/2wikimqa", "f1"),
    "narrativeqa": Dataset("longbench/narrativeqa", "f1"),
    "hotpotqa": Dataset("longbench/hotpotqa", "f1"),
    "multifieldqa_zh": Dataset("longbench/multifieldqa_zh", "f1"),
    "lcc": Dataset("longbench/lcc", "bleu"),
    "repobench-p": Dataset("longbench/repobench-p", "bleu"),
    "trec": Dataset("longbench/trec", "accuracy"),
    "piqa": Dataset(None, "accuracy"),
    "openbookqa": Dataset(None, "accuracy"),
    "winogrande": Dataset(None, "accuracy"),
}


def find(name: str) -> Dataset:
    """A data set by name; ``UserError`` lists what exists."""
    if name not in DATASETS:
        raise UserError(f"unknown dataset {name!r}; available: {', '.join(DATASETS)}")
    return DATASETS[name]


@dataclass(frozen=True)
class Example:
    """One row, ready to be read.

    Attributes:
        context_ids: the whole prompt; of a choice all but its last token.
        references: right answers.
        choices: names of the choices and their token ids; () and None where text is generated.
        classes: names of all classes, where scoring needs them.
    """

    identifier: str
    context_ids: list[int]
    references: tuple[str, ...]
    max_new_tokens: int
    stop: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()
    choices: tuple[str, ...] = ()
    encoded: EncodedChoices | None = field(default=None, repr=False)
    data: str = ""


@dataclass(frozen=True)
class Reading:
    """How rows become prompts.

    Attributes:
        input_tokens: tokens of a prompt at most, longer ones are cut by the task's rule; None: as
            published. new_tokens: tokens of an answer; None: as published.
        window: tokens that the model can read; None: any number.
        path, source: where the rows are (:class:`catekv.tasks.rows.sources.DataOptions`).
    """

    input_tokens: int | None = None
    new_tokens: int | None = None
    window: int | None = None
    path: str | None = None
    source: str = "auto"
    seed: int = 42
    chat_template: str = "auto"


def load(name: str, split: Split, tokenizer: Any, reading: Reading) -> list[Example]:
    """The wanted rows of a data set.

    Raises:
        UserError: unknown data set; rows that are missing, empty or not as they should be; a prompt
            and an answer that exceed the model's window.
    """
    dataset = find(name)
    for option, value in (("input", reading.input_tokens), ("new", reading.new_tokens)):
        if value is not None and value < 1:
            raise UserError(f"--max_{option}_tokens {value} must be at least 1")
    wanted = split.least_rows
    if wanted is None and reading.source == "built-in":
        raise UserError(f"built-in rows of {name} have no end; say how many, like test[:8]")
    if wanted is not None and wanted > MOST_SAMPLES and reading.source == "built-in":
        raise UserError(
            f"split {split} asks for {wanted} built-in rows of {name}; at most {MOST_SAMPLES} are "
            "generated"
        )
    if dataset.task is None:
        return _choices(name, split, tokenizer, reading)
    options: dict[str, Any] = {"path": reading.path, "source": reading.source}
    samples = tasks.build(
        dataset.task,
        tokenizer,
        _length(name, dataset, reading),
        ALL_ROWS if wanted is None else wanted,
        reading.seed,
        chat_template=reading.chat_template,
        max_answer_tokens=_new_tokens(dataset, reading),
        **options,
    )
    found = [_example(sample, tokenizer) for sample in split.take(samples, name)]
    if split.name != HUB_SPLIT and found[0].data.startswith("hub:"):
        raise UserError(
            f"from the hub {name} is loaded as its split {HUB_SPLIT}, not {split.name}; download "
            "the rows and name them with --data_path"
        )
    return found


def _new_tokens(dataset: Dataset, reading: Reading) -> int:
    if reading.new_tokens is not None:
        return reading.new_tokens
    if dataset.new_tokens is not None:
        return dataset.new_tokens
    return tasks.max_new_tokens(str(dataset.task))


def _length(name: str, dataset: Dataset, reading: Reading) -> int:
    """Tokens of prompt and answer; published prompts are shortened to what the model can read."""
    answer = _new_tokens(dataset, reading)
    window = reading.window
    if reading.input_tokens is None:
        length = dataset.input_tokens + answer
        return length if window is None else min(length, window)
    length = reading.input_tokens + answer
    if window is not None and length > window:
        raise UserError(
            f"{reading.input_tokens} input and {answer} new tokens exceed the model's window of "
            f"{window}; lower --max_input_tokens"
        )
    return length


def _example(sample: Sample, tokenizer: Any) -> Example:
    return Example(
        str(sample.metadata.get("id", sample.index)),
        # in the template that it was fitted with
        encode(sample, tokenizer).ids,
        sample.outputs,
        sample.max_new_tokens,
        sample.stop,
        tuple(sample.scoring.get("all_classes") or ()),
        data=str(sample.metadata.get("data", "")),
    )


def _choices(name: str, split: Split, tokenizer: Any, reading: Reading) -> list[Example]:
    options = DataOptions(path=reading.path, source=reading.source)
    wording = find_wording(None, tokenizer).name
    rows = choice_rows(
        name, split.name, options, count=split.least_rows or 0, seed=reading.seed, wording=wording
    )
    found = []
    for question in split.take(choice_questions(name, rows), name):
        encoded = encode_choices(question, tokenizer)
        longest = len(encoded.context) + max(map(len, encoded.continuations))
        limit = min(reading.window or longest, reading.input_tokens or longest)
        if longest > limit:
            raise UserError(
                f"question {question.identifier} of {name} has {longest} tokens, {limit} are "
                "allowed; raise --max_input_tokens or use a model with a longer window"
            )
        found.append(
            Example(
                question.identifier,
                encoded.context,
                (question.options[question.correct],),
                max(encoded.rated),
                choices=question.options,
                encoded=encoded,
                data=rows.data,
            )
        )
    return found


def fingerprint(examples: Sequence[Example]) -> str:
    """16 digits that say which prompts these are."""
    digest = hashlib.sha256()
    for example in examples:
        digest.update(repr((example.context_ids, example.references)).encode())
    return digest.hexdigest()[:16]
