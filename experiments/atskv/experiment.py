"""The comparison's command: every method on every benchmark at every context size."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from catekv.commands.numbers import item_count, token_count
from catekv.commands.schema import Group
from catekv.errors import UserError
from catekv.evaluation.run import request as evaluated
from catekv.methods import Method
from catekv.methods.atskv.method import ATSKV
from experiments.atskv.cells import Cell, empty_cell, filled_cell
from experiments.atskv.choices import (
    BENCHMARKS,
    METHODS,
    Benchmark,
    Predictor,
    benchmark,
    check_predictor,
    method,
    samples_of,
    shipped_predictor,
)
from experiments.atskv.figures import draw
from experiments.atskv.outputs import RELEVANCE, Output
from experiments.atskv.report import all_tables, results_text
from experiments.atskv.request import Request, refused

if TYPE_CHECKING:
    from catekv.model import CateKVModel
    from catekv.tasks.core.sample import Sample

DEFAULT_MODEL = "meta-llama/Llama-2-7b-hf"
#: relevance of the first prompt that atskv reads
Say = Callable[[str], None]
#: what is given as to an evaluation
SHARED = Group(
    evaluated.Request,
    ("seed", "device", "preset"),
    helps={"seed": "of generated samples (default: {default})", "preset": "of atskv"},
    separator="_",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """All flags; the first ones are the published ones."""
    from experiments.atskv.api import add_arguments as add_api_arguments

    parser.add_argument(
        "--model_name", default=DEFAULT_MODEL,
        help="folder or hub name, or embedded (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--max_seq_len", type=token_count, default=4096, help="larger contexts are left out"
    )
    parser.add_argument("--use_fp16", action="store_true", help="float16 weights and cache")
    parser.add_argument(
        "--methods", nargs="+", default=list(METHODS),
        help=f"of {', '.join(METHODS)}, or any of `catekv methods` as NAME:option=value",
    )  # fmt: skip
    parser.add_argument(
        "--context_sizes", nargs="+", type=token_count, default=[512, 1024, 2048, 4096],
        help="tokens of prompt and answer (default: 512 1024 2048 4096)",
    )  # fmt: skip
    parser.add_argument("--output_dir", default="./outputs", help="(default: ./outputs)")
    SHARED.add(parser)
    add_api_arguments(parser)
    parser.add_argument(
        "--benchmarks", nargs="+", default=list(BENCHMARKS),
        help=f"{', '.join(BENCHMARKS)} (default), or tasks of `catekv tasks`",
    )  # fmt: skip
    parser.add_argument("--examples", type=item_count, default=5, help="per benchmark and size")
    parser.add_argument("--max_new_tokens", type=token_count, default=50, help="of an answer")
    parser.add_argument(
        "--data", default="",
        help="rows of LongBench and ZeroSCROLLS: a file or folder, hub, built-in (generated), or "
        "auto: CATEKV_DATA, then the hub (default; for the embedded model: built-in)",
    )  # fmt: skip
    parser.add_argument(
        "--predictor", help="folder of `catekv atskv train` (embedded model: it has its own)"
    )
    parser.add_argument("--train", action="store_true", help="train a predictor on Synthetic first")
    parser.add_argument("--untrained", action="store_true", help="run atskv with random weights")
    parser.add_argument("--no_plots", action="store_true", help="no figures")


def request_of(parsed: argparse.Namespace) -> Request:
    """The request that the flags describe.

    Raises:
        UserError: whatever can be seen to be wrong before a model is loaded.
    """
    given = [name for name in ("predictor", "train", "untrained") if getattr(parsed, name)]
    if len(given) > 1:
        raise UserError(f"give one of {', '.join('--' + name for name in given)}")
    return Request(
        parsed.model_name,
        parsed.max_seq_len,
        parsed.use_fp16,
        tuple(dict.fromkeys(parsed.methods)),
        tuple(dict.fromkeys(parsed.context_sizes)),
        Path(parsed.output_dir),
        parsed.seed,
        tuple(dict.fromkeys(parsed.benchmarks)),
        parsed.examples,
        parsed.max_new_tokens,
        parsed.data,
        parsed.predictor,
        parsed.train,
        parsed.untrained,
        parsed.preset,
        parsed.device,
        not parsed.no_plots,
        {name: str(value) if isinstance(value, Path) else value
         for name, value in vars(parsed).items()},
    )  # fmt: skip


def run(request: Request, say: Say = lambda text: None) -> Output:
    """Measure everything and write the files.

    Raises:
        UserError: wrong input; the message says what and what to do.
    """
    started, clock = datetime.now(timezone.utc), time.perf_counter()
    output = Output(request.output, [], request.configuration)
    output.prepare()
    (request.output / RELEVANCE).unlink(missing_ok=True)
    named = (benchmark(name, request.rows) for name in request.benchmarks)
    chosen = {one.name: one for one in named}.values()
    for name in request.methods:
        # names and options, before a model is loaded
        method(name, Predictor(untrained=True))
    if _needs_predictor(request):
        _predictor(request)
    model = _open(request)
    output.configuration |= _identity(request, model)
    work = [
        (one, size, _samples(model, request, one, size)) for one in chosen for size in request.sizes
    ]
    predictor = _ready_predictor(request, model, output, say)
    compared = {name: method(name, predictor, request.preset) for name in request.methods}
    for compressing in compared.values():
        compressing.validate(model.shape)
        compressing.validate_model(output.configuration["model_hash"])
    for one, size, samples in work:
        output.cells += _measure_size(model, request, one, size, samples, compared, output, say)
        output.write_results()
    _finish(output, started, time.perf_counter() - clock, request.plots)
    return output


def _finish(output: Output, started: datetime, duration: float, plots: bool) -> None:
    """Figures, tables, ``results.md`` and ``experiment_summary.json``."""
    output.duration, output.timestamp = duration, started.isoformat(timespec="seconds")
    output.write_results()
    drawn = draw(output) if plots else []
    output.write_text("results.md", results_text(output, drawn))
    output.write_summary()


def _needs_predictor(request: Request) -> bool:
    """Whether a method is ``atskv`` without a predictor of its own."""
    return any(
        isinstance(found := method(name, Predictor(untrained=True)), ATSKV)
        and found.predictor is None
        and "untrained=" not in name
        for name in request.methods
    )


def _predictor(request: Request) -> Predictor | None:
    """Where ``atskv`` has its predictor from; None: it is to be trained."""
    if request.train:
        return None
    folder = request.predictor
    if folder is None and request.embedded and not request.untrained:
        folder = shipped_predictor()
    found = Predictor(folder, request.untrained)
    method("atskv", found)  # refuses a missing or damaged one
    return found


def _ready_predictor(request: Request, model: CateKVModel, output: Output, say: Say) -> Predictor:
    if not _needs_predictor(request):
        return Predictor()
    if request.train and not any(size <= _limit(request, model) for size in request.sizes):
        raise UserError("--train needs a context size within --max_seq_len and the model's window")
    found = _predictor(request)
    if found is None:
        found = Predictor(_trained(request, model, output, say))
    if found.folder is not None:
        check_predictor(found.folder, output.configuration["model_hash"])
        output.copy_thresholds(found.folder)
    return found


def _trained(request: Request, model: CateKVModel, output: Output, say: Say) -> str:
    """Train on the synthetic benchmark's texts, of another random stream than the test's."""
    from catekv import tasks
    from catekv.calibration.relevance.reading import texts_of
    from catekv.calibration.relevance.training import train
    from catekv.commands.atskv import STREAM
    from catekv.methods.atskv.files import save_predictors

    say("training the relevance predictors on the synthetic benchmark")
    sizes = [size for size in request.sizes if size <= _limit(request, model)][:3]
    built = [
        sample
        for size in sizes
        for sample in tasks.build("synthetic", model.tokenizer, size, 10, 42, stream=STREAM)
    ]
    meta = {"model": request.model, "model_hash": output.configuration["model_hash"],
            "tasks": ["synthetic"], "lengths": sizes, "samples": 10, "stream": STREAM}  # fmt: skip
    found = train(model, texts_of(model, built), meta=meta)
    folder = request.output / "relevance_predictor"
    save_predictors(folder, found.predictors)
    return str(folder)


def _open(request: Request) -> CateKVModel:
    from catekv.evaluation.run.session import open_model

    dtype = "float16" if request.fp16 else "auto"
    asked = evaluated.Request(model=request.model_path, dtype=dtype, device=request.device)
    return open_model(asked, for_text=True)


def _identity(request: Request, model: CateKVModel) -> dict[str, Any]:
    import torch
    import transformers

    from catekv.evaluation.records import environment
    from catekv.evaluation.run.session import revision_of
    from catekv.version import __version__

    return {
        "model": "embedded" if request.embedded else request.model,
        "model_hash": environment.model_identity(request.model_path, revision_of(model)),
        "rows": request.rows,
        "dtype": str(model.dtype).removeprefix("torch."),
        "device": str(model.device),
        "threads": torch.get_num_threads(),
        "versions": {
            "catekv": __version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
    }


def _limit(request: Request, model: CateKVModel) -> int:
    from catekv.models.compat import context_window

    return min(request.max_seq_len, context_window(model.config) or request.max_seq_len)


def _samples(
    model: CateKVModel, request: Request, chosen: Benchmark, size: int
) -> list[Sample] | str:
    """The samples of a benchmark and size, or why there are none.

    Raises:
        UserError: no data, or a size that is too short for the task.
    """
    from catekv.models.compat import context_window

    return refused(request, size, context_window(model.config)) or samples_of(
        chosen, model.tokenizer, size, request.examples, request.seed, request.new_tokens
    )


def _measure_size(
    model: CateKVModel,
    request: Request,
    chosen: Benchmark,
    size: int,
    samples: list[Sample] | str,
    compared: dict[str, Method],
    output: Output,
    say: Say,
) -> list[Cell]:
    """One cell per method."""
    from experiments.atskv.measuring import Measurement, measure
    from experiments.atskv.relevance_metrics import relevance_metrics

    if isinstance(samples, str):
        say(f"{chosen.name} {size}: left out, {samples}")
        return [empty_cell(chosen, name, size, samples) for name in compared]
    cells = []
    for name, one in compared.items():
        found: list[Measurement] = []
        failed: list[str] = []
        answered: list[Sample] = []
        # the first call of a method at a size loads and allocates what later ones find there
        for warm, sample in enumerate((samples[0], *samples)):
            try:
                measured = measure(model, sample, one, request.new_tokens)
            except (UserError, RuntimeError) as error:
                if warm:
                    failed.append(" ".join(str(error).split()))
                continue
            if warm:
                found.append(measured)
                answered.append(sample)
        cell = filled_cell(chosen, name, size, found, failed, samples)
        cells.append(cell)
        if isinstance(one, ATSKV) and answered and not (request.output / RELEVANCE).exists():
            output.write_json(RELEVANCE, relevance_metrics(model, answered[0], one))
        say(f"{chosen.name} {size} {name}: {cell.line()}")
    return cells


def command(parsed: argparse.Namespace) -> int:
    """Run the command; returns the exit code (1: some samples failed)."""
    if parsed.use_api:
        from experiments.atskv import api

        return api.command(parsed, request_of(parsed))
    request = request_of(parsed)
    if request.rows == "built-in":
        print(
            "note: LongBench and ZeroSCROLLS rows are generated (built-in), not the benchmarks' "
            "own; --data names others",
            file=sys.stderr,
        )
    log: list[str] = []

    def say(text: str) -> None:
        log.append(f"{datetime.now(timezone.utc):%H:%M:%S} {text}")
        print(text, file=sys.stderr)

    try:
        output = run(request, say)
    except KeyboardInterrupt:
        from catekv.commands.cli import INTERRUPTED

        say(f"interrupted; the JSON files in {request.output} hold the sizes measured before")
        return INTERRUPTED
    finally:
        # nothing is said before the folder is known to be writable
        if log:
            Output(request.output, []).write_text("log.txt", "\n".join(log) + "\n")
    print(all_tables(output))
    print(f"\nResults: {request.output / 'results.md'}")
    failed = [cell for cell in output.cells if cell.failed]
    if failed:
        print(f"error: samples failed, the first with {failed[0].failed[0]}", file=sys.stderr)
    return 1 if failed else 0
