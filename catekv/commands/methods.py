"""The command ``catekv methods``."""

from __future__ import annotations

import argparse

from catekv.commands.arguments import add_plugin_argument


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``catekv methods``."""
    parser.add_argument("name", nargs="?", help="explain this method and its options")
    parser.add_argument(
        "--details", action="store_true", help="explain every method and its options"
    )
    parser.add_argument(
        "--markdown", action="store_true", help="print the tables of docs/methods.md"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    add_plugin_argument(parser)


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
