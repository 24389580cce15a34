"""The command ``catekv methods``."""

from __future__ import annotations

import argparse

from catekv.commands.arguments import LISTING

OPTIONS = (LISTING,)


def run(arguments: argparse.Namespace) -> int:
    """The command; returns the exit code."""
    from catekv.commands import method_list

    methods = method_list.list_methods([arguments.name] if arguments.name else [])
    if arguments.json:
        print(method_list.render_json(methods))
    elif arguments.name:
        print(method_list.render_details(methods[0]))
    else:
        print(method_list.render_table(methods))
    return 0
