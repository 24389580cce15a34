"""``catekv plan``: memory and speed to expect, without running anything."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from catekv.commands import plan_text
from catekv.commands.arguments import add_plugin_argument
from catekv.evaluation.plan import DTYPES, plan_for
from catekv.files import write_atomically
from catekv.prefill.devices import DEVICES


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``catekv plan``."""
    add = parser.add_argument
    add_plugin_argument(parser)
    add(
        "name",
        nargs="?",
        metavar="MODEL",
        help="known shape, model folder or .gguf file (default: embedded)",
    )
    add("--model", metavar="MODEL", help="the same, as the other commands take it")
    add("--length", type=int, required=True, help="prompt length in tokens")
    add("--batch-size", type=int, default=1, help="sequences at once (default: 1)")
    add("--method", default="catekv", help="[LABEL=]NAME[:option=value,...] (default: catekv)")
    add("--ratio", type=float, help="r, share of adaptive heads (catekv: 0.4)")
    add("--retention", type=float, help="eta, share of chunks adaptive heads keep (catekv: 1)")
    add("--budget", type=int, help="b, tokens a consistent head keeps (catekv: 2048)")
    add(
        "--option",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="another option of the method; may be repeated",
    )
    add("--mask", metavar="SOURCE", help="head mask to count heads in (default: the ratio alone)")
    add("--new-tokens", type=int, default=256, help="room after the context (default: 256)")
    add("--chunk-size", type=int, default=8192, help="tokens per prefill chunk (default: 8192)")
    add("--dtype", default="bfloat16", help=f"{', '.join(DTYPES)} (default: bfloat16)")
    add(
        "--device",
        default="auto",
        metavar="NAME",
        help=f"auto (what is here), {', '.join(DEVICES)} (default: auto)",
    )
    add("--device-memory", metavar="SIZE", help="memory of the device, e.g. 80GiB")
    add("--bandwidth", type=float, help="GB/s of the device's memory, for times")
    add("--json", action="store_true", help="print the plan as JSON")
    add("--output", type=Path, metavar="FILE", help="also write the plan as JSON into this file")


def run(arguments: argparse.Namespace) -> int:
    """The command ``catekv plan``; returns the exit code."""
    plan = plan_for(arguments)
    content = json.dumps(plan.to_dict(), indent=2, default=str) + "\n"
    print(content if arguments.json else plan_text.render(plan), end="")
    if arguments.output is not None:
        write_atomically(arguments.output, content)
    return 0
