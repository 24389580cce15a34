"""The command ``catekv fidelity``."""

from __future__ import annotations

import argparse

from catekv.commands.arguments import (
    add_method_arguments,
    add_model_arguments,
    add_output_arguments,
    integers,
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``catekv fidelity``."""
    add_model_arguments(parser)
    parser.add_argument(
        "--text",
        nargs="+",
        default=["prose"],
        metavar="FILE",
        help="texts whose continuation is forced; prose (default) is generated, none leaves it out",
    )
    parser.add_argument(
        "--tasks",
        nargs="+",
        metavar="TASK",
        help="tasks to whose prompts the full model's own answers are forced (default: "
        "ruler/niah_multikey_1 ruler/vt), none leaves it out",
    )
    parser.add_argument(
        "--lengths",
        nargs="+",
        default=[],
        metavar="TOKENS",
        help="tokens of context and continuation (default: 1024, or the model's window)",
    )
    parser.add_argument(
        "--samples",
        type=int,
        default=4,
        help="passages per text and per task, at every length (default: 4)",
    )
    parser.add_argument(
        "--forced", type=int, default=64, metavar="TOKENS", help="tokens forced (default: 64)"
    )
    add_method_arguments(parser, ("catekv", "snapkv", "adakv", "streaming_llm"))
    parser.add_argument(
        "--ratios",
        nargs="+",
        type=float,
        default=[],
        metavar="SHARE",
        help="shares of the context's entries that every method keeps, above 0, at most 1 "
        "(default: as the methods' options say)",
    )
    parser.add_argument(
        "--question",
        choices=("agnostic", "aware"),
        default="agnostic",
        help="a task's question asked after compression (default), or inside the context",
    )
    parser.add_argument("--seed", type=int, default=42, help="seed of what is generated")
    parser.add_argument(
        "--chat-template", default="auto", help="auto, none, or a name or text with {prompt}"
    )
    parser.add_argument(
        "--batch-size", type=int, default=1, metavar="N", help="passages read at once (default: 1)"
    )
    parser.add_argument(
        "--chunk-size", type=int, default=8192, help="tokens per prefill chunk (default: 8192)"
    )
    add_output_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """The command; returns the exit code."""
    import sys

    from catekv.evaluation.columns.specification import parse_methods
    from catekv.evaluation.fidelity import page
    from catekv.evaluation.fidelity.command_settings import default_output, settings_for
    from catekv.evaluation.fidelity.run import fidelity
    from catekv.evaluation.run.request import Request
    from catekv.evaluation.run.session import open_model, split_list

    request = Request(
        model=arguments.model,
        tasks=split_list(arguments.tasks or []),
        lengths=integers("--lengths", split_list(arguments.lengths)),
        samples=arguments.samples,
        methods=tuple(arguments.methods),
        masks=tuple(arguments.mask),
        ratio=arguments.ratio,
        retention=arguments.retention,
        budget=arguments.budget,
        questions=(arguments.question,),
        seed=arguments.seed,
        chat_template=arguments.chat_template,
        batch_size=arguments.batch_size,
        chunk_size=arguments.chunk_size,
        dtype=arguments.dtype,
        device=arguments.device,
        attention=arguments.attention,
    )
    parse_methods(request.methods)  # refuses unknown names before a model is loaded
    model = open_model(request)
    settings = settings_for(
        request, model, tuple(arguments.text), tuple(arguments.ratios), arguments.forced
    )
    output = arguments.output or default_output(settings)
    outcome = fidelity(
        model,
        settings,
        output,
        resume=arguments.resume,
        overwrite=arguments.overwrite,
        quiet=arguments.quiet,
    )
    print(page.plain(outcome.rows))
    for column, reason in outcome.refused.items():
        print(f"note: {column} was not measured: {reason}", file=sys.stderr)
    print(f"Results: {output} (report.html, report.md, summary.json, fidelity.jsonl)")
    if not outcome.measured:
        print("All of this had been measured before; --overwrite measures it again.")
    return 0
