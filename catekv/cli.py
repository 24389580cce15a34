"""``catekv``: thin commands over the functions of the package.

Exit codes: 0 done; 1 the run finished but samples failed; 2 wrong usage or input (one line on
stderr says what and what to do); 130 interrupted (records are kept).
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from catekv.errors import UserError
from catekv.version import __version__

USAGE_ERROR = 2
INTERRUPTED = 130

Handler = Callable[[argparse.Namespace], int]


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line with the remedy, and exit code 2.

    ``add_later`` adds options when the parser is first used: they may live in a module that is
    slow to import.
    """

    add_later: Callable[[Parser], None] | None = None

    def parse_known_args(self, args=None, namespace=None):  # type: ignore[no-untyped-def]
        if self.add_later is not None:
            add, self.add_later = self.add_later, None
            add(self)
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        self.exit(USAGE_ERROR, f"error: {message}; see `{self.prog} --help`\n")


def run_safely(action: Callable[[], int]) -> int:
    """Run a command; user mistakes become one line on stderr, interruption a kind word.

    Returns the exit code.
    """
    try:
        return action()
    except UserError as error:
        print("error: " + " ".join(str(error).split()), file=sys.stderr)
        return USAGE_ERROR
    except KeyboardInterrupt:
        print(
            "\ninterrupted; finished records are kept, the same command goes on with them",
            file=sys.stderr,
        )
        return INTERRUPTED
    except BrokenPipeError:
        # the reader of our output went away (`catekv ... | head`); nothing is wrong
        sys.stderr.close()
        return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of the command ``catekv`` and of ``python -m catekv``."""
    parser = make_parser()
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words:
        parser.print_help()
        return USAGE_ERROR
    parsed = parser.parse_args(words)
    parsed.command_line = shlex.join(["catekv", *words])
    handler: Handler = parsed.handler
    return run_safely(lambda: handler(parsed))


def make_parser() -> Parser:
    """The parser of all commands. Heavy modules are imported by the commands, not here."""
    parser = Parser(
        prog="catekv", description="Head-wise compressed KV caches: evaluate, measure, calibrate."
    )
    parser.add_argument("--version", action="version", version=f"catekv {__version__}")
    commands = parser.add_subparsers(
        title="commands", metavar="COMMAND", required=True, parser_class=Parser
    )

    def add(name: str, help_text: str, handler: Handler) -> Parser:
        command = commands.add_parser(name, help=help_text, description=help_text)
        command.set_defaults(handler=handler)
        return command

    _evaluate_arguments(add("evaluate", "Accuracy of methods on tasks, side by side.", _evaluate))
    _efficiency_arguments(
        add("efficiency", "Latency, memory and throughput of a method against full.", _efficiency)
    )
    _calibrate_parser(commands)
    _cokv_parser(commands)
    _atskv_parser(commands)
    _mask_arguments(add("mask", "Show, convert or make head masks.", _mask))
    _tasks_arguments(add("tasks", "List tasks, or build their samples as JSONL.", _tasks))
    _methods_arguments(add("methods", "List methods and their options.", _methods))
    _generate_arguments(add("generate", "Ask questions about a text file.", _generate))
    _plan_parser(commands)
    _sweep_parser(commands)
    _report_arguments(add("report", "Summary and report of runs, as HTML and Markdown.", _report))
    _doctor_arguments(
        add(
            "doctor", "Versions, devices, active kernels, fit of a model: for bug reports.", _doctor
        )
    )
    return parser


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Options that say which model runs, and how."""
    parser.add_argument(
        "--model", metavar="MODEL", help="local folder or hub name (default: the embedded model)"
    )
    parser.add_argument(
        "--dtype", default="auto", help="auto, float32, bfloat16 or float16 (default: auto)"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument(
        "--attention", default="auto", help="attention of the prefill: auto, sdpa, eager, ..."
    )


def add_method_arguments(parser: argparse.ArgumentParser, default: Sequence[str]) -> None:
    """Options that say which methods run, with which masks."""
    parser.add_argument(
        "--methods",
        nargs="+",
        default=list(default),
        metavar="METHOD",
        help=f"[LABEL=]NAME[:option=value,...] (default: {' '.join(default)}), or a JSON or YAML "
        "file with a list of methods; `catekv methods` lists names and options",
    )
    parser.add_argument(
        "--mask",
        action="append",
        default=[],
        metavar="[NAME=]SOURCE",
        help="head mask: folder, CSV, DuoAttention TSV, random:SEED or reversed; may be repeated, "
        "catekv then appears once per mask",
    )
    parser.add_argument("--ratio", type=float, help="r, share of adaptive heads (default: 0.4)")
    parser.add_argument(
        "--retention", type=float, help="eta, share of chunks adaptive heads keep (default: 1)"
    )
    parser.add_argument(
        "--budget", type=int, help="b, tokens a consistent head keeps (default: 2048)"
    )


def _evaluate_arguments(parser: argparse.ArgumentParser) -> None:
    add_model_arguments(parser)
    parser.add_argument(
        "--suite",
        default="",
        metavar="NAME",
        help="a named selection of tasks: mini (every family, small), paper, or a family, e.g. "
        "ruler or longbench",
    )
    parser.add_argument(
        "--tasks", nargs="+", default=[], metavar="TASK", help="task names or JSONL files"
    )
    parser.add_argument(
        "--lengths", nargs="+", default=[], metavar="TOKENS", help="prompt lengths in tokens"
    )
    parser.add_argument("--samples", type=int, help="samples per task and length")
    add_method_arguments(parser, ("full", "catekv"))
    parser.add_argument(
        "--preset",
        choices=("published", "recommended"),
        default="published",
        help="options of all methods as published (default), or as recommended: exact budgets and "
        "better calibration",
    )
    parser.add_argument(
        "--question",
        choices=("agnostic", "aware", "both"),
        help="question asked after compression (agnostic, default), inside the compressed prompt "
        "(aware; default with --paper), or both",
    )
    parser.add_argument("--seed", type=int, default=42, help="seed of the samples (default: 42)")
    parser.add_argument(
        "--chat-template", default="auto", help="auto, none, or a name or text with {prompt}"
    )
    parser.add_argument("--max-new-tokens", type=int, help="instead of the tasks' own allowance")
    parser.add_argument(
        "--task-option",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="option of the sample builders, e.g. essay_path=FILE or num_hops=2, for the tasks "
        "that have it; may be repeated",
    )
    parser.add_argument(
        "--prefill",
        choices=("auto", "shared", "separate"),
        default="auto",
        help="one prefill for all methods (shared), or one per method with least memory",
    )
    parser.add_argument(
        "--joint-decode",
        action="store_true",
        help="decode all methods of a sample as one batch: faster with many methods, without "
        "decode times per method",
    )
    parser.add_argument(
        "--batch-size",
        type=int,
        default=1,
        metavar="N",
        help="samples of similar length measured at once (default: 1); halved where memory lacks",
    )
    parser.add_argument(
        "--parallel",
        choices=("data", "tensor"),
        default="data",
        help="under torchrun: every process measures a part of the samples (data, default), or all "
        "share a model that is too large for one device (tensor)",
    )
    parser.add_argument(
        "--sanity",
        action="store_true",
        help="columns that test the tasks: the references themselves must score 100, an empty "
        "answer 0; other answers and the model without the context about 0",
    )
    parser.add_argument(
        "--max-errors",
        type=float,
        default=0.5,
        metavar="SHARE",
        help="give up when more than this share of the measurements failed (default: 0.5)",
    )
    parser.add_argument(
        "--chunk-size", type=int, default=8192, help="tokens per prefill chunk (default: 8192)"
    )
    parser.add_argument(
        "--paper",
        action="store_true",
        help="published settings: 12 RULER tasks, 96 samples, 131072 tokens, r 0.4, eta 1, b 2048, "
        "question inside the compressed prompt",
    )
    add_output_arguments(parser)


def add_output_arguments(parser: argparse.ArgumentParser) -> None:
    """Options that say where results go."""
    parser.add_argument("--output", type=Path, help="run directory (default: one under results/)")
    parser.add_argument(
        "--overwrite", action="store_true", help="delete the results in the run directory first"
    )
    parser.add_argument(
        "--resume",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="go on where an earlier run of the same configuration stopped (default)",
    )
    parser.add_argument(
        "--quiet", action="store_true", help="progress as plain lines for a log, no bar"
    )


def _evaluate(arguments: argparse.Namespace) -> int:
    from catekv.evaluation.session import Request, question_modes, run, split_list

    request = Request(
        model=arguments.model,
        suite=arguments.suite,
        tasks=split_list(arguments.tasks),
        lengths=integers("--lengths", split_list(arguments.lengths)),
        samples=arguments.samples,
        methods=tuple(arguments.methods),
        masks=tuple(arguments.mask),
        ratio=arguments.ratio,
        retention=arguments.retention,
        budget=arguments.budget,
        preset=arguments.preset,
        questions=question_modes(arguments.question),
        seed=arguments.seed,
        chat_template=arguments.chat_template,
        max_new_tokens=arguments.max_new_tokens,
        task_options=options_from("--task-option", arguments.task_option),
        prefill=arguments.prefill,
        joint_decode=arguments.joint_decode,
        batch_size=arguments.batch_size,
        sanity=arguments.sanity,
        max_errors=arguments.max_errors,
        chunk_size=arguments.chunk_size,
        dtype=arguments.dtype,
        device=arguments.device,
        attention=arguments.attention,
        parallel=arguments.parallel,
        paper=arguments.paper,
        output=arguments.output,
        overwrite=arguments.overwrite,
        resume=arguments.resume,
    )
    return run(request, command=arguments.command_line, quiet=arguments.quiet)


def integers(option: str, texts: Sequence[str]) -> tuple[int, ...]:
    """Whole numbers from words; ``UserError`` names the option and the bad word."""
    for text in texts:
        if not text.isdigit():
            raise UserError(f"{option} takes whole numbers of tokens, not {text!r}; e.g. 4096")
    return tuple(int(text) for text in texts)


def options_from(option: str, texts: Sequence[str]) -> dict[str, object]:
    """NAME=VALUE words as a dict; ``UserError`` names the option and the bad word."""
    from catekv.evaluation.specification import parse_value

    values: dict[str, object] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals:
            raise UserError(f"{option} takes NAME=VALUE, not {text!r}")
        values[name] = parse_value(value)
    return values


def _efficiency_arguments(parser: argparse.ArgumentParser) -> None:
    from catekv.evaluation.efficiency.arguments import NEW_TOKENS, add_measuring_arguments

    add_model_arguments(parser)
    parser.add_argument(
        "--lengths",
        "--length",
        nargs="+",
        default=["4096"],
        metavar="TOKENS",
        help="context lengths in tokens (default: 4096)",
    )
    add_method_arguments(parser, ("catekv",))
    parser.add_argument(
        "--new-tokens",
        type=int,
        default=NEW_TOKENS,
        help=f"decode steps measured per round (default: {NEW_TOKENS})",
    )
    parser.add_argument(
        "--batch-sizes",
        nargs="+",
        default=["1"],
        metavar="N",
        help="batch sizes (default: 1), or max: the largest that fits",
    )
    add_measuring_arguments(parser)
    parser.add_argument(
        "--chunk-size", type=int, default=8192, help="tokens per prefill chunk (default: 8192)"
    )


def _efficiency(arguments: argparse.Namespace) -> int:
    from catekv.evaluation.efficiency import command

    return command.run(arguments)


def _calibrate_parser(commands: argparse._SubParsersAction[Parser]) -> None:
    def add_arguments(parser: Parser) -> None:
        from catekv.evaluation import calibrate

        calibrate.add_arguments(parser)

    help_text = "Make head masks for a model from a reference set."
    parser = commands.add_parser("calibrate", help=help_text, description=help_text)
    parser.add_later = add_arguments
    parser.set_defaults(handler=_calibrate)


def _calibrate(arguments: argparse.Namespace) -> int:
    from catekv.evaluation import calibrate

    return calibrate.run(arguments)


def _cokv_parser(commands: argparse._SubParsersAction[Parser]) -> None:
    def add_arguments(parser: Parser) -> None:
        from catekv.cokv import command

        command.add_arguments(parser)

    help_text = "Score KV heads by a cooperative game (CoKV), choose alpha, show scores."
    parser = commands.add_parser("cokv", help=help_text, description=help_text)
    parser.add_later = add_arguments
    parser.set_defaults(handler=_cokv)


def _cokv(arguments: argparse.Namespace) -> int:
    from catekv.cokv import command

    return command.run(arguments)


def _atskv_parser(commands: argparse._SubParsersAction[Parser]) -> None:
    def add_arguments(parser: Parser) -> None:
        from catekv.atskv import command

        command.add_arguments(parser)

    help_text = "Train relevance predictors (ATSKV), show them."
    parser = commands.add_parser("atskv", help=help_text, description=help_text)
    parser.add_later = add_arguments
    parser.set_defaults(handler=_atskv)


def _atskv(arguments: argparse.Namespace) -> int:
    from catekv.atskv import command

    return command.run(arguments)


def _mask_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(
        title="actions", metavar="ACTION", required=True, parser_class=Parser, dest="action"
    )
    show = actions.add_parser("show", help="print which heads are adaptive")
    show.add_argument("path", type=Path)
    show.add_argument("--ratio", type=float, help="which mask of a folder")
    convert = actions.add_parser(
        "convert", help="DuoAttention pattern or stored statistics to mask files"
    )
    convert.add_argument("path", type=Path)
    convert.add_argument("output", type=Path)
    convert.add_argument("--ratios", type=float, nargs="+", required=True)
    random = actions.add_parser("random", help="a mask of random heads, for comparison")
    random.add_argument("output", type=Path)
    random.add_argument("--layers", type=int, required=True)
    random.add_argument("--kv-heads", type=int, required=True)
    random.add_argument("--ratio", type=float, required=True)
    random.add_argument("--seed", type=int, default=0)


def _mask(arguments: argparse.Namespace) -> int:
    from catekv.head_mask import HeadMask

    if arguments.action == "show":
        print(HeadMask.load(arguments.path, arguments.ratio).show())
    elif arguments.action == "convert":
        for ratio in arguments.ratios:
            print(HeadMask.load(arguments.path, ratio).save(arguments.output))
    else:
        if min(arguments.layers, arguments.kv_heads) < 1:
            raise UserError("a mask needs at least one layer and one KV head; give both above 0")
        shape = (arguments.layers, arguments.kv_heads)
        print(HeadMask.random(shape, arguments.ratio, arguments.seed).save(arguments.output))
    return 0


def _tasks_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", nargs="?", help="explain this task and its options")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--build", nargs="+", default=[], metavar="TASK", help="tasks to build")
    parser.add_argument(
        "--model", help="model whose tokenizer counts the tokens (default: the embedded model)"
    )
    parser.add_argument("--length", type=int, default=4096, help="tokens (default: 4096)")
    parser.add_argument("--samples", type=int, default=10, help="samples per task (default: 10)")
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("data/ruler/data"),
        help="root of MODEL/LENGTH/TASK/validation.jsonl (default: data/ruler/data)",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace files made differently")


def _tasks(arguments: argparse.Namespace) -> int:
    if not arguments.build:
        from catekv.evaluation import task_list

        described = task_list.list_tasks([arguments.name] if arguments.name else [])
        if arguments.json:
            print(task_list.render_json(described))
        elif arguments.name:
            print(task_list.render_details(described[0]))
        else:
            print(task_list.render_table(described))
        return 0
    from catekv.evaluation.session import Request, model_name, model_path
    from catekv.tasks.preparing import load_tokenizer, prepare

    if min(arguments.length, arguments.samples) < 1:
        raise UserError("--length and --samples must be at least 1")
    request = Request(model=arguments.model)
    paths = prepare(
        load_tokenizer(model_path(request)),
        arguments.output,
        model_name(request),
        tasks=arguments.build,
        lengths=[arguments.length],
        num_samples=arguments.samples,
        seed=arguments.seed,
        overwrite=arguments.overwrite,
    )
    print("\n".join(str(path) for path in paths))
    return 0


def _methods_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", nargs="?", help="explain this method and its options")
    parser.add_argument("--json", action="store_true", help="print JSON")


def _methods(arguments: argparse.Namespace) -> int:
    from catekv.evaluation import method_list

    methods = method_list.list_methods([arguments.name] if arguments.name else [])
    if arguments.json:
        print(method_list.render_json(methods))
    elif arguments.name:
        print(method_list.render_details(methods[0]))
    else:
        print(method_list.render_table(methods))
    return 0


def _generate_arguments(parser: argparse.ArgumentParser) -> None:
    add_model_arguments(parser)
    parser.add_argument("--context", type=Path, required=True, help="text file to read once")
    parser.add_argument("--question", action="append", required=True, help="may be repeated")
    parser.add_argument("--method", default="catekv", help="NAME[:option=value,...]")
    parser.add_argument("--mask", help="head mask for methods that take one")
    parser.add_argument("--ratio", type=float, help="r, share of adaptive heads (default: 0.4)")
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


def _generate(arguments: argparse.Namespace) -> int:
    from catekv.evaluation.session import Request, open_model, settings_for
    from catekv.sampling import Sampling
    from catekv.text_stream import stop_strings

    names = ("temperature", "top_k", "top_p", "seed")
    given = {name: getattr(arguments, name) for name in names}
    options = {name: value for name, value in given.items() if value is not None}
    Sampling(**options)  # wrong values are refused before anything is loaded
    stop_strings(arguments.stop)
    try:
        text = arguments.context.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {arguments.context} as text; give a text file") from error
    request = Request(
        model=arguments.model,
        methods=(arguments.method,),
        masks=(arguments.mask,) if arguments.mask else (),
        ratio=arguments.ratio,
        dtype=arguments.dtype,
        device=arguments.device,
        attention=arguments.attention,
    )
    model = open_model(request)
    spec = settings_for(request, model).methods[0]
    context = model.prefill(text, method=spec.create())
    print(
        f"{context.tokens} tokens read, {100 * context.kept_share():.1f}% kept, "
        f"{context.stored_bytes() / 1024**2:.1f} of {context.full_bytes() / 1024**2:.1f} MiB",
        file=sys.stderr,
    )
    options.update(max_new_tokens=arguments.max_new_tokens, stop=arguments.stop)
    for question in arguments.question:
        if arguments.stream:
            for piece in model.generate_stream(question, context, **options):
                print(piece, end="", flush=True)
            print()
        else:
            print(model.generate(question, context=context, **options))
    return 0


def _plan_parser(commands: argparse._SubParsersAction[Parser]) -> None:
    def add_arguments(parser: Parser) -> None:
        from catekv.evaluation import plan

        plan.add_arguments(parser)

    help_text = "Memory and speed to expect, without running anything."
    parser = commands.add_parser("plan", help=help_text, description=help_text)
    parser.add_later = add_arguments
    parser.set_defaults(handler=_plan)


def _plan(arguments: argparse.Namespace) -> int:
    from catekv.evaluation import plan

    return plan.run(arguments)


def _sweep_parser(commands: argparse._SubParsersAction[Parser]) -> None:
    def add_arguments(parser: Parser) -> None:
        from catekv.evaluation.sweep import command

        command.add_arguments(parser)

    help_text = "Many runs over models, methods, ratios, tasks and lengths, on one machine or many."
    parser = commands.add_parser("sweep", help=help_text, description=help_text)
    parser.add_later = add_arguments
    parser.set_defaults(handler=_sweep)


def _sweep(arguments: argparse.Namespace) -> int:
    from catekv.evaluation.sweep import command

    return command.run(arguments)


def _report_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "paths",
        nargs="+",
        type=Path,
        metavar="RUN",
        help="run directory, folder of runs (of a sweep), folder with efficiency.json, folder of "
        "head masks, or file of needle results",
    )
    parser.add_argument(
        "--output", type=Path, help="folder of report.html and report.md (default: the first RUN)"
    )
    parser.add_argument(
        "--rescore", action="store_true", help="score the stored predictions again first"
    )
    parser.add_argument(
        "--official", action="store_true", help="also write predictions in RULER's own forms"
    )
    parser.add_argument("--markdown", action="store_true", help="print Markdown")
    parser.add_argument(
        "--colours",
        default="blue-yellow",
        metavar="SCALE",
        help="of heat maps: blue-yellow (default, for every kind of colour vision) or "
        "red-yellow-green",
    )
    parser.add_argument(
        "--trained-length",
        type=int,
        metavar="TOKENS",
        help="longest texts the model was trained on: a line in the needle pictures",
    )


def _report(arguments: argparse.Namespace) -> int:
    from catekv.evaluation import report
    from catekv.evaluation.reporting.build import Options
    from catekv.evaluation.reporting.colours import check_scale

    options = Options(check_scale(arguments.colours), arguments.trained_length)
    written = report.report_on(
        arguments.paths, output=arguments.output, rescore=arguments.rescore, options=options
    )
    for group in written.groups:
        if len(written.groups) > 1:
            print(f"{group.title}\n")
        print(report.render(group.summary, markdown=arguments.markdown))
        if arguments.official:
            for run in group.runs:
                print("\n".join(map(str, report.export_official(run.path))))
    for problem in written.problems:
        print(f"left out: {problem}", file=sys.stderr)
    print(f"Report: {', '.join(map(str, written.files))}", file=sys.stderr)
    return 1 if written.problems else 0


def _doctor_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model", metavar="MODEL", help="local folder or hub name: can it be compressed here?"
    )
    parser.add_argument(
        "--mask", metavar="SOURCE", help="head mask, folder or file: does it fit the model?"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def _doctor(arguments: argparse.Namespace) -> int:
    from catekv.evaluation import doctor

    return doctor.run(arguments)
