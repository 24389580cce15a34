"""The command ``catekv generate``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from catekv.commands import schema
from catekv.commands.arguments import add_model_arguments, add_template_argument
from catekv.errors import UserError
from catekv.evaluation.run.request import METHODS, MODEL, Request
from catekv.files import read_text

_SIZES = tuple(name for name in METHODS if name not in ("methods", "masks"))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``catekv generate``."""
    add_model_arguments(parser)
    parser.add_argument("--context", type=Path, required=True, help="text file to read once")
    parser.add_argument("--question", action="append", required=True, help="may be repeated")
    parser.add_argument("--method", default="catekv", help="NAME[:option=value,...]")
    parser.add_argument("--mask", help="head mask for methods that take one")
    schema.add_arguments(parser, Request, _SIZES)
    add_template_argument(parser)
    parser.add_argument(
        "--system", metavar="TEXT", help="system message, instead of the chat template's own"
    )
    parser.add_argument("--max-new-tokens", type=int, default=64)
    parser.add_argument(
        "--temperature",
        type=float,
        help="draw tokens, from logits divided by this (default: greedy)",
    )
    parser.add_argument("--top-k", type=int, help="draw among so many likeliest tokens")
    parser.add_argument(
        "--top-p", type=float, help="draw among the likeliest tokens that reach this probability"
    )
    parser.add_argument("--seed", type=int, help="of the draws; the same seed, the same answer")
    parser.add_argument(
        "--stop", action="append", metavar="TEXT", help="end before this text; may be repeated"
    )
    parser.add_argument("--stream", action="store_true", help="print an answer while it is made")


def run(arguments: argparse.Namespace) -> int:
    """The command; returns the exit code."""
    from catekv.decode.sampling import Sampling
    from catekv.decode.text import stop_strings
    from catekv.evaluation.columns.edges import edge_notes
    from catekv.evaluation.run.session import open_model, settings_for
    from catekv.tasks.core.prompt import prompt_format
    from catekv.tasks.core.token_ids import check_text

    names = ("temperature", "top_k", "top_p", "seed")
    given = {name: getattr(arguments, name) for name in names}
    options = {name: value for name, value in given.items() if value is not None}
    Sampling(**options)  # wrong values are refused before anything is loaded
    stop_strings(arguments.stop)
    text = read_text(arguments.context, pipes=True)
    request = Request(
        methods=(arguments.method,),
        masks=(arguments.mask,) if arguments.mask else (),
        **{name: getattr(arguments, name) for name in (*MODEL, *_SIZES)},
    )
    for question in arguments.question:
        check_text(question, "a --question")
    check_text(arguments.system or "", "--system")
    model = open_model(request)
    spec = settings_for(request, model).methods[0]
    if model.tokenizer is None:
        raise UserError(f"{model.model_id} has no tokenizer, which text needs; restore its files")
    turn = prompt_format(model.tokenizer, arguments.chat_template, arguments.system)
    context = model.prefill(turn.context_ids(text), method=spec.create())
    print(
        f"{context.tokens} tokens read, {100 * context.kept_share():.1f}% kept, "
        f"{context.stored_bytes() / 1024**2:.1f} of {context.full_bytes() / 1024**2:.1f} MiB",
        file=sys.stderr,
    )
    for note in edge_notes({spec.label: spec.to_dict()}):
        print(note, file=sys.stderr)
    options.update(max_new_tokens=arguments.max_new_tokens, stop=arguments.stop)
    for question in arguments.question:
        asked = turn.question_ids(text, question, "")
        if arguments.stream:
            for piece in model.generate_stream(asked, context, **options):
                print(piece, end="", flush=True)
            print()
        else:
            print(model.generate(asked, context=context, **options))
    return 0
