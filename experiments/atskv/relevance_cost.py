"""What relevance costs: processor time of the predictor beside prefill and decode step.

Times are processor time of this process, so that other work on the machine does not count; run it
with one thread (``OMP_NUM_THREADS=1``). On a GPU the numbers would mean nothing: CPU only.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from catekv.commands.numbers import item_count, token_count
from catekv.errors import UserError
from catekv.evaluation.tables import markdown_table
from catekv.files import write_json
from catekv.methods import create
from catekv.methods.atskv.store import TierStore
from catekv.methods.base import Needs

if TYPE_CHECKING:
    from catekv.model import CateKVModel

STEPS = 32


@dataclass(frozen=True)
class Cost:
    """Seconds of processor time at one context length; medians of several rounds.

    Attributes:
        prefill: of the plain model. predictor: of the relevance of all layers after it.
        column_sums: of what the attention feature needs besides.
        step: decode step of the full cache. step_predictor: relevance per decode step, spread over
            the steps between two updates. step_features: adding up attention, per step.
        step_fetch: look-up of passive entries, per step.
    """

    tokens: int
    prefill: float
    predictor: float
    column_sums: float
    step: float
    step_predictor: float
    step_features: float
    step_fetch: float

    @property
    def prefill_share(self) -> float:
        """Predictor over prefill."""
        return self.predictor / self.prefill

    @property
    def step_share(self) -> float:
        """Predictor over decode step."""
        return self.step_predictor / self.step


def _decoding(model: CateKVModel, context: Any) -> Callable[[], None]:
    def run() -> None:
        model.generate_ids([5], context, STEPS, stop_token_ids=[])

    return run


def measure_cost(
    model: CateKVModel, predictor: str, tokens: int, rounds: int = 5, update_every: int = 16
) -> Cost:
    """The cost at one context length, on random tokens.

    Raises:
        UserError: the model is not on a CPU.
    """
    if model.device.type != "cpu":
        raise UserError("costs are measured in processor time; use --device cpu")
    vocabulary = model.model.get_input_embeddings().weight.shape[0]
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(4, vocabulary, (1, tokens), generator=generator)

    def method(**options: Any) -> Any:
        return create(
            "atskv", predictor=predictor, selection="top", hysteresis="quantile", **options
        )

    own = method(update_every=update_every)
    needs = Needs(column_sums=True, hidden_states=True)
    dense = model.observe(ids, needs=needs)
    layers = [dense.observed(layer) for layer in range(model.shape.layers)]
    context = dense.compress(own)
    stores = [layer.store for layer in context.cache.ragged_layers]

    def predict() -> None:
        for layer in layers:
            own.relevance(layer)

    def again() -> None:
        for store in stores:
            assert isinstance(store, TierStore)
            store.relevance()

    plain = _median(lambda: model.observe(ids, needs=Needs()), rounds)
    full, still, quiet, whole = (
        _median(_decoding(model, dense.compress(chosen)), rounds) / STEPS
        for chosen in (
            create("full"),
            method(update_every=0, fetch=0),
            method(update_every=0),
            # no update falls into the steps: features alone
            method(update_every=10 * STEPS),
        )
    )
    return Cost(
        tokens,
        plain,
        _median(predict, rounds),
        _median(lambda: model.observe(ids, needs=needs), rounds) - plain,
        full,
        _median(again, rounds) / update_every,
        whole - quiet,
        quiet - still,
    )


def _median(action: Callable[[], Any], rounds: int) -> float:
    """Median processor time of an action, after one that does not count."""
    action()
    found = []
    for _ in range(rounds):
        clock = time.process_time()
        action()
        found.append(time.process_time() - clock)
    return statistics.median(found)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of ``experiments/atskv/cost.py``."""
    parser.add_argument("--model_name", default="embedded", help="(default: embedded)")
    parser.add_argument("--predictor", help="folder (default: the embedded model's)")
    parser.add_argument(
        "--context_sizes", nargs="+", type=token_count, default=[512, 1024, 2048, 4096]
    )
    parser.add_argument("--rounds", type=item_count, default=5)
    parser.add_argument("--output", type=Path, help="JSON file")


def command(parsed: argparse.Namespace) -> int:
    """Measure and print; returns the exit code."""
    from catekv.evaluation.run.request import Request
    from catekv.evaluation.run.session import open_model
    from experiments.atskv.choices import shipped_predictor

    embedded = parsed.model_name == "embedded"
    predictor = parsed.predictor or (shipped_predictor() if embedded else None)
    if predictor is None:
        raise UserError("name the predictors of this model with --predictor FOLDER")
    model = open_model(Request(model=None if embedded else parsed.model_name, device="cpu"))
    costs = [measure_cost(model, predictor, size, parsed.rounds) for size in parsed.context_sizes]
    print(table(costs))
    if parsed.output is not None:
        rows = [asdict(one) for one in costs]
        write_json(parsed.output, rows, indent=1)
    return 0


def table(costs: list[Cost]) -> str:
    """Costs in Markdown, milliseconds of processor time."""
    header = [
        "tokens", "prefill ms", "predictor ms", "share", "column sums ms", "step ms",
        "predictor ms per step", "share", "features ms per step", "look-up ms per step",
    ]  # fmt: skip
    rows = [
        [
            str(cost.tokens),
            f"{1e3 * cost.prefill:.1f}",
            f"{1e3 * cost.predictor:.1f}",
            f"{100 * cost.prefill_share:.1f} %",
            f"{1e3 * cost.column_sums:.1f}",
            f"{1e3 * cost.step:.2f}",
            f"{1e3 * cost.step_predictor:.3f}",
            f"{100 * cost.step_share:.1f} %",
            f"{1e3 * cost.step_features:.2f}",
            f"{1e3 * cost.step_fetch:.2f}",
        ]
        for cost in costs
    ]
    return markdown_table(header, rows, left=())
