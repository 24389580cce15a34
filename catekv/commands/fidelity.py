"""The command ``catekv fidelity``."""

from __future__ import annotations

import argparse
from dataclasses import dataclass

from catekv.commands.arguments import PROGRESS
from catekv.commands.schema import Group
from catekv.evaluation.options import COUNT, MOST_SAMPLES, option
from catekv.evaluation.run.request import METHODS, MODEL, Request


@dataclass(frozen=True)
class Passages:
    """What tokens are forced, behind contexts of which size."""

    text: tuple[str, ...] = option(
        ("prose",),
        "texts whose continuation is forced; prose (default) is generated, none leaves it out",
        metavar="FILE",
        verbatim=True,
    )
    tasks: tuple[str, ...] = option(
        (),
        "tasks to whose prompts the full model's own answers are forced (default: "
        "ruler/niah_multikey_1 ruler/vt), none leaves it out",
        metavar="TASK",
    )
    lengths: tuple[int, ...] = option(
        (),
        "tokens of context and continuation (default: 1024, or the model's window)",
        metavar="TOKENS",
    )
    samples: int = option(
        4,
        "passages per text and per task, at every length (default: {default})",
        least=1,
        most=MOST_SAMPLES,
    )
    forced: int = option(64, "tokens forced (default: {default})", metavar="TOKENS", **COUNT)
    ratios: tuple[float, ...] = option(
        (),
        "shares of the context's entries that every method keeps, above 0, at most 1 (default: as "
        "the methods' options say)",
        metavar="SHARE",
    )
    question: str = option(
        "agnostic",
        "a task's question asked after compression (default), or inside the context; agnostic and "
        "aware are the papers' words for after and inside",
        choices={"after": "agnostic", "inside": "aware", "agnostic": "agnostic", "aware": "aware"},
    )


PASSAGES = Group(Passages)
#: What of a request means here what it means to an evaluation.
REQUEST = Group(
    Request,
    (
        *MODEL, *METHODS, "seed", "chat_template", "batch_size", "chunk_size", "output",
        "overwrite", "resume",
    ),
    defaults={"methods": ("catekv", "snapkv", "adakv", "streaming_llm")},
)  # fmt: skip
OPTIONS = (PASSAGES, REQUEST, PROGRESS)


def run(arguments: argparse.Namespace) -> int:
    """The command; returns the exit code."""
    import sys

    from catekv.evaluation.fidelity import page
    from catekv.evaluation.fidelity.command_settings import default_output, settings_for
    from catekv.evaluation.fidelity.run import fidelity
    from catekv.evaluation.run.session import check_methods, open_model

    passages = PASSAGES.read(arguments)
    request = REQUEST.read(
        arguments,
        tasks=passages.tasks,
        lengths=passages.lengths,
        samples=passages.samples,
        questions=(passages.question,),
    )
    check_methods(request)
    model = open_model(request)
    settings = settings_for(request, model, passages.text, passages.ratios, passages.forced)
    output = request.output or default_output(settings)
    outcome = fidelity(
        model,
        settings,
        output,
        resume=request.resume,
        overwrite=request.overwrite,
        quiet=arguments.quiet,
    )
    print("\n".join([page.plain(outcome.rows), *page.notes_of(settings)]))
    for column, reason in outcome.refused.items():
        print(f"note: {column} was not measured: {reason}", file=sys.stderr)
    print(f"Results: {output} (report.html, report.md, summary.json, fidelity.jsonl)")
    if not outcome.measured:
        print("All of this had been measured before; --overwrite measures it again.")
    return 0
