"""The command ``catekv methods``."""

from __future__ import annotations

import argparse
from dataclasses import dataclass

from catekv.commands.arguments import LISTING, PLUGINS
from catekv.commands.schema import Group
from catekv.evaluation.options import option


@dataclass(frozen=True)
class Shown:
    """How much is shown of every method."""

    details: bool = option(False, "explain every method and its options")
    markdown: bool = option(False, "print the tables of docs/methods.md")


OPTIONS = (LISTING, Group(Shown), PLUGINS)


def run(arguments: argparse.Namespace) -> int:
    """The command; returns the exit code."""
    from catekv.commands import method_list

    methods = method_list.list_methods([arguments.name] if arguments.name else [])
    if arguments.json:
        print(method_list.render_json(methods))
    elif arguments.markdown:
        print(method_list.render_markdown(methods))
    elif arguments.name or arguments.details:
        print("\n\n".join(map(method_list.render_details, methods)))
    else:
        print(method_list.render_table(methods))
    return 0
