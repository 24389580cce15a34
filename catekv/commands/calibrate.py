"""``catekv calibrate``: head masks for a model from a reference set."""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from catekv.calibration import CVConfig
from catekv.calibration.first_sample import calibration_time
from catekv.calibration.head_masks import report
from catekv.calibration.head_masks.result import (
    DEFAULT_LENGTH,
    HELD_OUT_TASKS,
    QUICK,
    SweepSettings,
)
from catekv.calibration.head_masks.sweep import file_name, sweep, write_masks
from catekv.commands.arguments import PLUGINS, PROGRESS
from catekv.commands.schema import Group, add_options
from catekv.evaluation.columns import defaults
from catekv.evaluation.options import option
from catekv.evaluation.records import environment
from catekv.evaluation.run.request import MODEL, Request
from catekv.tasks.core.prompt import template_name

if TYPE_CHECKING:
    from catekv.model import CateKVModel


@dataclass(frozen=True)
class Making:
    """What masks are made with beside the sweep's own settings; None: as the model's method."""

    quick: bool = option(
        False,
        "a first look in minutes: one reference text, few samples of 1024 tokens, three "
        "percentiles, a small budget (all of them can be given all the same)",
    )
    window: int | None = option(None, "L, last prompt queries observed (default: 64)")
    chunk_tokens: int | None = option(
        None, "tokens per chunk (default: 8)", flag="--chunk-size", metavar="CHUNK_SIZE"
    )
    init_tokens: int | None = option(None, "first tokens always kept (default: b/32)")
    recent_tokens: str | None = option(None, "last tokens always kept, or b/128 (default: b/8)")
    variant: str = option("official", "official (as released) or paper (as printed)")
    test: tuple[str, ...] = option(
        (), "test sets (JSONL) to keep apart from", verbatim=True, metavar="FILE"
    )
    picture: bool = option(True, "draw the heads (default)")
    output: Path | None = option(None, "default: results/headmask-MODEL", metavar="DIR")


REQUEST = Group(Request, (*MODEL, "retention", "budget"))
SWEEP = Group(SweepSettings, defaults={"length": None, "held_out_tasks": ()})
MAKING = Group(Making)
OPTIONS = (REQUEST, PLUGINS, SWEEP, MAKING, PROGRESS)


def settings_from(arguments: argparse.Namespace, embedded: bool) -> SweepSettings:
    """Settings of a command line; ``embedded`` says whose defaults hold."""
    making = MAKING.read(arguments)
    recent = making.recent_tokens
    given = {
        "retention": arguments.retention,
        "budget": arguments.budget,
        "window": making.window,
        "chunk_size": making.chunk_tokens,
        "init_tokens": making.init_tokens,
        "recent_tokens": int(recent) if recent is not None and recent.isdecimal() else recent,
    }
    options = {
        **defaults.calibration_edges(embedded, arguments.budget),
        **defaults.method_defaults(embedded or making.quick).get("catekv", {}),
        **{name: value for name, value in given.items() if value is not None},
        "variant": making.variant,
    }
    of_cv = ("window", "chunk_size", "init_tokens", "recent_tokens", "budget", "variant")
    values: dict[str, Any] = _quick(arguments) if making.quick else {}
    values["chat_template"] = template_name(arguments.chat_template)
    if not arguments.held_out_tasks and "held_out_tasks" not in values:
        values["held_out_tasks"] = defaults.EMBEDDED_TASKS if embedded else HELD_OUT_TASKS
    if arguments.length is None and "length" not in values:
        values["length"] = defaults.EMBEDDED_LENGTH if embedded else DEFAULT_LENGTH
    return SWEEP.read(
        arguments,
        cv=CVConfig(**{name: options[name] for name in of_cv if name in options}),
        method_options=options,
        **values,
    )


def _quick(arguments: argparse.Namespace) -> dict[str, Any]:
    """What a quick sweep does otherwise, but for options that were given."""
    usual = {item.name: item.default for item in fields(SweepSettings)}
    usual.update(SWEEP.defaults)
    given = SWEEP.values(arguments)
    return {name: value for name, value in QUICK.items() if given[name] == usual[name]}


def make_quick(model: CateKVModel, request: Request, quiet: bool) -> None:
    """Make head masks for a loaded model as ``catekv calibrate --quick`` does, and show them.

    Args:
        request: names the model; its prompt template holds for the masks, too.
        quiet: no progress bars.
    """
    words = [*REQUEST.words(request), "--quick", f"--chat-template={request.chat_template}"]
    parser = argparse.ArgumentParser()
    add_options(parser, OPTIONS)
    run(parser.parse_args([*words, "--quiet"] if quiet else words), model)


def run(arguments: argparse.Namespace, model: CateKVModel | None = None) -> int:
    """The command ``catekv calibrate``: sweep, masks, report. Returns the exit code.

    ``model``: the one that the arguments name, where it is loaded already.
    """
    from catekv import tasks
    from catekv.evaluation.run import session

    request, making = REQUEST.read(arguments), MAKING.read(arguments)
    settings = settings_from(arguments, request.embedded)
    test_samples = [sample for path in making.test for sample in tasks.read(path)]
    if model is None:
        model = session.open_model(request, for_text=True)
    name = request.model or report.EMBEDDED
    output = making.output or session.RESULTS / f"headmask-{file_name(name)}"
    path = request.model_path
    result = sweep(
        model,
        settings,
        output,
        model_name=name,
        model_hash=environment.model_identity(path, session.revision_of(model)),
        test_samples=test_samples,
        progress=not arguments.quiet,
        begin=lambda: print(
            calibration_time(model, settings, making.quick), file=sys.stderr, flush=True
        ),
    )
    folders = write_masks(result, output)
    report.write(result, output, picture=making.picture)
    print(report.summary(result))
    print(f"Masks: {', '.join(str(folder) for folder in folders)}")
    print(f"Try it: {report.evaluate_command(result, folders[0])}")
    print(f"Report: {output / 'report.md'} (report.json, candidates.csv, heads.png)")
    return 0
