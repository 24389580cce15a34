"""``catekv plan``: memory and speed to expect, without running anything."""

from __future__ import annotations

import argparse
import json

from catekv.commands import plan_text
from catekv.commands.arguments import PLUGINS
from catekv.commands.schema import Group
from catekv.evaluation.plan import DTYPES, Asked, plan_for
from catekv.evaluation.run.request import Request
from catekv.files import write_atomically
from catekv.prefill.devices import DEVICES

ASKED = Group(Asked)
REQUEST = Group(
    Request,
    ("model", "batch_size", "ratio", "retention", "budget", "chunk_size", "dtype", "device"),
    defaults={"dtype": "bfloat16"},
    helps={
        "model": "the same, as the other commands take it",
        "batch_size": "sequences at once (default: {default})",
        "dtype": f"{', '.join(DTYPES)} (default: {{default}})",
        "device": f"auto (what is here), {', '.join(DEVICES)} (default: {{default}})",
    },
)
OPTIONS = (ASKED, REQUEST, PLUGINS)


def run(arguments: argparse.Namespace) -> int:
    """The command ``catekv plan``; returns the exit code."""
    plan = plan_for(REQUEST.read(arguments), ASKED.read(arguments))
    content = json.dumps(plan.to_dict(), indent=2, default=str) + "\n"
    print(content if arguments.json else plan_text.render(plan), end="")
    if arguments.output is not None:
        write_atomically(arguments.output, content)
    return 0
