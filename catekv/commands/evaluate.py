"""The command ``catekv evaluate``."""

from __future__ import annotations

import argparse

from catekv.commands.arguments import (
    add_method_arguments,
    add_model_arguments,
    add_output_arguments,
    integers,
    options_from,
)
from catekv.commands.numbers import MOST_SAMPLES, whole


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``catekv evaluate``."""
    add_model_arguments(parser)
    parser.add_argument(
        "--suite",
        default="",
        metavar="NAME",
        help="a named selection of tasks: mini (every family, small), paper, or a family, e.g. "
        "ruler or longbench",
    )
    parser.add_argument(
        "--tasks", nargs="+", default=[], metavar="TASK", help="task names or JSONL files"
    )
    parser.add_argument(
        "--lengths", nargs="+", default=[], metavar="TOKENS", help="prompt lengths in tokens"
    )
    parser.add_argument(
        "--samples", type=whole(1, MOST_SAMPLES), help="samples per task and length"
    )
    add_method_arguments(parser, ("full", "catekv"))
    parser.add_argument(
        "--preset",
        choices=("published", "recommended"),
        default="published",
        help="options of all methods as published (default), or as recommended: exact budgets and "
        "better calibration",
    )
    parser.add_argument(
        "--question",
        choices=("agnostic", "aware", "both"),
        help="question asked after compression (agnostic, default), inside the compressed prompt "
        "(aware; default with --paper), or both",
    )
    parser.add_argument("--seed", type=int, default=42, help="seed of the samples (default: 42)")
    parser.add_argument(
        "--chat-template", default="auto", help="auto, none, or a name or text with {prompt}"
    )
    parser.add_argument("--max-new-tokens", type=int, help="instead of the tasks' own allowance")
    parser.add_argument(
        "--task-option",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="option of the sample builders, e.g. essay_path=FILE or num_hops=2, for the tasks "
        "that have it; may be repeated",
    )
    parser.add_argument(
        "--prefill",
        choices=("auto", "shared", "separate"),
        default="auto",
        help="one prefill for all methods (shared), or one per method with least memory",
    )
    parser.add_argument(
        "--joint-decode",
        action="store_true",
        help="decode all methods of a sample as one batch: faster with many methods, without "
        "decode times per method",
    )
    parser.add_argument(
        "--batch-size",
        type=int,
        default=1,
        metavar="N",
        help="samples of similar length measured at once (default: 1); halved where memory lacks",
    )
    parser.add_argument(
        "--parallel",
        choices=("data", "tensor"),
        default="data",
        help="under torchrun: every process measures a part of the samples (data, default), or all "
        "share a model that is too large for one device (tensor)",
    )
    parser.add_argument(
        "--sanity",
        action="store_true",
        help="columns that test the tasks: the references themselves must score 100, an empty "
        "answer 0; other answers and the model without the context about 0",
    )
    parser.add_argument(
        "--max-errors",
        type=float,
        default=0.5,
        metavar="SHARE",
        help="give up when more than this share of the measurements failed (default: 0.5)",
    )
    parser.add_argument(
        "--chunk-size", type=int, default=8192, help="tokens per prefill chunk (default: 8192)"
    )
    parser.add_argument(
        "--paper",
        action="store_true",
        help="published settings: 12 RULER tasks, 96 samples, 131072 tokens, r 0.4, eta 1, b 2048, "
        "question inside the compressed prompt",
    )
    add_output_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """The command; returns the exit code: 1 if a sample failed."""
    from catekv.evaluation.run.request import Request
    from catekv.evaluation.run.session import question_modes, split_list
    from catekv.evaluation.run.session import run as measure

    request = Request(
        model=arguments.model,
        suite=arguments.suite,
        tasks=split_list(arguments.tasks),
        lengths=integers("--lengths", split_list(arguments.lengths)),
        samples=arguments.samples,
        methods=tuple(arguments.methods),
        masks=tuple(arguments.mask),
        ratio=arguments.ratio,
        retention=arguments.retention,
        budget=arguments.budget,
        preset=arguments.preset,
        questions=question_modes(arguments.question),
        seed=arguments.seed,
        chat_template=arguments.chat_template,
        max_new_tokens=arguments.max_new_tokens,
        task_options=options_from("--task-option", arguments.task_option),
        prefill=arguments.prefill,
        joint_decode=arguments.joint_decode,
        batch_size=arguments.batch_size,
        sanity=arguments.sanity,
        max_errors=arguments.max_errors,
        chunk_size=arguments.chunk_size,
        dtype=arguments.dtype,
        device=arguments.device,
        attention=arguments.attention,
        parallel=arguments.parallel,
        paper=arguments.paper,
        output=arguments.output,
        overwrite=arguments.overwrite,
        resume=arguments.resume,
    )
    return measure(request, command=arguments.command_line, quiet=arguments.quiet)
