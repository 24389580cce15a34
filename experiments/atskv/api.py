"""A hosted model's answers to the same samples, as a reference for quality.

Nothing is known of a hosted model's cache, so there is no memory and no latency here, and no number
that was not asked for: what could not be measured is null, with the reason.
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from catekv.commands.numbers import item_count
from catekv.errors import UserError
from catekv.evaluation.tables import markdown_table

if TYPE_CHECKING:
    from catekv.tasks.core.sample import Sample
    from experiments.atskv.request import Request

DEFAULT_MODEL = "claude-3-7-sonnet-20250219"
PROVIDERS = ("auto", "anthropic", "openai")
KEYS = {"anthropic": "ANTHROPIC_API_KEY", "openai": "OPENAI_API_KEY"}


@dataclass(frozen=True)
class Limits:
    """What a run may cost.

    Args:
        calls: questions at most. seconds: of the whole run. cost: in the unit of ``prices``.
        prices: per million tokens read and written; None: cost is not known.
        retries: of one call, by the client library. timeout: seconds of one call.
    """

    calls: int = 200
    seconds: float = 1800.0
    cost: float | None = None
    prices: tuple[float, float] | None = None
    retries: int = 3
    timeout: float = 120.0

    def __post_init__(self) -> None:
        if self.calls < 1 or not self.seconds > 0 or not self.timeout > 0 or self.retries < 0:
            raise UserError(
                "--api_max_calls, --api_max_seconds and --api_timeout must be above 0, "
                "--api_retries at least 0"
            )
        if math.isnan(sum([self.seconds, self.timeout, self.cost or 0, *(self.prices or ())])):
            raise UserError(
                "--api_max_seconds, --api_timeout, --api_max_cost and --api_prices must be numbers"
            )
        if self.cost is not None and self.prices is None:
            raise UserError("--api_max_cost needs --api_prices READ WRITTEN per million tokens")


@dataclass(frozen=True)
class Reply:
    """An answer and the tokens that were counted for it."""

    text: str
    read: int
    written: int


class Client(Protocol):
    """Asks one question."""

    def ask(self, prompt: str, new_tokens: int) -> Reply:
        """The answer; ``CallError`` if there is none after all retries."""
        ...


class CallError(Exception):
    """A call failed. ``final``: every other one would fail as well."""

    def __init__(self, message: str, final: bool = False):
        super().__init__(message)
        self.final = final


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of the hosted reference."""
    parser.add_argument(
        "--use_api", action="store_true",
        help="ask a hosted model instead: a reference for quality, without memory and times",
    )  # fmt: skip
    parser.add_argument("--api_model", default=DEFAULT_MODEL, help="(default: %(default)s)")
    parser.add_argument(
        "--api_provider", default="auto", choices=PROVIDERS,
        help="anthropic, or openai for any OpenAI-compatible server; auto: by the model's name",
    )  # fmt: skip
    parser.add_argument("--api_max_calls", type=item_count, default=200, help="questions at most")
    parser.add_argument("--api_max_seconds", type=float, default=1800, help="of the whole run")
    parser.add_argument("--api_max_cost", type=float, help="no call after this; needs --api_prices")
    parser.add_argument(
        "--api_prices", nargs=2, type=float, metavar=("READ", "WRITTEN"),
        help="per million tokens read and written",
    )  # fmt: skip
    parser.add_argument("--api_retries", type=int, default=3, help="of one call (default: 3)")
    parser.add_argument("--api_timeout", type=float, default=120, help="seconds of one call")


def provider_of(model: str, provider: str) -> str:
    """``anthropic`` or ``openai``."""
    if provider != "auto":
        return provider
    return "anthropic" if model.lower().startswith("claude") else "openai"


def make_client(model: str, provider: str, limits: Limits) -> Client:
    """A client of the official library; base URL and key come from the environment
    (``ANTHROPIC_BASE_URL``, ``ANTHROPIC_API_KEY``, ``OPENAI_BASE_URL``, ``OPENAI_API_KEY``).

    Raises:
        UserError: no key, or the library is not installed.
    """
    if not os.environ.get(KEYS[provider]):
        raise UserError(
            f"--use_api with {model} needs a key in the environment variable {KEYS[provider]}; "
            "nothing was asked and no numbers were made up"
        )
    try:
        if provider == "anthropic":
            return _Anthropic(model, limits)
        return _OpenAI(model, limits)
    except ImportError as error:
        raise UserError(
            f"--use_api needs the {provider} library; install it with pip install 'catekv[api]'"
        ) from error


class _Anthropic:
    def __init__(self, model: str, limits: Limits):
        import anthropic

        self.library, self.model = anthropic, model
        self.client = anthropic.Anthropic(max_retries=limits.retries, timeout=limits.timeout)

    def ask(self, prompt: str, new_tokens: int) -> Reply:
        messages: Any = [{"role": "user", "content": prompt}]
        try:
            reply = self.client.messages.create(
                model=self.model, max_tokens=new_tokens, messages=messages
            )
        except self.library.APIError as error:
            raise _failure(error) from error
        _check_reply(reply, "ANTHROPIC_BASE_URL")
        text = "".join(getattr(part, "text", "") for part in reply.content)
        return Reply(text, reply.usage.input_tokens, reply.usage.output_tokens)


class _OpenAI:
    def __init__(self, model: str, limits: Limits):
        import openai

        self.library, self.model = openai, model
        self.client = openai.OpenAI(max_retries=limits.retries, timeout=limits.timeout)

    def ask(self, prompt: str, new_tokens: int) -> Reply:
        messages: Any = [{"role": "user", "content": prompt}]
        try:
            reply = self.client.chat.completions.create(
                model=self.model, max_tokens=new_tokens, temperature=0.0, messages=messages
            )
        except self.library.APIError as error:
            raise _failure(error) from error
        _check_reply(reply, "OPENAI_BASE_URL")
        if not reply.choices:
            raise CallError("the server sent no answer")
        usage = reply.usage
        read, written = (usage.prompt_tokens, usage.completion_tokens) if usage else (0, 0)
        return Reply(reply.choices[0].message.content or "", read, written)


def _failure(error: Exception) -> CallError:
    status = getattr(error, "status_code", None)
    text = " ".join(str(error).split())
    for key in map(os.environ.get, KEYS.values()):
        # a server may repeat what it refuses, and errors are written to files; placeholders for
        # servers without keys are shorter
        if key and len(key) > 5:
            text = text.replace(key, "[key]")
    return CallError(f"{type(error).__name__}: {text}", final=status in (401, 403, 404))


def _check_reply(reply: Any, variable: str) -> None:
    """The libraries hand over as text what is no JSON, such as the page of a web server."""
    if isinstance(reply, str):
        raise CallError(f"the server's reply is no JSON; check {variable}", final=True)


@dataclass
class Spent:
    """What a run has used; ``uncounted`` answers came without their numbers of tokens."""

    started: float
    calls: int = 0
    read: int = 0
    written: int = 0
    uncounted: int = 0

    def cost(self, limits: Limits) -> float | None:
        """In the unit of the prices; None where it is not known."""
        if limits.prices is None or self.uncounted:
            return None
        return (self.read * limits.prices[0] + self.written * limits.prices[1]) / 1e6

    def exhausted(self, limits: Limits, clock: Callable[[], float] = time.monotonic) -> str | None:
        """Which limit forbids another call; None: none."""
        if self.calls >= limits.calls:
            return f"the limit of {limits.calls} calls was reached"
        if clock() - self.started >= limits.seconds:
            return f"the limit of {limits.seconds:g} seconds was reached"
        if limits.cost is not None and self.uncounted:
            return "the server does not say how many tokens it counts, so the cost is not known"
        cost = self.cost(limits)
        if limits.cost is not None and cost is not None and cost >= limits.cost:
            return f"the limit of {limits.cost:g} was reached"
        return None


def prompt_of(sample: Sample) -> str:
    """A sample as plain text; the interfaces have turns of their own."""
    return sample.context + sample.question + sample.answer_prefix


def reference(
    client: Client,
    cells: Iterable[tuple[str, int, list[Sample] | str]],
    new_tokens: int,
    limits: Limits,
    say: Callable[[str], None] = lambda text: None,
    keep: Callable[[list[dict[str, Any]], Spent], None] = lambda rows, spent: None,
) -> tuple[list[dict[str, Any]], Spent]:
    """Ask everything that the limits allow.

    Args:
        cells: benchmark, size and samples, or why there are none.
        keep: called with what there is after every cell, and before an error that ends the run.

    Returns:
        A row per cell: ``accuracy`` (mean score of the answers that came, None without any),
        ``samples``, ``asked``, ``failed`` and ``reason``; and what was spent.

    Raises:
        UserError: the server refuses the key or the model.
    """
    spent = Spent(time.monotonic())
    rows: list[dict[str, Any]] = []
    for name, size, given in cells:
        samples = [] if isinstance(given, str) else given
        asked = _ask(client, samples, new_tokens, limits, spent)
        reason = given if isinstance(given, str) else asked.reason
        if not asked.scores and reason is None:
            reason = f"all calls failed: {asked.failed[0]}" if asked.failed else "no samples"
        rows.append(
            {
                "benchmark": name,
                "context_length": size,
                "accuracy": statistics.fmean(asked.scores) if asked.scores else None,
                "samples": len(samples),
                "answered": len(asked.scores),
                "failed": asked.failed,
                "reason": reason,
                "answers": asked.answers,
            }
        )
        if asked.final is None or spent.calls > 1:
            keep(rows, spent)
        if asked.final is not None:
            raise UserError(f"the hosted model cannot be asked: {asked.final}") from asked.final
        say(f"{name} {size}: {rows[-1]['accuracy']} of {len(asked.scores)} answers")
    return rows, spent


@dataclass
class _Asked:
    """What came back for the samples of one cell."""

    scores: list[float] = field(default_factory=list)
    answers: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    reason: str | None = None
    final: CallError | None = None


def _ask(
    client: Client, samples: Iterable[Sample], new_tokens: int, limits: Limits, spent: Spent
) -> _Asked:
    """Ask samples until a limit is reached or the server wants no more."""
    from catekv import tasks

    asked = _Asked()
    for sample in samples:
        asked.reason = spent.exhausted(limits)
        if asked.reason is not None:
            break
        spent.calls += 1
        try:
            reply = client.ask(prompt_of(sample), new_tokens)
        except CallError as error:
            asked.failed.append(str(error))
            if error.final:
                asked.final = error
                break
            continue
        spent.read += reply.read
        spent.written += reply.written
        spent.uncounted += not reply.read + reply.written
        asked.scores.append(float(tasks.score(reply.text, sample)["official"]))
        asked.answers.append(reply.text)
    return asked


def command(parsed: argparse.Namespace, request: Request) -> int:
    """Run the reference; returns the exit code (1: not everything was answered)."""
    from catekv.commands.ruler_files import load_tokenizer
    from experiments.atskv.choices import benchmark, samples_of
    from experiments.atskv.outputs import API_RESULTS, API_TABLE, Output
    from experiments.atskv.request import refused

    limits = Limits(
        parsed.api_max_calls,
        parsed.api_max_seconds,
        parsed.api_max_cost,
        tuple(parsed.api_prices) if parsed.api_prices else None,
        parsed.api_retries,
        parsed.api_timeout,
    )
    provider = provider_of(parsed.api_model, parsed.api_provider)
    client = make_client(parsed.api_model, provider, limits)
    started = datetime.now(timezone.utc)
    output = Output(request.output, [], request.configuration)
    output.prepare()
    tokenizer = load_tokenizer(request.model_path)
    chosen = [benchmark(name, request.rows) for name in request.benchmarks]

    # all of them before the first question: nothing is paid for a run that lacks data
    cells = [
        (
            one.name,
            size,
            refused(request, size, None)
            or samples_of(one, tokenizer, size, request.examples, request.seed, request.new_tokens),
        )
        for one in chosen
        for size in request.sizes
    ]

    def say(text: str) -> None:
        print(text, file=sys.stderr)

    def keep(rows: list[dict[str, Any]], spent: Spent) -> None:
        record = {
            "kind": "quality reference of a hosted model: no memory, no latency",
            "api_model": parsed.api_model,
            "provider": provider,
            "timestamp": started.isoformat(timespec="seconds"),
            "limits": asdict(limits),
            "calls": spent.calls,
            "tokens_read": spent.read,
            "tokens_written": spent.written,
            "cost": spent.cost(limits),
            "rows": rows,
        }
        output.write_json(API_RESULTS, record)

    rows, _ = reference(client, cells, request.new_tokens, limits, say, keep)
    text = table(parsed.api_model, rows)
    output.write_text(API_TABLE, text + "\n")
    print(text)
    print(f"\nResults: {Path(parsed.output_dir) / API_RESULTS}")
    return 0 if all(row["answered"] == row["samples"] for row in rows) else 1


def table(model: str, rows: list[dict[str, Any]]) -> str:
    """Rows in Markdown."""
    body = []
    for row in rows:
        accuracy = "-" if row["accuracy"] is None else f"{100 * row['accuracy']:.2f}"
        answered = f"{row['answered']} of {row['samples']}"
        size, note = str(row["context_length"]), row["reason"] or ""
        body.append([row["benchmark"], size, accuracy, answered, note])
    header = ["Benchmark", "Size", "Accuracy (%)", "Answered", "Note"]
    return (
        f"Quality reference: {model}, a hosted model. No memory and no latency are known of it."
        f"\n\n{markdown_table(header, body, left=(0, -1))}"
    )
