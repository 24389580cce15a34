"""Measure the samples of one unit with many methods: one prefill, one compression per method."""

from __future__ import annotations

import dataclasses
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from catekv.decode.context import stack
from catekv.evaluation.columns.settings import MethodSpec, RunSettings
from catekv.evaluation.records import environment
from catekv.evaluation.records.records import Record
from catekv.evaluation.run.batches import Unit
from catekv.evaluation.run.distributed import Process
from catekv.evaluation.run.measured import (
    asked_share,
    budget_of,
    described,
    peak,
    reset_peak,
    scored,
    sizes,
    times,
)
from catekv.methods import Method, Needs
from catekv.methods.per_sequence import NotTogetherError, together
from catekv.tasks.core.prompt import EncodedPrompt, encode
from catekv.tasks.core.sample import Sample

if TYPE_CHECKING:
    from catekv.decode.context import Context, DensePrompt
    from catekv.decode.generation import Generation
    from catekv.model import CateKVModel

#: Share of the free memory that a dense prefill for all methods may take; the rest is for
#: activations, the compressed copy and the decode step.
_SHARED_MEMORY_SHARE = 0.5


@dataclass
class Phase:
    """Where a measurement is, and for which method; error records name both."""

    spec: MethodSpec
    name: str = "prompt"


@dataclass(frozen=True)
class Row:
    """One sample as token ids; ``tokens`` are those of the whole prompt."""

    position: int
    sample: Sample
    context_ids: list[int]
    question_ids: list[int]

    @property
    def tokens(self) -> int:
        return len(self.context_ids) + len(self.question_ids)


@dataclass(frozen=True)
class _Answer:
    """What one method answered to one row. ``place``: its sequence in ``context``; ``shared``: its
    prefill served all methods; ``jointly``: so did its decode steps; ``peak_bytes``: CUDA's
    allocation peak until then."""

    context: Context
    generation: Generation
    shared: bool
    place: int = 0
    batch: int = 1
    jointly: bool = False
    peak_bytes: int | None = None


def split_prompt(prompt: EncodedPrompt, question: str) -> tuple[list[int], list[int]]:
    """The ids that are compressed and those that follow.

    ``agnostic``: the context, then the question. ``aware``: all but the last id of the whole
    prompt, then that id, which makes the model speak.
    """
    if question == "agnostic":
        return prompt.context_ids, prompt.question_ids
    return prompt.ids[:-1], prompt.ids[-1:]


class Measurer:
    """Runs the model for a run's settings."""

    def __init__(
        self, model: CateKVModel, settings: RunSettings, process: Process | None = None
    ) -> None:
        self.process = process or Process()
        self.model = model
        self.settings = settings
        self._hashes = {spec.label: settings.method_hash(spec) for spec in settings.methods}

    def blank(self, unit: Unit, position: int, spec: MethodSpec) -> Record:
        """The record of a sample and a method before anything was measured."""
        return Record(
            task=unit.cell.task,
            length=unit.cell.length,
            index=position,
            method=spec.label,
            question=unit.question,
            method_hash=self._hashes[spec.label],
        )

    def records(
        self,
        unit: Unit,
        specs: Sequence[MethodSpec],
        joint: Sequence[MethodSpec],
        mode: str,
        phase: Phase,
    ) -> Generator[list[Record], None, None]:
        """For each of ``specs`` in order, the records of the unit's samples.

        Args:
            unit: its samples end their answers by the same rules, or share one context.
            joint: methods to decode as one batch, ``specs`` among them; empty: one by one.
            mode: ``shared``, ``separate`` or ``auto`` prefill.
            phase: kept up to date, so that the caller knows where an exception came from.
        """
        rows = [self._row(unit, position) for position in unit.positions]
        contexts = [row.context_ids for row in (rows[:1] if unit.one_context else rows)]
        methods: dict[str, list[Method]] = {}
        for phase.spec in joint or specs:
            methods[phase.spec.label] = self._methods(phase.spec, contexts)
        shared = mode == "shared" or (mode == "auto" and self._dense_fits(contexts))
        dense = None
        if shared:
            phase.name = "prefill"
            dense = self.model.observe(
                _prompt(contexts),
                needs=Needs.of_all(method for found in methods.values() for method in found),
                chunk_size=self.settings.chunk_size,
            )
        together_answers: dict[str, list[_Answer]] = {}
        if dense is not None and joint:
            together_answers = self._decode_jointly(dense, joint, methods, rows, phase)
        for phase.spec in specs:
            if together_answers:
                answers = together_answers.pop(phase.spec.label)
            else:
                answers = self._decode(dense, unit, methods[phase.spec.label], rows, phase)
            phase.name = "score"
            yield [
                self._record(unit, row, phase.spec, method, answer)
                for row, method, answer in zip(
                    rows, _for_rows(methods[phase.spec.label], rows), answers, strict=True
                )
            ]
            del answers

    def _row(self, unit: Unit, position: int) -> Row:
        sample = unit.cell.sample(position)
        prompt = encode(sample, self.model.tokenizer, self.settings.chat_template)
        return Row(position, sample, *split_prompt(prompt, unit.question))

    def _methods(self, spec: MethodSpec, contexts: Sequence[Sequence[int]]) -> list[Method]:
        """The method for every context; equal memory depends on its length."""
        if spec.equal_memory_to is None:
            return [spec.create()] * len(contexts)
        return [spec.for_prompt(len(ids), self.model.shape) for ids in contexts]

    def _decode(
        self,
        dense: DensePrompt | None,
        unit: Unit,
        methods: Sequence[Method],
        rows: Sequence[Row],
        phase: Phase,
    ) -> list[_Answer]:
        """Compress the unit with one method and answer all of its questions."""
        reset_peak(self.settings.device)
        contexts = [row.context_ids for row in (rows[:1] if unit.one_context else rows)]
        method = together(methods)
        try:
            context = self._compress(dense, contexts, method, phase)
        except NotTogetherError:
            return [
                self._decode(None, unit.part([row.position]), [own], [row], phase)[0]
                for own, row in zip(methods, rows, strict=True)
            ]
        phase.name = "generate"
        shared = dense is not None
        if unit.one_context:
            return [
                _Answer(context, self._generate([row], context), shared, peak_bytes=self._peak())
                for row in rows
            ]
        generation = self._generate(rows, context)
        found = self._peak()
        return [
            _Answer(context, generation, shared, place, len(rows), peak_bytes=found)
            for place in range(len(rows))
        ]

    def _peak(self) -> int | None:
        return peak(self.settings.device)

    def _compress(
        self,
        dense: DensePrompt | None,
        contexts: Sequence[list[int]],
        method: Method,
        phase: Phase,
    ) -> Context:
        if dense is not None:
            phase.name = "compress"
            return dense.compress(method)
        phase.name = "prefill"
        return self.model.prefill(
            _prompt(contexts), chunk_size=self.settings.chunk_size, method=method
        )

    def _decode_jointly(
        self,
        dense: DensePrompt,
        specs: Sequence[MethodSpec],
        methods: Mapping[str, Sequence[Method]],
        rows: Sequence[Row],
        phase: Phase,
    ) -> dict[str, list[_Answer]]:
        """Compress one context with every method and decode the answers of all as one batch."""
        phase.name = "compress"
        contexts = {}
        for phase.spec in specs:
            contexts[phase.spec.label] = dense.compress(methods[phase.spec.label][0])
        phase.name = "generate"
        whole = stack(list(contexts.values()))
        answers: dict[str, list[_Answer]] = {label: [] for label in contexts}
        for row in rows:
            generation = self._generate([row] * len(contexts), whole)
            for place, (label, context) in enumerate(contexts.items()):
                own = dataclasses.replace(
                    generation,
                    rows=generation.rows[place : place + 1],
                    texts=generation.texts and generation.texts[place : place + 1],
                )
                answers[label].append(_Answer(context, own, shared=True, jointly=True))
        return answers

    def _generate(self, rows: Sequence[Row], context: Context) -> Generation:
        """Answers to one question per sequence of the context."""
        sample = rows[0].sample
        return self.model.generate_ids(
            _prompt([row.question_ids for row in rows]),
            context,
            self.settings.max_new_tokens or sample.max_new_tokens,
            stop=sample.stop or None,
            min_new_tokens=sample.min_new_tokens,
        )

    def _dense_fits(self, contexts: Sequence[Sequence[int]]) -> bool:
        # what is free differs between processes, but those that share a model go the same way
        free = self.process.alike(environment.free_memory_bytes(self.settings.device))
        if free is None:
            return True
        shape = self.model.shape
        size = torch.finfo(self.model.model.dtype).bits // 8
        columns = len(contexts) * max(map(len, contexts))
        dense = 2 * shape.layers * shape.kv_heads * shape.head_dim * size * columns
        # the dense prompt stays while one compressed copy of at most the same size lives beside it
        return 2 * dense <= _SHARED_MEMORY_SHARE * free

    def _record(
        self,
        unit: Unit,
        row: Row,
        spec: MethodSpec,
        method: Method,
        answer: _Answer,
    ) -> Record:
        generation = answer.generation
        tokens = generation.rows[answer.place]
        if generation.texts is not None:
            prediction = generation.texts[answer.place]
        else:
            prediction = self.model.tokenizer.decode(tokens, skip_special_tokens=True)
        timings = answer.context.timings
        return dataclasses.replace(
            self.blank(unit, row.position, spec),
            **described(row.sample),
            **scored(prediction, row.sample),
            prompt_tokens=row.tokens,
            compressed_tokens=len(row.context_ids),
            prefill="shared" if answer.shared else "separate",
            budget=budget_of(method, spec),
            asked_share=asked_share(method, spec, len(row.context_ids), self.model.shape),
            **sizes(answer.context, answer.place, len(row.context_ids)),
            new_tokens=len(tokens),
            prefill_seconds=timings.get("prefill_seconds"),
            compress_seconds=timings.get("compress_seconds"),
            batch=answer.batch,
            context_questions=len(unit.positions) if unit.one_context else 1,
            # times and memory of a joint batch belong to no single method
            **({} if answer.jointly else {**times(generation), "peak_bytes": answer.peak_bytes}),
        )


def _for_rows(methods: Sequence[Method], rows: Sequence[Row]) -> Sequence[Method]:
    return list(methods) * len(rows) if len(methods) == 1 else methods


def _prompt(ids: Sequence[list[int]]) -> Any:
    """One prompt as it is, several as a batch."""
    return ids[0] if len(ids) == 1 else list(ids)
