"""What a run is asked for: every option of an evaluation, declared once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from catekv.errors import UserError
from catekv.evaluation.options import COUNT, MOST_SAMPLES, option
from catekv.models.source import short_name

#: The fields that say which model runs, and how.
MODEL = ("model", "dtype", "device", "attention")
#: Of the fields of catekv, the tokens that it always keeps, and those that look.
EDGES = ("init_tokens", "recent_tokens", "window")
#: The fields of catekv.
CATEKV = ("ratio", "retention", "budget", *EDGES)
#: The fields that say which methods run, with which masks.
METHODS = ("methods", "plugins", "masks", *CATEKV)
#: What ``catekv check`` measures where nothing else is asked for.
CHECKED_METHODS = ("full", "catekv", "snapkv", "adakv", "streaming_llm")
CHECKED_TASKS = ("ruler/niah_single_2", "ruler/niah_multikey_1")
#: Words of ``--question`` and the question modes that they stand for; papers' words are read too.
QUESTIONS = {
    "after": ("agnostic",),
    "inside": ("aware",),
    "both": ("agnostic", "aware"),
    "agnostic": ("agnostic",),
    "aware": ("aware",),
}


@dataclass(frozen=True)
class Request:
    """What a user asks for; None means: the default of the model at hand.

    Fields with a help text are the flags of ``catekv evaluate``.

    Attributes:
        tasks, lengths, samples, questions, seed, chat_template, max_new_tokens, answers,
            temperature, top_p, task_options, prefill, chunk_size, joint_decode, batch_size,
            sanity: see :class:`RunSettings`.
        methods: as :func:`catekv.evaluation.columns.specification.parse_method` reads them.
        plugins: as :func:`catekv.evaluation.plugins.load_plugins` takes them; whoever runs the
            request loads them first.
        masks: as :func:`catekv.evaluation.columns.specification.parse_masks` reads them.
        ratio, retention, budget, init_tokens, recent_tokens, window: of ``catekv``.
        options: more options per method name.
        made_with: calibration options (k, alpha) that masks must agree with where they say.
        dtype, device, attention: as :meth:`CateKVModel.from_pretrained` takes them.
    """

    model: str | None = option(
        None, "local folder, .gguf file or hub name (default: the embedded model)", metavar="MODEL"
    )
    dtype: str = option("auto", "auto, float32, bfloat16 or float16 (default: auto)")
    device: str = option("auto", "auto, cpu, cuda or cuda:N")
    attention: str = option("auto", "attention of the prefill: auto, sdpa, eager, ...")
    suite: str = option(
        "",
        "a named selection of tasks: mini (every family, small), paper, or a family, e.g. ruler or "
        "longbench",
        metavar="NAME",
    )
    tasks: tuple[str, ...] = option((), "task names or JSONL files", metavar="TASK")
    lengths: tuple[int, ...] = option((), "prompt lengths in tokens", metavar="TOKENS")
    samples: int | None = option(None, "samples per task and length", least=1, most=MOST_SAMPLES)
    methods: tuple[str, ...] = option(
        ("full", "catekv"),
        "[LABEL=]NAME[:option=value,...] (default: {default}), or a JSON or YAML file with a list "
        "of methods; `catekv methods` lists names and options",
        metavar="METHOD",
        verbatim=True,
    )
    plugins: tuple[str, ...] = option(
        (),
        "a Python file with methods of your own, or a folder with family.py (a benchmark of your "
        "own); may be repeated",
        flag="--plugin",
        repeat=True,
        metavar="FILE",
    )
    masks: tuple[str, ...] = option(
        (),
        "head mask: folder, CSV, DuoAttention TSV, random:SEED or reversed; may be repeated, "
        "catekv then appears once per mask",
        flag="--mask",
        repeat=True,
        metavar="[NAME=]SOURCE",
    )
    ratio: float | None = option(None, "r, share of adaptive heads (default: 0.4)")
    retention: float | None = option(None, "eta, share of chunks adaptive heads keep (default: 1)")
    budget: int | None = option(None, "b, tokens a consistent head keeps (default: 2048)")
    init_tokens: int | None = option(
        None, "first tokens always kept (default: those of the mask, or b/32)", least=0
    )
    recent_tokens: str | None = option(
        None,
        "last tokens always kept, or b/128 (default: those of the mask; 256 at b 2048, else b/128)",
        metavar="TOKENS",
    )
    window: int | None = option(
        None, "L, last prompt queries observed (default: as the mask was made, or 64)", least=1
    )
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    preset: str = option(
        "published",
        "options of all methods as published (default), or as recommended: exact budgets and "
        "better calibration",
        choices=("published", "recommended"),
    )
    made_with: Mapping[str, float] = field(default_factory=dict)
    questions: tuple[str, ...] = option(
        (),
        "question asked after compression (default), inside the compressed prompt (default with "
        "--paper), or both; agnostic and aware are the papers' words for after and inside",
        flag="--question",
        choices=QUESTIONS,
    )
    seed: int = option(42, "seed of the samples (default: {default})")
    chat_template: str = option(
        "auto", "auto (the tokenizer's own, if it has one), none, or a name or text with {prompt}"
    )
    max_new_tokens: int | None = option(None, "instead of the tasks' own allowance", **COUNT)
    answers: int = option(
        1,
        "answers drawn to every question, their scores averaged (pass@1); needs --temperature "
        "(default: {default})",
        metavar="N",
        **COUNT,
    )
    temperature: float = option(0.0, "of drawn answers; 0: the likeliest token (default)", least=0)
    top_p: float = option(
        1.0,
        "drawn from the likeliest tokens that reach this probability together (default: {default})",
        metavar="SHARE",
    )
    task_options: Mapping[str, Any] = option(
        {},
        "option of the sample builders, e.g. essay_path=FILE or num_hops=2, for the tasks that "
        "have it; may be repeated",
        flag="--task-option",
        metavar="NAME=VALUE",
    )
    prefill: str = option(
        "auto",
        "one prefill for all methods (shared), or one per method with least memory",
        choices=("auto", "shared", "separate"),
    )
    joint_decode: bool = option(
        False,
        "decode the methods of a sample as one batch, but for those that go on choosing while "
        "decoding: faster with many methods, without decode times of the batch",
    )
    batch_size: int = option(
        1,
        "samples of similar length measured at once (default: {default}); halved where memory "
        "lacks",
        metavar="N",
        **COUNT,
    )
    parallel: str = option(
        "data",
        "under torchrun: every process measures a part of the samples (data, default), or all "
        "share a model that is too large for one device (tensor)",
        choices=("data", "tensor"),
    )
    sanity: bool = option(
        False,
        "columns that test the tasks: the references themselves must score 100, an empty answer 0; "
        "other answers and the model without the context about 0",
    )
    max_errors: float = option(
        0.5,
        "give up when more than this share of the measurements failed (default: {default})",
        metavar="SHARE",
    )
    chunk_size: int = option(
        8192,
        "tokens per prefill chunk (default: {default})",
        flag="--prefill-chunk",
        also=("--chunk-size",),
        metavar="TOKENS",
        **COUNT,
    )
    paper: bool = option(
        False,
        "published settings for all that is not given: 12 RULER tasks, 96 samples, 131072 tokens, "
        "r 0.4, eta 1, b 2048, question inside the compressed prompt",
    )
    output: Path | None = option(None, "run directory (default: one under results/)")
    overwrite: bool = option(False, "delete the results in the run directory first")
    resume: bool = option(
        True, "go on where an earlier run of the same configuration stopped (default)"
    )

    @property
    def embedded(self) -> bool:
        """Whether this is the embedded model, named or not."""
        from catekv.models import embedded

        if self.model is None:
            return True
        try:
            return Path(self.model).resolve() == embedded.path().resolve()
        except UserError:
            return False

    @property
    def model_path(self) -> str:
        """Folder, file or hub name of the model."""
        if self.model is not None:
            return self.model
        from catekv.models import embedded

        return str(embedded.path())

    @property
    def model_name(self) -> str:
        """Short name of the model: that of its folder, repository or GGUF file."""
        return "embedded" if self.embedded else short_name(self.model_path)


def split_list(texts: Sequence[str]) -> tuple[str, ...]:
    """Values given with spaces, commas or both."""
    parts = tuple(part for text in texts for part in text.split(",") if part.strip())
    if texts and not parts:
        raise UserError(f"{' '.join(texts)!r} names nothing; give values or leave the option out")
    return parts
