"""Measure methods on tasks: one prefill per sample serves all methods, one record per result."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import gc
import sys
import traceback
from collections.abc import Callable, Generator, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from catekv import tasks
from catekv.context import stack
from catekv.errors import UserError
from catekv.evaluation import environment, report
from catekv.evaluation.distributed import Process
from catekv.evaluation.records import Key, Record, RunDirectory
from catekv.evaluation.settings import MethodSpec, RunSettings, stable_hash
from catekv.head_mask import HeadMask
from catekv.methods import Method, ModelShape, Needs
from catekv.methods.equal_memory import mean_kept_tokens
from catekv.tasks.prompt import EncodedPrompt, encode
from catekv.tasks.registry import find
from catekv.tasks.sample import Sample
from catekv.transformers_compat import context_window

if TYPE_CHECKING:
    from catekv.context import Context, DensePrompt
    from catekv.generation import Generation
    from catekv.model import CateKVModel

#: Share of the free memory that a dense prefill for all methods may take; the rest is for
#: activations, the compressed copy and the decode step.
_SHARED_MEMORY_SHARE = 0.5
_SHOWN_SCORES = 6
#: options of :func:`catekv.tasks.build` that every task has
_BUILD_OPTIONS = frozenset({"wording", "words_path"})
#: what the sample builder writes into every sample and the manifest holds once
_SHARED_METADATA = ("seed", "stream", "options", "tokenizer", "tokenizer_hash", "chat_template")


@dataclasses.dataclass(frozen=True)
class Outcome:
    """Result of a run: its summary (first process only) and how many measurements failed."""

    summary: dict[str, Any] | None
    failed: int
    measured: int


def evaluate(
    model: CateKVModel,
    settings: RunSettings,
    output: str | Path,
    *,
    resume: bool = True,
    overwrite: bool = False,
    process: Process | None = None,
    progress: bool = True,
    command: str = "",
) -> Outcome:
    """Measure everything in ``settings`` that ``output`` does not hold yet, and summarise.

    Args:
        model: as loaded; its own method is not used.
        settings: what to measure; ``settings.model_hash`` must belong to ``model``.
        output: run directory; a run that was interrupted, even killed, goes on in it.
        resume, overwrite: see :meth:`RunDirectory.prepare`.
        process: this process of a data-parallel run.
        progress: show a progress bar with the running scores on stderr.
        command: recorded in the manifest.

    Raises:
        UserError: tasks, lengths or methods that do not fit the model, or a folder that may not
            hold the results. Nothing has been measured then. What goes wrong in one sample becomes
            an error record instead.
    """
    process = process or Process()
    _check(model, settings)
    cells = build_cells(model, settings)
    directory = RunDirectory(output, process.rank, process.world)
    manifest = make_manifest(settings, cells, command)
    process.first_decides(lambda: directory.prepare(manifest, resume=resume, overwrite=overwrite))
    process.barrier()
    with directory:
        runner = _Runner(model, settings, directory, process, progress)
        runner.run(cells)
    process.barrier()
    failed = process.total(runner.failed)
    measured = process.total(runner.measured)
    if not process.is_first:
        return Outcome(None, failed, measured)
    directory.consolidate()
    joined = directory.read_manifest()
    assert joined is not None
    summary = report.summarise(directory.records().values(), joined)
    report.write_summary(directory.path, summary)
    return Outcome(summary, failed, measured)


@dataclasses.dataclass(frozen=True)
class Cell:
    """The samples of one task at one length, built when they are needed.

    ``length`` is 0 for a file. ``first`` is the sample with index 0, built to find mistakes early.
    """

    task: str
    length: int
    count: int
    first: Sample
    build: Callable[[int], Sample]

    def sample(self, position: int) -> Sample:
        """The sample at a position, which is the index of its records."""
        return self.first if position == 0 else self.build(position)


def _check(model: CateKVModel, settings: RunSettings) -> None:
    if model.tokenizer is None:
        raise UserError(
            f"{settings.model} holds no tokenizer, tasks are text; put the tokenizer's files into "
            "the folder"
        )
    window = context_window(model.config)
    for length in settings.lengths:
        if window is not None and length > window and not all(map(is_file, settings.tasks)):
            raise UserError(
                f"length {length} exceeds the model's window of {window} tokens; choose a length "
                "up to that or another model (nothing is ever truncated)"
            )
    for spec in settings.methods:
        spec.create().validate(model.shape)


def is_file(task: str) -> bool:
    """Whether a task is given as the path of a JSONL file."""
    return task.endswith((".jsonl", ".json"))


def build_cells(model: CateKVModel, settings: RunSettings) -> list[Cell]:
    """All cells of a run, with their first samples.

    Raises:
        UserError: unknown task or option, unreadable file, a length that does not fit a task, or a
            file whose samples do not fit the model or the question mode.
    """
    cells: list[Cell] = []
    _check_task_options(settings)
    for task in settings.tasks:
        if is_file(task):
            cells.append(_file_cell(task, model, settings))
        else:
            cells += [_built_cell(task, length, model, settings) for length in settings.lengths]
    names = [(cell.task, cell.length) for cell in cells]
    for task, length in names:
        if names.count((task, length)) > 1:
            raise UserError(
                f"{task} is asked for twice ({length or 'in two files'}); give it "
                "once, and further files a run of their own"
            )
    return cells


def _task_options(task: str, settings: RunSettings) -> dict[str, Any]:
    """Those of the run's task options that a task has: a file of essays concerns essay tasks."""
    known = {item.name for item in dataclasses.fields(find(task).options)} | _BUILD_OPTIONS
    return {name: value for name, value in settings.task_options.items() if name in known}


def _check_task_options(settings: RunSettings) -> None:
    built = [task for task in settings.tasks if not is_file(task)]
    used = {name for task in built for name in _task_options(task, settings)}
    unused = sorted(set(settings.task_options) - used)
    if unused:
        names = [item.name for task in built for item in dataclasses.fields(find(task).options)]
        raise UserError(
            f"no task of this run has an option {unused[0]!r}; valid options: "
            f"{', '.join(sorted({*names, *_BUILD_OPTIONS}))}"
        )


def _built_cell(task: str, length: int, model: CateKVModel, settings: RunSettings) -> Cell:
    def build(index: int) -> Sample:
        (sample,) = tasks.build(
            task,
            model.tokenizer,
            length,
            1,
            seed=settings.seed,
            first=index,
            chat_template=settings.chat_template,
            **_task_options(task, settings),
        )
        return sample

    first = build(0)
    return Cell(first.task, length, settings.samples, first, build)


def _file_cell(path: str, model: CateKVModel, settings: RunSettings) -> Cell:
    samples = tasks.read(path)[: settings.samples]
    window = context_window(model.config)
    for sample in samples:
        tokens = len(encode(sample, model.tokenizer, settings.chat_template))
        tokens += settings.max_new_tokens or sample.max_new_tokens
        if window is not None and tokens > window:
            raise UserError(
                f"{path}: sample {sample.index} needs {tokens} tokens but the model's window is "
                f"{window}; leave it out or use another model (nothing is ever truncated)"
            )
        if sample.metadata.get("query_aware_only") and "agnostic" in settings.questions:
            raise UserError(
                f"{path} does not mark where the question begins; run it with --question aware"
            )
    return Cell(samples[0].task, 0, len(samples), samples[0], lambda position: samples[position])


def sample_hash(sample: Sample) -> str:
    """Identity of a sample's text and answers."""
    return stable_hash(
        [sample.context, sample.question, sample.answer_prefix, list(sample.outputs)]
    )


def make_manifest(settings: RunSettings, cells: list[Cell], command: str) -> dict[str, Any]:
    """What a reader needs to know to repeat the run."""
    return {
        "format": 1,
        "model": settings.model,
        "config_hash": settings.config_hash,
        "configuration": settings.configuration(),
        "paper": settings.paper,
        "tasks": list(dict.fromkeys(cell.task for cell in cells)),
        "lengths": list(dict.fromkeys(cell.length for cell in cells)),
        "samples": settings.samples,
        "questions": list(settings.questions),
        "methods": {
            spec.label: {
                "hash": settings.method_hash(spec),
                "name": spec.name,
                "options": spec.to_dict(),
                "mask": _mask_origin(spec),
            }
            for spec in settings.methods
        },
        "prefill": settings.prefill,
        "chunk_size": settings.chunk_size,
        "versions": environment.versions(),
        "git_commit": environment.git_commit(),
        "device": environment.device_description(settings.device),
        "starts": [
            {
                "time": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
                "command": command,
            }
        ],
    }


def _mask_origin(spec: MethodSpec) -> dict[str, Any] | None:
    """Where a method's head mask comes from; its heads are among the options."""
    mask = spec.options.get("head_mask")
    return dict(mask.meta) if isinstance(mask, HeadMask) else None


@dataclasses.dataclass
class _Phase:
    """Where a measurement is, and for which method; error records name both."""

    spec: MethodSpec
    name: str = "prompt"


class _Runner:
    """The loop of one process; ``failed`` and ``measured`` count its measurements."""

    def __init__(
        self,
        model: CateKVModel,
        settings: RunSettings,
        directory: RunDirectory,
        process: Process,
        progress: bool,
    ) -> None:
        self.model = model
        self.settings = settings
        self.directory = directory
        self.process = process
        self.progress = progress
        self.hashes = {spec.label: settings.method_hash(spec) for spec in settings.methods}
        self.failed = 0
        self.measured = 0
        self.done: Mapping[Key, Record] = directory.records()
        self._scores: dict[str, list[float]] = {spec.label: [] for spec in settings.methods}

    def run(self, cells: list[Cell]) -> None:
        for cell in cells:
            self._check_unchanged(cell)
        units = [
            (cell, position, question)
            for cell in cells
            for position in self.process.share_of(cell.count)
            for question in self.settings.questions
        ]
        with self._bar(len(units)) as advance:
            for cell, position, question in units:
                missing = self._missing(cell, position, question)
                if missing:
                    self._measure(cell, position, question, missing)
                advance(cell.task)

    def _check_unchanged(self, cell: Cell) -> None:
        """Refuse to add to records of other samples, e.g. built by another version."""
        for key, record in self.done.items():
            if (
                key[:3] == (cell.task, cell.length, 0)
                and record.error is None
                and (record.sample_hash != sample_hash(cell.first))
            ):
                raise UserError(
                    f"{self.directory.path} holds other samples of {cell.task} (built by another "
                    "version or from another file); use --overwrite or another folder"
                )

    def _missing(self, cell: Cell, position: int, question: str) -> list[MethodSpec]:
        """Methods without a good record of this sample; failed ones are tried again."""
        missing = []
        for spec in self.settings.methods:
            record = self.done.get(self._blank(cell, position, question, spec).key)
            if record is None or record.error is not None:
                missing.append(spec)
            else:
                self._scores[spec.label].append(record.official or 0.0)
        return missing

    def _blank(self, cell: Cell, position: int, question: str, spec: MethodSpec) -> Record:
        return Record(
            task=cell.task,
            length=cell.length,
            index=position,
            method=spec.label,
            question=question,
            method_hash=self.hashes[spec.label],
        )

    def _measure(self, cell: Cell, position: int, question: str, missing: list[MethodSpec]) -> None:
        """Measure one sample with the methods that lack it.

        What fails becomes an error record. Out of memory is tried once more after freeing, with
        the prefill that needs least memory; a joint decode that fails, method by method.
        """
        mode, joint = self.settings.prefill, self.settings.joint_decode
        failed: list[MethodSpec] = []
        while missing:
            phase = _Phase(missing[0])
            # a joint batch always holds all methods, also those measured before an interruption:
            # its rounding, and so its answers, must not depend on what was missing
            batch = [s for s in self.settings.methods if s not in failed] if joint else []
            results = self._results(cell, position, question, missing, batch, mode, phase)
            failure: dict[str, str] | None = None
            lacked_memory = False
            while missing and failure is None:
                try:
                    record = next(results)
                except Exception as error:
                    failure = _describe(error, phase.name)
                    lacked_memory = _is_out_of_memory(error)
                else:
                    self._keep(record)
                    missing = missing[1:]
            results.close()
            if failure is None:
                return
            self._free()
            if lacked_memory and mode != "separate":
                mode, joint = "separate", False
            elif joint and phase.name == "generate":
                joint = False
            else:
                failed.append(phase.spec)
                if phase.spec in missing:
                    blank = self._blank(cell, position, question, phase.spec)
                    self._keep(dataclasses.replace(blank, error=failure))
                    missing = [spec for spec in missing if spec is not phase.spec]

    def _results(
        self,
        cell: Cell,
        position: int,
        question: str,
        specs: list[MethodSpec],
        batch: list[MethodSpec],
        mode: str,
        phase: _Phase,
    ) -> Generator[Record, None, None]:
        """Records of ``specs`` in order; ``batch`` are the methods to decode jointly, if any."""
        sample = cell.sample(position)
        prompt = encode(sample, self.model.tokenizer, self.settings.chat_template)
        context_ids, question_ids = split_prompt(prompt, question)
        methods = {}
        for phase.spec in batch or specs:
            methods[phase.spec.label] = phase.spec.for_prompt(len(context_ids), self.model.shape)
        allowance = self.settings.max_new_tokens or sample.max_new_tokens
        shared = mode == "shared" or (mode == "auto" and self._dense_fits(len(context_ids)))
        base: dict[str, Any] = {
            "sample_hash": sample_hash(sample),
            "references": sample.outputs,
            "metric": sample.metric,
            "wording": sample.wording,
            "prompt_tokens": len(prompt),
            "target_length": sample.target_length,
            "compressed_tokens": len(context_ids),
            "prefill": "shared" if shared else "separate",
            "depths": sample.depths,
            "metadata": _small(sample.metadata),
        }
        dense = None
        if shared:
            phase.name = "prefill"
            dense = self.model.observe(
                context_ids,
                needs=Needs.of_all(methods.values()),
                chunk_size=self.settings.chunk_size,
            )
        joint: dict[str, tuple[Context, Generation]] = {}
        if dense is not None and batch:
            joint = self._decode_together(dense, batch, methods, question_ids, allowance, phase)
        joint_run = bool(joint)
        for spec in specs:
            phase.spec, method = spec, methods[spec.label]
            if joint_run:
                context, generation = joint.pop(spec.label)
            else:
                self._reset_peak()
                if dense is not None:
                    phase.name = "compress"
                    context = dense.compress(method)
                else:
                    phase.name = "prefill"
                    context = self.model.prefill(
                        context_ids, chunk_size=self.settings.chunk_size, method=method
                    )
                phase.name = "generate"
                generation = self.model.generate_ids(question_ids, context, allowance)
            phase.name = "score"
            prediction = self.model.tokenizer.decode(generation.tokens, skip_special_tokens=True)
            scores = tasks.score(prediction, sample)
            yield dataclasses.replace(
                self._blank(cell, position, question, spec),
                **base,
                prediction=prediction,
                official=scores["official"],
                strict=scores.get("strict"),
                scores={k: v for k, v in scores.items() if k not in ("official", "strict")},
                budget=_budget(method, spec),
                asked_share=_asked_share(method, spec, len(context_ids), self.model.shape),
                **_sizes(context),
                new_tokens=len(generation.tokens),
                prefill_seconds=context.timings.get("prefill_seconds"),
                compress_seconds=context.timings.get("compress_seconds"),
                # times and memory of a joint batch belong to no single method
                **({} if joint_run else {**_times(generation), "peak_bytes": self._peak()}),
            )
            del context

    def _decode_together(
        self,
        dense: DensePrompt,
        batch: list[MethodSpec],
        methods: Mapping[str, Method],
        question_ids: list[int],
        allowance: int,
        phase: _Phase,
    ) -> dict[str, tuple[Context, Generation]]:
        """Compress one prompt with every method and decode the answers as one batch."""
        phase.name = "compress"
        contexts = {}
        for phase.spec in batch:
            contexts[phase.spec.label] = dense.compress(methods[phase.spec.label])
        phase.name = "generate"
        together = self.model.generate_ids(
            [question_ids] * len(batch), stack(list(contexts.values())), allowance
        )
        return {
            spec.label: (contexts[spec.label], dataclasses.replace(together, tokens=row))
            for spec, row in zip(batch, together.rows, strict=True)
        }

    def _dense_fits(self, tokens: int) -> bool:
        free = environment.free_memory_bytes(self.settings.device)
        if free is None:
            return True
        shape = self.model.shape
        size = torch.finfo(self.model.model.dtype).bits // 8
        dense = 2 * shape.layers * shape.kv_heads * shape.head_dim * size * tokens
        # the dense prompt stays while one compressed copy of at most the same size lives beside it
        return 2 * dense <= _SHARED_MEMORY_SHARE * free

    def _keep(self, record: Record) -> None:
        self.directory.append(record)
        self.measured += 1
        if record.error is not None:
            self.failed += 1
        else:
            self._scores[record.method].append(record.official or 0.0)

    def _reset_peak(self) -> None:
        if self.settings.device.startswith("cuda"):
            torch.cuda.reset_peak_memory_stats()

    def _peak(self) -> int | None:
        if self.settings.device.startswith("cuda"):
            return int(torch.cuda.max_memory_allocated())
        return None

    def _free(self) -> None:
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    @contextlib.contextmanager
    def _bar(self, total: int) -> Iterator[Callable[[str], None]]:
        """A progress bar on the first process; yields the function that advances it."""
        from tqdm import tqdm

        hidden = not (self.progress and self.process.is_first)
        with tqdm(
            total=total, unit="sample", disable=hidden, file=sys.stderr, dynamic_ncols=True
        ) as bar:

            def advance(task: str) -> None:
                bar.set_description_str(task, refresh=False)
                shown = [
                    f"{label} {100 * sum(values) / len(values):.1f}"
                    for label, values in list(self._scores.items())[:_SHOWN_SCORES]
                    if values
                ]
                bar.set_postfix_str(", ".join(shown), refresh=False)
                bar.update()

            yield advance


def split_prompt(prompt: EncodedPrompt, question: str) -> tuple[list[int], list[int]]:
    """The ids that are compressed and those that follow.

    ``agnostic``: the context, then the question. ``aware``: all but the last id of the whole
    prompt, then that id, which makes the model speak.
    """
    if question == "agnostic":
        return prompt.context_ids, prompt.question_ids
    return prompt.ids[:-1], prompt.ids[-1:]


def _sizes(context: Context) -> dict[str, Any]:
    lengths = context.lengths()
    kept = tuple(tuple(int(tokens) for tokens in layer[0].tolist()) for layer in lengths)
    flat = [tokens for layer in kept for tokens in layer]
    return {
        "kept": kept,
        "kept_tokens": sum(flat) / len(flat),
        "kept_share": context.kept_share(),
        "stored_bytes": context.stored_bytes(),
        "full_bytes": context.full_bytes(),
    }


def _times(generation: Generation) -> dict[str, Any]:
    return {
        "question_seconds": generation.question_seconds,
        "decode_seconds": generation.decode_seconds,
        "decode_steps": generation.steps,
    }


def _budget(method: Method, spec: MethodSpec) -> int | None:
    """The budget that equal memory led to; None where the options say it."""
    if spec.equal_memory_to is None:
        return None
    budget = getattr(method, "budget", None)
    return budget if isinstance(budget, int) else None


def _asked_share(method: Method, spec: MethodSpec, tokens: int, shape: ModelShape) -> float | None:
    """Share of the entries that the method was to keep, which rounding and rules of its own may
    miss; None where only the prompt decides."""
    like = method if spec.equal_memory_to is None else spec.equal_memory_to.create()
    try:
        return mean_kept_tokens(like, tokens, shape) / tokens
    except UserError:
        return None


def _small(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Metadata of the sample itself: neither long texts nor what all samples of a run share."""
    return {
        name: value
        for name, value in metadata.items()
        if name not in _SHARED_METADATA and len(str(value)) <= 200
    }


def _is_out_of_memory(error: Exception) -> bool:
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        "out of memory" in str(error).lower() or "can't allocate memory" in str(error).lower()
    )


def _describe(error: Exception, phase: str) -> dict[str, str]:
    trace = "".join(traceback.format_exception(type(error), error, error.__traceback__))
    return {
        "type": type(error).__name__,
        "message": str(error),
        "phase": phase,
        "traceback": trace,
    }
