"""Measure the samples of one unit with many methods: one prefill, one compression per method."""

from __future__ import annotations

import dataclasses
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from catekv.decode.context import stack
from catekv.evaluation.columns.settings import MethodSpec, RunSettings
from catekv.evaluation.records import environment
from catekv.evaluation.records.records import Record
from catekv.evaluation.run.asking import Trial, as_prompt, ask
from catekv.evaluation.run.batches import Unit
from catekv.evaluation.run.distributed import Process
from catekv.evaluation.run.measured import (
    answered,
    asked_share,
    budget_of,
    described,
    peak,
    reset_peak,
    sizes,
    times,
)
from catekv.methods import Method, Needs
from catekv.methods.per_sequence import NotTogetherError, together
from catekv.tasks.core.randomness import generator
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
class _Answer:
    """What one method answered, each time it was asked. ``place``: its sequence in ``context``;
    ``shared``: its prefill served all methods; ``jointly``: so did its decode steps;
    ``peak_bytes``: CUDA's allocation peak until then."""

    context: Context
    generations: tuple[Generation, ...]
    shared: bool
    place: int = 0
    batch: int = 1
    jointly: bool = False
    peak_bytes: int | None = None


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
            joint: methods to decode as one batch, ``specs`` among them; empty: one by one. Those
                that go on choosing while decoding are decoded one by one all the same.
            mode: ``shared``, ``separate`` or ``auto`` prefill.
            phase: kept up to date, so that the caller knows where an exception came from.
        """
        trials = [self._trial(unit, position) for position in unit.positions]
        contexts = _contexts(unit, trials)
        methods: dict[str, list[Method]] = {}
        for phase.spec in joint or specs:
            methods[phase.spec.label] = self._methods(phase.spec, contexts)
        shared = mode == "shared" or (mode == "auto" and self._dense_fits(contexts))
        dense = None
        if shared:
            phase.name = "prefill"
            dense = self.model.observe(
                as_prompt(contexts),
                needs=Needs.of_all(method for found in methods.values() for method in found),
                chunk_size=self.settings.chunk_size,
            )
        together_answers: dict[str, list[_Answer]] = {}
        batch = [spec for spec in joint if _stacks(methods[spec.label][0])]
        if dense is not None and {spec.label for spec in batch} & {spec.label for spec in specs}:
            together_answers = self._decode_jointly(dense, batch, methods, trials, phase)
        for phase.spec in specs:
            answers = together_answers.pop(phase.spec.label, None)
            if answers is None:
                answers = self._decode(dense, unit, methods[phase.spec.label], trials, phase)
            phase.name = "score"
            per_trial = _for_trials(methods[phase.spec.label], trials)
            yield [
                self._record(unit, position, trial, phase.spec, method, answer)
                for position, trial, method, answer in zip(
                    unit.positions, trials, per_trial, answers, strict=True
                )
            ]
            del answers

    def _trial(self, unit: Unit, position: int) -> Trial:
        sample = unit.cell.sample(position)
        template = self.settings.chat_template
        return Trial.of(sample, self.model.tokenizer, unit.question, template)

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
        trials: Sequence[Trial],
        phase: Phase,
    ) -> list[_Answer]:
        """Compress the unit with one method and answer all of its questions."""
        reset_peak(self.settings.device)
        contexts = _contexts(unit, trials)
        method = together(methods)
        try:
            context = self._compress(dense, contexts, method, phase)
        except NotTogetherError:
            return [
                self._decode(None, unit.part([position]), [own], [trial], phase)[0]
                for position, own, trial in zip(unit.positions, methods, trials, strict=True)
            ]
        phase.name = "generate"
        shared = dense is not None
        if unit.one_context:
            return [
                _Answer(context, self._generate([trial], context), shared, peak_bytes=self._peak())
                for trial in trials
            ]
        generations = self._generate(trials, context)
        found = self._peak()
        return [
            _Answer(context, generations, shared, place, len(trials), peak_bytes=found)
            for place in range(len(trials))
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
            as_prompt(contexts), chunk_size=self.settings.chunk_size, method=method
        )

    def _decode_jointly(
        self,
        dense: DensePrompt,
        specs: Sequence[MethodSpec],
        methods: Mapping[str, Sequence[Method]],
        trials: Sequence[Trial],
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
        for trial in trials:
            generations = self._generate([trial] * len(contexts), whole)
            for place, (label, context) in enumerate(contexts.items()):
                own = tuple(
                    dataclasses.replace(
                        one,
                        rows=one.rows[place : place + 1],
                        texts=one.texts and one.texts[place : place + 1],
                    )
                    for one in generations
                )
                answers[label].append(_Answer(context, own, shared=True, jointly=True))
        return answers

    def _generate(self, trials: Sequence[Trial], context: Context) -> tuple[Generation, ...]:
        """Answers to one question per sequence of the context, as often as it is asked.

        What is drawn depends on the sample and the number of the answer alone, so that all methods
        draw with the same random numbers."""
        settings = self.settings
        return tuple(
            ask(
                self.model,
                context,
                trials,
                settings.max_new_tokens,
                settings.sampling(
                    tuple(_seed(trial.sample, settings.seed, number) for trial in trials)
                ),
            )
            for number in range(settings.answers)
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
        position: int,
        trial: Trial,
        spec: MethodSpec,
        method: Method,
        answer: _Answer,
    ) -> Record:
        sample = trial.sample
        limit = self.settings.max_new_tokens or sample.max_new_tokens
        timings = answer.context.timings
        return dataclasses.replace(
            self.blank(unit, position, spec),
            **described(sample),
            **answered(self.model, answer.generations, answer.place, sample, limit),
            prompt_tokens=trial.tokens,
            compressed_tokens=len(trial.context_ids),
            prefill="shared" if answer.shared else "separate",
            budget=budget_of(method, spec),
            asked_share=asked_share(method, spec, len(trial.context_ids), self.model.shape),
            **sizes(answer.context, answer.place, len(trial.context_ids)),
            prefill_seconds=timings.get("prefill_seconds"),
            compress_seconds=timings.get("compress_seconds"),
            batch=answer.batch,
            context_questions=len(unit.positions) if unit.one_context else 1,
            # times of a joint batch belong to no single method, and its peak is not measured
            peak_bytes=answer.peak_bytes,
            **({} if answer.jointly else times(answer.generations)),
        )


def _seed(sample: Sample, seed: int, number: int) -> int:
    """Of one answer to a sample."""
    drawn = generator("answer", seed, sample.task, sample.target_length, sample.index, number)
    return drawn.getrandbits(63)


def _for_trials(methods: Sequence[Method], trials: Sequence[Trial]) -> Sequence[Method]:
    return list(methods) * len(trials) if len(methods) == 1 else methods


def _stacks(method: Method) -> bool:
    """Whether contexts of the method can be rows of a batch with those of others: entries on the
    device that stay as they are."""
    return method.store == "device" and not method.own_store


def _contexts(unit: Unit, trials: Sequence[Trial]) -> list[list[int]]:
    """What is read: one context of all questions, or that of every one."""
    return [trial.context_ids for trial in (trials[:1] if unit.one_context else trials)]
