"""What a run measures, and the hashes that decide whether records may stand in one table."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from catekv.errors import UserError
from catekv.methods import Method, ModelShape, create
from catekv.methods.equal_memory import with_equal_memory

if TYPE_CHECKING:
    from catekv.decode.sampling import Sampling

QUESTION_MODES = ("agnostic", "aware")
PREFILL_MODES = ("auto", "shared", "separate")

#: RULER as the paper's table 1 runs it: 12 tasks (no common words), 96 samples, 128K tokens
PAPER_TASKS = (
    "ruler/niah_single_1",
    "ruler/niah_single_2",
    "ruler/niah_single_3",
    "ruler/niah_multikey_1",
    "ruler/niah_multikey_2",
    "ruler/niah_multikey_3",
    "ruler/niah_multivalue",
    "ruler/niah_multiquery",
    "ruler/vt",
    "ruler/fwe",
    "ruler/qa_1",
    "ruler/qa_2",
)
PAPER_LENGTH = 131072
PAPER_SAMPLES = 96
PAPER_RATIO = 0.4
PAPER_RETENTION = 1.0
PAPER_BUDGET = 2048


def stable_hash(value: Any) -> str:
    """First 16 hex digits of the SHA-256 of ``value`` as canonical JSON.

    Raises:
        TypeError: if ``value`` holds something JSON cannot express.
    """
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class MethodSpec:
    """One column of the results table.

    Attributes:
        label: name of the column, unique within a run.
        name: registered name of the method.
        options: its options, as given to :func:`catekv.methods.create`.
        equal_memory_to: a specification whose kept tokens, averaged over all heads of the prompt at
            hand, become this method's ``budget``. None: ``options`` decide alone.
    """

    label: str
    name: str
    options: Mapping[str, Any] = field(default_factory=dict)
    equal_memory_to: MethodSpec | None = None

    def create(self) -> Method:
        """The method with its own options (a budget for equal memory is not among them)."""
        return create(self.name, **self.options)

    def for_prompt(self, tokens: int, shape: ModelShape) -> Method:
        """The method for a prompt of ``tokens`` tokens, its budget set where memory is equal."""
        if self.equal_memory_to is None:
            return self.create()
        like = self.equal_memory_to.create()
        return with_equal_memory(self.name, like, tokens, shape, **self.options)

    def to_dict(self) -> dict[str, Any]:
        """Name and all options (defaults included) as plain values.

        Of a head mask only the heads count, not where the file lay.
        """
        described = self.create().to_dict()
        if isinstance(described.get("head_mask"), dict):
            described["head_mask"].pop("meta", None)
        if self.equal_memory_to is not None:
            described["budget"] = {"equal_memory_to": self.equal_memory_to.to_dict()}
        return described


def refuse_label_twice(labels: Iterable[str]) -> None:
    """Raise ``UserError`` where two columns of one table share a label: it tells rows apart."""
    counts = Counter(labels)
    twice = sorted(label for label, count in counts.items() if count > 1)
    if twice:
        raise UserError(
            f"method label {twice[0]!r} is used twice; write LABEL=METHOD to tell them apart"
        )


@dataclass(frozen=True)
class RunSettings:
    """Everything that a run measures.

    Attributes:
        model: folder or hub name, as the user gave it.
        model_hash: identity of the weights
            (:func:`catekv.evaluation.records.environment.model_identity`).
        tasks: registered task names, or paths of JSONL files.
        lengths: prompt lengths in tokens, answer allowance included; unused for files. For tasks
            whose rows have lengths of their own a limit, 0 for none.
        samples: samples per task and length (of a file: at most so many).
        methods: the columns.
        questions: ``agnostic`` (question after compression) and/or ``aware`` (question inside).
        seed: seed of the samples.
        chat_template: ``auto`` (the tokenizer's own, if it has one) or ``none``.
        dtype, device, attention: as resolved when the model was loaded.
        max_new_tokens: overrides the tasks' own allowance.
        answers: answers drawn to every question, whose scores are averaged (pass@1).
        temperature, top_p: how tokens are drawn; temperature 0: greedily, and one answer.
        task_options: extra options of the sample builders.
        prefill: ``shared`` (one dense prefill per sample serves all methods), ``separate`` (one
            layer-by-layer prefill per method: least memory) or ``auto`` (by free memory).
        chunk_size: tokens per prefill chunk.
        joint_decode: decode the methods of a sample as one batch where prefill is shared, but for
            those that go on choosing while decoding; much faster with many methods, but decode
            times of the batch are not recorded.
        batch_size: samples of similar length that are measured at once, left-padded; results are
            those of one at a time up to rounding.
        sanity: measure the validity columns as well (:mod:`catekv.evaluation.run.sanity`).
        paper: whether the published settings were asked for.
        suite: name of the suite that was asked for, or "".
        reference_contexts: hashes of the contexts that the head masks were made from; a run on
            one of them is refused.
    """

    model: str
    model_hash: str
    tasks: tuple[str, ...]
    lengths: tuple[int, ...]
    samples: int
    methods: tuple[MethodSpec, ...]
    questions: tuple[str, ...] = ("agnostic",)
    seed: int = 42
    chat_template: str = "auto"
    dtype: str = "float32"
    device: str = "cpu"
    attention: str = "auto"
    max_new_tokens: int | None = None
    answers: int = 1
    temperature: float = 0.0
    top_p: float = 1.0
    task_options: Mapping[str, Any] = field(default_factory=dict)
    prefill: str = "auto"
    chunk_size: int = 8192
    joint_decode: bool = False
    batch_size: int = 1
    sanity: bool = False
    paper: bool = False
    suite: str = ""
    reference_contexts: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        if not self.tasks:
            raise UserError("no task given; `catekv tasks` lists what there is")
        if not self.methods:
            raise UserError("no method given; `catekv methods` lists what there is")
        if self.samples < 1:
            raise UserError(f"number of samples is {self.samples}; it must be at least 1")
        if any(length < 0 for length in self.lengths):
            raise UserError(f"length {min(self.lengths)} is negative; give tokens, e.g. 4096")
        for name, value in (
            ("batch size", self.batch_size),
            ("chunk size", self.chunk_size),
            ("number of new tokens", self.max_new_tokens),
            ("number of answers", self.answers),
        ):
            if value is not None and value < 1:
                raise UserError(f"{name} is {value}; it must be at least 1")
        if self.joint_decode and self.batch_size > 1:
            raise UserError(
                "joint decode makes a batch of the methods of one sample, a batch size above 1 one "
                "of several samples; leave one of them out"
            )
        if self.temperature:
            self.sampling((0,))  # refuses what is out of range
        elif self.answers > 1 or self.top_p != 1:
            raise UserError(
                "without --temperature every answer is the likeliest one, the same each time; add "
                "e.g. --temperature 0.6, or leave --answers and --top-p out"
            )
        refuse_label_twice(method.label for method in self.methods)
        _check_choice("question mode", self.questions, QUESTION_MODES)
        _check_choice("prefill mode", (self.prefill,), PREFILL_MODES)

    def sampling(self, seeds: tuple[int, ...]) -> Sampling | None:
        """How tokens are drawn, with one seed per sequence; None: greedily."""
        if not self.temperature:
            return None
        from catekv.decode.sampling import Sampling  # brings transformers

        return Sampling(self.temperature, top_p=self.top_p, seed=seeds)

    def configuration(self) -> dict[str, Any]:
        """What every record of a run shares and what changes its result."""
        drawn = {"answers": self.answers, "temperature": self.temperature, "top_p": self.top_p}
        return {
            **({"sampling": drawn} if self.temperature else {}),
            "model_hash": self.model_hash,
            "seed": self.seed,
            "chat_template": self.chat_template,
            "dtype": self.dtype,
            "device": self.device,
            "attention": self.attention,
            "max_new_tokens": self.max_new_tokens,
            "task_options": dict(self.task_options),
        }

    @property
    def config_hash(self) -> str:
        """Hash of :meth:`configuration`: records under another hash never share a folder.

        Tasks, lengths, number of samples, question modes and methods are not part of it: a record
        names its own, and a folder may grow by any of them.
        """
        return stable_hash(self.configuration())

    def method_hash(self, spec: MethodSpec) -> str:
        """Hash of the configuration and of one method with all its options and its mask."""
        return stable_hash([self.configuration(), spec.to_dict()])

    def with_methods(self, methods: tuple[MethodSpec, ...]) -> RunSettings:
        return replace(self, methods=methods)


def _check_choice(what: str, values: tuple[str, ...], allowed: tuple[str, ...]) -> None:
    for value in values:
        if value not in allowed:
            raise UserError(f"unknown {what} {value!r}; use {' or '.join(allowed)}")
