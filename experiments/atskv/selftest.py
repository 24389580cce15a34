"""Checks of ATSKV's components on tiny inputs, for people who want to see them pass."""

from __future__ import annotations

import argparse
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from catekv import kernels, methods
from catekv.errors import UserError
from catekv.files import check_folder, read_text, write_atomically
from catekv.methods.atskv import control as control
from catekv.methods.atskv.relevance import (
    PredictorConfig,
    attention_feature,
    handcrafted_features,
    queries_that_see,
    untrained_predictor,
)

#: Published name of the log, and how its last line ends.
LOG, PASSED = "test_log.txt", "checks passed"
BATCH, TOKENS, HEADS = 2, 40, 4
CHECKS: dict[str, Callable[[], str]] = {}


class CheckError(Exception):
    """What a component does is not what it should."""


@dataclass(frozen=True)
class Result:
    """One check: what it found, or why it failed."""

    name: str
    passed: bool
    text: str
    seconds: float


def check(name: str) -> Callable[[Callable[[], str]], Callable[[], str]]:
    """Decorator: a check under its name. It returns a line of what it saw and raises on failure."""

    def add(function: Callable[[], str]) -> Callable[[], str]:
        CHECKS[name] = function
        return function

    return add


def expect(condition: bool, text: str) -> None:
    """Raise :class:`CheckError` unless a condition holds."""
    if not condition:
        raise CheckError(text)


def _random(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


@check("relevance predictor")
def _predictor() -> str:
    for kind in ("mlp", "linear"):
        config = PredictorConfig(64, HEADS, kind)
        found = untrained_predictor(config, 0, 0)(_random(BATCH, TOKENS, config.inputs))
        expect(found.shape == (BATCH, TOKENS), f"{kind}: shape {tuple(found.shape)}")
        expect(bool(((found >= 0) & (found <= 1)).all()), f"{kind}: outside [0, 1]")
    return f"{BATCH} x {TOKENS} in [0, 1], linear and two layers"


@check("attention features")
def _attention() -> str:
    sums = kernels.column_sums(_random(BATCH, HEADS, TOKENS, 8), _random(BATCH, 2, TOKENS, 8), 0.3)
    found = attention_feature(sums, queries_that_see(TOKENS))
    expect(found.shape == (BATCH, TOKENS, HEADS), f"shape {tuple(found.shape)}")
    total = sums.sum(dim=-1)
    expect(torch.allclose(total, torch.full_like(total, TOKENS), rtol=1e-3),
           "rows of attention do not add up to one")  # fmt: skip
    return f"{BATCH} x {TOKENS} x {HEADS}"


@check("handcrafted features")
def _handcrafted() -> str:
    found = handcrafted_features(_random(BATCH, TOKENS).abs(), 5, 64)
    expect(found.shape == (BATCH, TOKENS, 64), f"shape {tuple(found.shape)}")
    expect(abs(float(found[0, 10, 16]) - 10 / TOKENS) < 1e-6, "position is in another slot")
    expect(abs(float(found[0, 10, 19]) - 0.05) < 1e-6, "layer is in another slot")
    return f"{BATCH} x {TOKENS} x 64"


@check("threshold controller")
def _threshold() -> str:
    relevance = torch.tensor([0.05, 0.90, 0.40, 0.75, 0.20, 0.60, 0.10, 0.85, 0.30, 0.50])
    threshold = float(control.threshold(relevance, 0.7))
    expect(abs(threshold - 0.645) < 1e-5, f"threshold {threshold}")
    mask = control.relevance_mask(relevance, 0.7)
    expect(mask.dtype == torch.bool, "the mask is not binary")
    expect(mask.nonzero().squeeze(-1).tolist() == [1, 3, 7], "other tokens are kept")
    levels = [control.quantile_level(pressure) for pressure in (0.0, 1.0)]
    expect(levels[0] < levels[1], "more pressure keeps more")
    return f"threshold {threshold:.3f}; pressure keeps fewer"


@check("momentum mask")
def _momentum() -> str:
    soft, steps = torch.ones(1), 0
    while bool(soft > 0.5):
        soft, steps = control.momentum(soft, torch.zeros(1, dtype=torch.bool)), steps + 1
    expect(steps == 4, f"dropped after {steps} steps")
    return "a dropped token leaves after 4 steps"


@check("factory")
def _factory() -> str:
    from experiments.atskv.choices import METHODS, Predictor, method

    for name in METHODS:
        method(name, Predictor(untrained=True))
    try:
        method("atskv", Predictor())
    except UserError:
        return f"{len(METHODS)} methods; atskv without a predictor is refused"
    raise CheckError("atskv without a predictor was accepted")


@check("two tiers")
def _tiers() -> str:
    from catekv.methods.atskv.lsh import random_projection
    from catekv.methods.atskv.tiers import TwoTiers

    keys, values = _random(2, 1, 2, TOKENS, 8)
    valid = torch.ones(1, TOKENS, dtype=torch.bool)
    active = torch.arange(TOKENS)[None] % 3 == 0
    projection = random_projection(2, 8, 0, 0)
    tiers = TwoTiers.split(keys, values, active, valid, projection, 3)
    for wanted in (~active, valid, active):
        tiers.fetch(_random(1, HEADS, 1, 8))
        tiers = tiers.move(wanted)
        seen = sorted(tiers.columns[0].tolist() + tiers.passive[0].columns.tolist())
        expect(seen == list(range(TOKENS)), "active and passive tokens are not all tokens")
    device, passive = tiers.nbytes()
    return f"no token lost over 3 moves; {device} bytes active, {passive} passive"


@check("sparse cache on a tiny GPT-2")
def _integration() -> str:
    from transformers import GPT2Config

    from catekv.model import CateKVModel

    config = GPT2Config(vocab_size=50, n_positions=128, n_embd=32, n_layer=2, n_head=HEADS,
                        bos_token_id=None, eos_token_id=None)  # fmt: skip
    model = CateKVModel.from_config(config, dtype="float32", device="cpu")
    method: Any = methods.create(
        "atskv", untrained=True, init_tokens=2, recent_tokens=4, update_every=2
    )
    ids = torch.randint(0, 50, (1, TOKENS), generator=torch.Generator().manual_seed(1))
    context = model.prefill(ids, method=method)
    answer = model.generate_ids([3], context, 8, stop_token_ids=[]).tokens
    expect(len(answer) == 8, f"{len(answer)} of 8 tokens came")
    from experiments.atskv.measuring import active_share, tier_bytes

    tiers = tier_bytes(context)
    memory = {
        "total_memory_mb": (tiers.device + tiers.passive) / 2**20,
        "active_memory_mb": tiers.active / 2**20,
        "sparsity": 1 - active_share(context),
    }
    expect(0.4 < memory["sparsity"] < 0.8, f"sparsity {memory['sparsity']:.2f}")
    expect(context.kept_share() == 1.0, "tokens were lost")
    expect(memory["active_memory_mb"] < memory["total_memory_mb"], "nothing is passive")
    return ", ".join(f"{name} {value:.3f}" for name, value in memory.items())


@check("training")
def _training() -> str:
    from transformers import GPT2Config

    from catekv.calibration.relevance.reading import Text
    from catekv.calibration.relevance.training import TrainingSettings, train
    from catekv.model import CateKVModel

    config = GPT2Config(vocab_size=50, n_positions=128, n_embd=32, n_layer=2, n_head=HEADS,
                        bos_token_id=None, eos_token_id=None)  # fmt: skip
    model = CateKVModel.from_config(config, dtype="float32", device="cpu")
    draws = torch.randint(0, 50, (4, 32), generator=torch.Generator().manual_seed(2)).tolist()
    texts = [Text(tuple(row[:26]), tuple(row[26:])) for row in draws]
    curve = train(model, texts, (), TrainingSettings(epochs=5, batch_tokens=8)).curve
    first, last = curve[0]["train"], curve[-1]["train"]
    assert first is not None
    assert last is not None
    expect(last < first, f"the loss rose from {first:.4f} to {last:.4f}")
    return f"loss {first:.4f} -> {last:.4f}"


def run() -> list[Result]:
    """All checks, in order."""
    found = []
    for name, function in CHECKS.items():
        clock = time.perf_counter()
        try:
            passed, text = True, function()
        except CheckError as error:
            passed, text = False, str(error)
        except Exception as error:
            place = traceback.extract_tb(error.__traceback__)[-1]
            passed, text = False, f"{type(error).__name__}: {error} ({place.name})"
        found.append(Result(name, passed, text, time.perf_counter() - clock))
    return found


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The one flag of the command."""
    parser.add_argument("--output_dir", help="folder for test_log.txt (default: none is written)")


def command(parsed: argparse.Namespace) -> int:
    """Run all checks and print a summary; returns 0 if all passed, else 1."""
    if parsed.output_dir:
        _check_log(Path(parsed.output_dir))
    results = run()
    lines = [
        f"{'PASS' if one.passed else 'FAIL'}  {one.name} ({one.seconds:.1f} s): {one.text}"
        for one in results
    ]
    passed = sum(one.passed for one in results)
    lines.append(f"{passed} of {len(results)} {PASSED}")
    text = "\n".join(lines)
    print(text)
    if parsed.output_dir:
        write_atomically(Path(parsed.output_dir) / LOG, text + "\n")
    return 0 if passed == len(results) else 1


def _check_log(folder: Path) -> None:
    """Before the checks run: whether their log may be written."""
    check_folder(folder)
    log = folder / LOG
    if log.exists() and not read_text(log).endswith(PASSED + "\n"):
        raise UserError(f"{log} is no log of these checks; move it away or choose another folder")
