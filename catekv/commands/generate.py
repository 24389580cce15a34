"""The command ``catekv generate``."""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from catekv.commands.arguments import PLUGINS
from catekv.commands.schema import Group
from catekv.errors import UserError
from catekv.evaluation.options import COUNT, REQUIRED, option
from catekv.evaluation.run.request import CATEKV, MODEL, Request
from catekv.files import read_text

ABOUT = """\
Ask questions about a text file.

A model without head masks: take a method that needs none (`catekv methods`),
  catekv generate --model MODEL --method snapkv:keep=0.2 \\
    --context FILE --question TEXT
or make masks, once; the default method, catekv, then finds them:
  catekv calibrate --model MODEL --quick
This takes about 4 minutes for a model of 135 M parameters on two CPU cores."""


@dataclass(frozen=True)
class Questions:
    """What is read and asked, with which method, and how answers are drawn."""

    context: Path = option(REQUIRED, "text file to read once")
    question: tuple[str, ...] = option(REQUIRED, "may be repeated", repeat=True)
    method: str = option("catekv", "NAME[:option=value,...]")
    mask: str | None = option(None, "head mask for methods that take one")
    system: str | None = option(
        None, "system message, instead of the chat template's own", metavar="TEXT"
    )
    max_new_tokens: int = option(64, "of an answer (default: {default})", **COUNT)
    temperature: float | None = option(
        None, "draw tokens, from logits divided by this (default: greedy)"
    )
    top_k: int | None = option(None, "draw among so many likeliest tokens")
    top_p: float | None = option(
        None, "draw among the likeliest tokens that reach this probability"
    )
    seed: int | None = option(None, "of the draws; the same seed, the same answer")
    stop: tuple[str, ...] = option(
        (), "end before this text; may be repeated", repeat=True, metavar="TEXT"
    )
    stream: bool = option(False, "print an answer while it is made")


REQUEST = Group(Request, (*MODEL, *CATEKV, "chat_template"))
QUESTIONS = Group(Questions)
OPTIONS = (REQUEST, PLUGINS, QUESTIONS)


def _sized(request: Request) -> Request:
    """The request with its sizes as options of its one method, whichever that is.

    Raises:
        UserError: a size that the method does not have, or that its text sets as well.
    """
    from catekv.evaluation.columns.specification import option_names, parse_methods

    method = parse_methods(request.methods)[0]
    name = method.name
    given = {size: getattr(request, size) for size in CATEKV}
    sizes = {size: value for size, value in given.items() if value is not None}
    method.refuse_flags(sizes)
    if name == "catekv" or not sizes:
        return request
    lacking = [size for size in sizes if size not in option_names(name)]
    if lacking:
        raise UserError(
            f"--{lacking[0].replace('_', '-')} is no option of {name}; leave it out "
            f"(`catekv methods {name}` explains those there are)"
        )
    others: dict[str, Any] = dict.fromkeys(CATEKV)
    return replace(request, **others, options={name: sizes})


def run(arguments: argparse.Namespace) -> int:
    """The command; returns the exit code."""
    from catekv.decode.sampling import Sampling
    from catekv.decode.text import stop_strings
    from catekv.evaluation.columns.edges import edge_notes
    from catekv.evaluation.run.session import check_methods, open_model, settings_for
    from catekv.tasks.core.prompt import prompt_format
    from catekv.tasks.core.token_ids import check_text

    asked = QUESTIONS.read(arguments)
    given = {name: getattr(asked, name) for name in ("temperature", "top_k", "top_p", "seed")}
    options = {name: value for name, value in given.items() if value is not None}
    Sampling(**options)  # wrong values are refused before anything is loaded
    stop_strings(asked.stop)
    text = read_text(asked.context, pipes=True)
    if not text.strip():
        raise UserError(f"{asked.context} holds no text; give a file with the text to ask about")
    request = REQUEST.read(
        arguments, methods=(asked.method,), masks=(asked.mask,) if asked.mask else ()
    )
    request = _sized(request)
    for question in asked.question:
        check_text(question, "a --question")
    check_text(asked.system or "", "--system")
    check_methods(request)
    model = open_model(request)
    spec = settings_for(request, model).methods[0]
    if model.tokenizer is None:
        raise UserError(f"{model.model_id} has no tokenizer, which text needs; restore its files")
    turn = prompt_format(model.tokenizer, request.chat_template, asked.system)
    context = model.prefill(turn.context_ids(text), method=spec.create())
    print(
        f"{context.tokens} tokens read, {100 * context.kept_share():.1f}% kept, "
        f"{context.stored_bytes() / 1024**2:.1f} of {context.full_bytes() / 1024**2:.1f} MiB",
        file=sys.stderr,
    )
    for note in edge_notes({spec.label: spec.to_dict()}):
        print(note, file=sys.stderr)
    options.update(max_new_tokens=asked.max_new_tokens, stop=asked.stop)
    for question in asked.question:
        ids = turn.question_ids(text, question)
        if asked.stream:
            for piece in model.generate_stream(ids, context, **options):
                print(piece, end="", flush=True)
            print()
        else:
            print(model.generate(ids, context=context, **options))
    return 0
