"""``catekv calibrate``: head masks for a model from a reference set."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from catekv.calibration import CVConfig
from catekv.calibration.head_masks import report
from catekv.calibration.head_masks.result import (
    ALPHA_GRID,
    DEFAULT_HELD_OUT_SAMPLES,
    DEFAULT_LENGTH,
    DEFAULT_SAMPLES,
    HELD_OUT_TASKS,
    K_GRID,
    QUICK,
    REFERENCES,
    SweepSettings,
)
from catekv.calibration.head_masks.sweep import file_name, sweep, write_masks
from catekv.commands.numbers import whole
from catekv.evaluation.columns import defaults
from catekv.evaluation.records import environment
from catekv.evaluation.run.request import QUESTIONS, Request
from catekv.methods.catekv import DEFAULT_RATIO
from catekv.options import MOST_SAMPLES


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``catekv calibrate``."""
    add = parser.add_argument
    add(
        "--model",
        metavar="MODEL",
        help="local folder, .gguf file or hub name (default: the embedded model)",
    )
    add("--dtype", default="auto", help="auto, float32, bfloat16 or float16 (default: auto)")
    add("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    add("--attention", default="auto", help="attention of the prefill: auto, sdpa, eager, ...")
    add(
        "--quick",
        action="store_true",
        help="a first look in minutes: one reference text, few samples of 1024 tokens, three "
        "percentiles, a small budget (all of them can be given all the same)",
    )
    add(
        "--references",
        nargs="+",
        metavar="TASK",
        help=f"reference texts: task names or JSONL files (default: {' '.join(REFERENCES)})",
    )
    add("--length", type=int, help="tokens of reference and held-out prompts")
    add(
        "--samples",
        type=whole(1, MOST_SAMPLES),
        help=f"reference samples per text (default: {DEFAULT_SAMPLES})",
    )
    add("--k", nargs="+", type=float, help=f"percentiles k (default: {_words(K_GRID)})")
    add("--alpha", nargs="+", type=float, help=f"scales alpha (default: {_words(ALPHA_GRID)})")
    add("--ratio", type=float, help="r, share of adaptive heads to compare at (default: 0.4)")
    add("--retention", type=float, help="eta, share of chunks adaptive heads keep (default: 1)")
    add("--budget", type=int, help="b, tokens a consistent head keeps (default: 2048)")
    add("--window", type=int, help="L, last prompt queries observed (default: 64)")
    add("--chunk-size", type=int, help="tokens per chunk (default: 8)")
    add("--init-tokens", type=int, help="first tokens always kept (default: 64)")
    add("--recent-tokens", help="last tokens always kept, or b/128 (default: 256)")
    add("--variant", default="official", help="official (as released) or paper (as printed)")
    add("--held-out-tasks", nargs="+", metavar="TASK", help="tasks that decide")
    add(
        "--held-out-samples",
        type=whole(1, MOST_SAMPLES),
        help=f"samples per deciding task (default: {DEFAULT_HELD_OUT_SAMPLES})",
    )
    add(
        "--question",
        choices=tuple(QUESTIONS),
        help="question after compression, inside the context, or both (default); agnostic and "
        "aware are the papers' words for after and inside",
    )
    add(
        "--test", nargs="+", default=[], metavar="FILE", help="test sets (JSONL) to keep apart from"
    )
    add("--max-new-tokens", type=int, help="overrides the tasks' own allowance for answers")
    add("--seed", type=int, default=42, help="of the samples (default: 42)")
    add("--static-vote", default="per_ratio", help="per_ratio or cumulative")
    add("--vote-count", default="exact", help="exact or keep_ties")
    add("--oracle", action="store_true", help="also the mask of a per-head ablation")
    add("--chat-template", default="auto", help="auto, base, a name, or text with {prompt}")
    add("--prefill-chunk", type=int, default=8192, help="tokens per prefill step (default: 8192)")
    add("--no-picture", action="store_true", help="do not draw the heads")
    add("--output", type=Path, metavar="DIR", help="default: results/headmask-MODEL")


def settings_from(arguments: argparse.Namespace, embedded: bool) -> SweepSettings:
    """Settings of a command line; ``embedded`` says whose defaults hold."""
    given = {
        name: getattr(arguments, name)
        for name in ("retention", "budget", "window", "chunk_size", "init_tokens")
    }
    recent = arguments.recent_tokens
    given["recent_tokens"] = int(recent) if recent is not None and recent.isdigit() else recent
    small = embedded or arguments.quick
    options = {
        **defaults.method_defaults(small).get("catekv", {}),
        **{name: value for name, value in given.items() if value is not None},
        "variant": arguments.variant,
    }
    of_cv = ("window", "chunk_size", "init_tokens", "recent_tokens", "budget", "variant")
    ratio = arguments.ratio
    return SweepSettings(
        **_extent(arguments, embedded),
        ratio=DEFAULT_RATIO if ratio is None else ratio,
        cv=CVConfig(**{name: options[name] for name in of_cv if name in options}),
        method_options=options,
        seed=arguments.seed,
        static_vote=arguments.static_vote,
        vote_count=arguments.vote_count,
        max_new_tokens=arguments.max_new_tokens,
        oracle=arguments.oracle,
        chat_template=arguments.chat_template,
        chunk_size=arguments.prefill_chunk,
    )


def _extent(arguments: argparse.Namespace, embedded: bool) -> dict[str, Any]:
    """What is observed and scored: as given, else the defaults of a quick or of a full sweep."""
    usual: dict[str, Any] = {
        "references": REFERENCES,
        "length": defaults.EMBEDDED_LENGTH if embedded else DEFAULT_LENGTH,
        "samples": DEFAULT_SAMPLES,
        "ks": K_GRID,
        "alphas": ALPHA_GRID,
        "held_out_tasks": defaults.EMBEDDED_TASKS if embedded else HELD_OUT_TASKS,
        "held_out_samples": DEFAULT_HELD_OUT_SAMPLES,
        "questions": QUESTIONS["both"],
    }
    chosen = {
        "references": arguments.references,
        "length": arguments.length,
        "samples": arguments.samples,
        "ks": arguments.k,
        "alphas": arguments.alpha,
        "held_out_tasks": arguments.held_out_tasks,
        "held_out_samples": arguments.held_out_samples,
        "questions": QUESTIONS.get(arguments.question),
    }
    given = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in chosen.items()
        if value is not None
    }
    return {**usual, **(QUICK if arguments.quick else {}), **given}


def _words(values: Sequence[object]) -> str:
    return " ".join(map(str, values))


def run(arguments: argparse.Namespace) -> int:
    """The command ``catekv calibrate``: sweep, masks, report. Returns the exit code."""
    from catekv import tasks
    from catekv.evaluation.run import session

    request = Request(
        model=arguments.model,
        dtype=arguments.dtype,
        device=arguments.device,
        attention=arguments.attention,
    )
    settings = settings_from(arguments, request.embedded)
    test_samples = [sample for path in arguments.test for sample in tasks.read(path)]
    model = session.open_model(request)
    name = arguments.model or report.EMBEDDED
    output = arguments.output or session.RESULTS / f"headmask-{file_name(name)}"
    path = session.model_path(request)
    result = sweep(
        model,
        settings,
        output,
        model_name=name,
        model_hash=environment.model_identity(path, session.revision_of(model)),
        test_samples=test_samples,
    )
    folders = write_masks(result, output)
    report.write(result, output, picture=not arguments.no_picture)
    print(report.summary(result))
    print(f"Masks: {', '.join(str(folder) for folder in folders)}")
    print(f"Try it: {report.evaluate_command(result, folders[0])}")
    print(f"Report: {output / 'report.md'} (report.json, candidates.csv, heads.png)")
    return 0
