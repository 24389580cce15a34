"""``catekv calibrate``: head masks for a model from a reference set."""

from __future__ import annotations

import argparse
from pathlib import Path

from catekv.calibration import CVConfig
from catekv.calibration.head_masks import report
from catekv.calibration.head_masks.result import (
    ALPHA_GRID,
    DEFAULT_HELD_OUT_SAMPLES,
    DEFAULT_LENGTH,
    DEFAULT_SAMPLES,
    HELD_OUT_TASKS,
    K_GRID,
    REFERENCES,
    SweepSettings,
)
from catekv.calibration.head_masks.sweep import file_name, sweep, write_masks
from catekv.commands.arguments import add_template_argument
from catekv.commands.numbers import whole
from catekv.evaluation.columns import defaults
from catekv.evaluation.records import environment
from catekv.methods.catekv import DEFAULT_RATIO
from catekv.options import MOST_SAMPLES
from catekv.tasks.core.prompt import template_name


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
        "--references",
        nargs="+",
        metavar="TASK",
        default=list(REFERENCES),
        help=f"reference texts: task names or JSONL files (default: {' '.join(REFERENCES)})",
    )
    add("--length", type=int, help="tokens of reference and held-out prompts")
    add(
        "--samples",
        type=whole(1, MOST_SAMPLES),
        default=DEFAULT_SAMPLES,
        help=f"reference samples per text (default: {DEFAULT_SAMPLES})",
    )
    add("--k", nargs="+", type=float, default=list(K_GRID), help="percentiles k of the sweep")
    add("--alpha", nargs="+", type=float, default=list(ALPHA_GRID), help="scales alpha")
    add("--ratio", type=float, help="r, share of adaptive heads to compare at (default: 0.4)")
    add("--retention", type=float, help="eta, share of chunks adaptive heads keep (default: 1)")
    add("--budget", type=int, help="b, tokens a consistent head keeps (default: 2048)")
    add("--window", type=int, help="L, last prompt queries observed (default: 64)")
    add("--chunk-size", type=int, help="tokens per chunk (default: 8)")
    add("--init-tokens", type=int, help="first tokens always kept (default: b/32)")
    add("--recent-tokens", help="last tokens always kept, or b/128 (default: 256 at b 2048)")
    add("--variant", default="official", help="official (as released) or paper (as printed)")
    add("--held-out-tasks", nargs="+", metavar="TASK", help="tasks that decide")
    add(
        "--held-out-samples",
        type=whole(1, MOST_SAMPLES),
        default=DEFAULT_HELD_OUT_SAMPLES,
        help=f"samples per deciding task (default: {DEFAULT_HELD_OUT_SAMPLES})",
    )
    add(
        "--question",
        choices=("agnostic", "aware", "both"),
        default="both",
        help="question after compression, inside the context, or both (default)",
    )
    add(
        "--test", nargs="+", default=[], metavar="FILE", help="test sets (JSONL) to keep apart from"
    )
    add("--max-new-tokens", type=int, help="overrides the tasks' own allowance for answers")
    add("--seed", type=int, default=42, help="of the samples (default: 42)")
    add("--static-vote", default="per_ratio", help="per_ratio or cumulative")
    add("--vote-count", default="exact", help="exact or keep_ties")
    add("--oracle", action="store_true", help="also the mask of a per-head ablation")
    add_template_argument(parser)
    add("--prefill-chunk", type=int, default=8192, help="tokens per prefill step (default: 8192)")
    add("--no-picture", action="store_true", help="do not draw the heads")
    add("--output", type=Path, metavar="DIR", help="default: results/headmask-MODEL")


def settings_from(arguments: argparse.Namespace, embedded: bool) -> SweepSettings:
    """Settings of a command line; ``embedded`` says whose defaults hold."""
    given = {
        name: getattr(arguments, name)
        for name in ("retention", "budget", "window", "chunk_size", "init_tokens")
    }
    given["recent_tokens"] = arguments.recent_tokens
    options = {
        **defaults.calibration_edges(embedded, arguments.budget),
        **defaults.method_defaults(embedded).get("catekv", {}),
        **{name: value for name, value in given.items() if value is not None},
        "variant": arguments.variant,
    }
    of_cv = ("window", "chunk_size", "init_tokens", "recent_tokens", "budget", "variant")
    held_out = arguments.held_out_tasks
    if held_out is None:
        held_out = defaults.EMBEDDED_TASKS if embedded else HELD_OUT_TASKS
    length, ratio = arguments.length, arguments.ratio
    if length is None:
        length = defaults.EMBEDDED_LENGTH if embedded else DEFAULT_LENGTH
    return SweepSettings(
        references=tuple(arguments.references),
        length=length,
        samples=arguments.samples,
        ks=tuple(arguments.k),
        alphas=tuple(arguments.alpha),
        ratio=DEFAULT_RATIO if ratio is None else ratio,
        cv=CVConfig(**{name: options[name] for name in of_cv if name in options}),
        method_options=options,
        held_out_tasks=tuple(held_out),
        held_out_samples=arguments.held_out_samples,
        questions=("agnostic", "aware") if arguments.question == "both" else (arguments.question,),
        seed=arguments.seed,
        static_vote=arguments.static_vote,
        vote_count=arguments.vote_count,
        max_new_tokens=arguments.max_new_tokens,
        oracle=arguments.oracle,
        chat_template=template_name(arguments.chat_template),
        chunk_size=arguments.prefill_chunk,
    )


def run(arguments: argparse.Namespace) -> int:
    """The command ``catekv calibrate``: sweep, masks, report. Returns the exit code."""
    from catekv import tasks
    from catekv.evaluation.run import session
    from catekv.evaluation.run.request import Request

    request = Request(
        model=arguments.model,
        dtype=arguments.dtype,
        device=arguments.device,
        attention=arguments.attention,
    )
    settings = settings_from(arguments, request.embedded)
    test_samples = [sample for path in arguments.test for sample in tasks.read(path)]
    model = session.open_model(request)
    name = arguments.model or "embedded"
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
    print(f"Report: {output / 'report.md'} (report.json, candidates.csv, heads.png)")
    return 0
