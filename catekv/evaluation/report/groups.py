"""Which runs may stand in one table: the same model and settings, the same samples."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from catekv.evaluation.records.records import Record, merge
from catekv.evaluation.report.inputs import Run
from catekv.evaluation.report.summary import summarise

SampleKey = tuple[str, int, int]
#: Options that name a variant better than others do.
_CHOSEN = ("ratio", "retention", "budget", "total", "threshold", "alpha")


@dataclass
class Group:
    """Runs that were measured alike, joined.

    Attributes:
        title: the model, and what distinguishes the group from others of the same model.
        manifest: of the first run, with the tasks, lengths and methods of all.
        summary: numbers over the records of all runs.
    """

    runs: list[Run]
    samples: dict[SampleKey, str] = field(default_factory=dict)
    title: str = ""
    manifest: dict[str, Any] = field(default_factory=dict)
    records: list[Record] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def configuration(self) -> dict[str, Any]:
        return dict(self.manifest.get("configuration", {}))


def group_runs(runs: Sequence[Run]) -> list[Group]:
    """Join runs of the same configuration whose common samples are the same; keep apart others.

    Two methods under one label with different options get labels that name the difference.
    """
    groups: list[Group] = []
    for run in runs:
        # a sample that failed before it was made has no hash
        samples = {_sample(r): r.sample_hash for r in run.records if r.sample_hash}
        for group in groups:
            if _configuration(group.runs[0]) == _configuration(run) and _agree(
                group.samples, samples
            ):
                group.runs.append(run)
                group.samples.update(samples)
                break
        else:
            groups.append(Group([run], samples))
    for group in groups:
        _join(group)
    _title(groups)
    return groups


def _sample(record: Record) -> SampleKey:
    return record.task, record.length, record.index


def _configuration(run: Run) -> tuple[Any, ...]:
    return run.manifest.get("model"), run.manifest.get("config_hash")


def _agree(first: Mapping[SampleKey, str], second: Mapping[SampleKey, str]) -> bool:
    return all(first[key] == second[key] for key in first.keys() & second.keys())


def _join(group: Group) -> None:
    labels = _labels(group.runs)
    methods: dict[str, Any] = {}
    records: list[Record] = []
    manifest = dict(group.runs[0].manifest)
    for run in group.runs:
        renamed = {old: labels[old, method["hash"]] for old, method in _methods(run)}
        for old, method in _methods(run):
            variant = {} if renamed[old] == old else {"variant_of": old}
            methods[renamed[old]] = {**method, **variant}
        records += [
            record
            if renamed.get(record.method, record.method) == record.method
            else dataclasses.replace(record, method=renamed[record.method])
            for record in run.records
        ]
        for name in ("tasks", "lengths", "questions"):
            have = manifest.get(name, [])
            manifest[name] = [*have, *(v for v in run.manifest.get(name, []) if v not in have)]
        prefix = f"{run.name}: " if len(group.runs) > 1 else ""
        warnings = map(str, run.manifest.get("warnings", []))
        group.notes += [f"{prefix}{note}" for note in (*run.notes, *warnings)]
    # variants of a method stand together, where the first of them was named, by rising numbers
    bases = list(dict.fromkeys(method.get("variant_of", name) for name, method in methods.items()))
    manifest["methods"] = dict(
        sorted(
            methods.items(),
            key=lambda item: (bases.index(item[1].get("variant_of", item[0])), _numbers(item[0])),
        )
    )
    group.manifest = manifest
    group.records = list(merge(records).values())
    group.summary = summarise(group.records, manifest)


def _numbers(label: str) -> list[float]:
    """The numbers in a label, to sort by."""
    return [float(number) for number in re.findall(r"\d+(?:\.\d+)?", label)]


def _methods(run: Run) -> list[tuple[str, dict[str, Any]]]:
    return list(run.manifest["methods"].items())


def _hashes(run: Run) -> set[tuple[str, str]]:
    return {(label, method["hash"]) for label, method in _methods(run)}


def _labels(runs: Sequence[Run]) -> dict[tuple[str, str], str]:
    """(label, hash) to a label that means one method in all runs."""
    variants: dict[str, dict[str, dict[str, Any]]] = {}
    for run in runs:
        for label, method in _methods(run):
            variants.setdefault(label, {}).setdefault(method["hash"], method)
    taken = set(variants)
    labels: dict[tuple[str, str], str] = {}
    for label, by_hash in variants.items():
        if len(by_hash) == 1:
            labels[label, next(iter(by_hash))] = label
            continue
        shown = _differences({digest: dict(_flat(m)) for digest, m in by_hash.items()})
        for digest, words in shown.items():
            unique = list(shown.values()).count(words) == 1
            where = next(r.name for r in runs if (label, digest) in _hashes(r))
            wanted = f"{label} ({words})" if unique else f"{label} ({where})"
            if wanted in taken:
                wanted = f"{label} ({where}, {digest[:6]})"
            taken.add(wanted)
            labels[label, digest] = wanted
    return labels


def _differences(variants: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """For each variant the fewest options, in words, that tell it from the others.

    Of the options that all variants have, those that people choose come first; one that only some
    have is an option of another version, and says nothing to a reader.
    """
    common = set.intersection(*(set(options) for options in variants.values()))
    names = [name for name in next(iter(variants.values())) if name in common]
    differing = [n for n in names if len({repr(o[n]) for o in variants.values()}) > 1]
    differing.sort(key=lambda name: (name not in _CHOSEN, name == "mask"))
    chosen: list[str] = []
    shown: dict[str, str] = dict.fromkeys(variants, "")
    for name in differing:
        chosen.append(name)
        earlier = len(set(shown.values()))
        words = {
            digest: ", ".join(f"{one} {options[one]}" for one in chosen)
            for digest, options in variants.items()
        }
        if len(set(words.values())) == earlier:
            chosen.pop()
            continue
        shown = words
        if len(set(shown.values())) == len(variants):
            break
    return shown


def _flat(method: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Options that a reader would tell methods apart by, nested ones under their own names."""

    def walk(options: Mapping[str, Any], top: bool) -> Iterator[tuple[str, Any]]:
        for name, value in options.items():
            if name == "equal_memory_to" and isinstance(value, dict):
                # the budget of another method: that method's own settings tell it apart
                yield from ((key, part) for key, part in walk(value, False) if key != "name")
            elif isinstance(value, dict) and name != "head_mask":
                yield from walk(value, False)
            elif name != "head_mask":
                yield name, value
            elif top:
                yield "mask", _mask_name(method)

    yield from walk(method.get("options", {}), True)


def _mask_name(method: Mapping[str, Any]) -> str:
    mask = method.get("mask") or {}
    recipe = mask.get("recipe")
    kind = recipe.get("kind") if isinstance(recipe, dict) else None
    return f"{kind or 'given'} {mask.get('source') or mask.get('ratio', '')}".strip()


def _title(groups: Sequence[Group]) -> None:
    """Names that differ: the model, then what its groups differ in."""
    for group in groups:
        model = str(group.manifest.get("model"))
        same = [other for other in groups if str(other.manifest.get("model")) == model]
        if len(same) == 1:
            group.title = model
            continue
        own = group.configuration
        differing = [
            name
            for name in dict.fromkeys(key for other in same for key in other.configuration)
            if len({repr(other.configuration.get(name)) for other in same}) > 1
        ]
        shown = ", ".join(
            f"{name.replace('_', ' ')} {_in_words(own.get(name))}" for name in differing[:3]
        ) or ", ".join(run.name for run in group.runs)
        twins = [o for o in same if o is not group and o.configuration == own]
        if differing and twins:
            shown += f", {group.runs[0].name}"
        group.title = f"{model} ({shown})"


def _in_words(value: Any) -> str:
    """A setting as a reader would type it."""
    if isinstance(value, dict):
        return ", ".join(f"{name}={inner}" for name, inner in value.items()) or "default"
    return "default" if value is None else str(value)
