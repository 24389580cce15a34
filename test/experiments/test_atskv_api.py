"""The hosted reference against a local server that speaks both interfaces."""

from __future__ import annotations

import importlib.util
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from catekv.commands.cli import Parser, run_safely
from catekv.errors import UserError
from catekv.tasks.core.sample import Sample
from experiments.atskv import api, experiment, outputs

for library in ("openai", "anthropic"):
    pytest.importorskip(library, reason="the extra api is not installed")


class Server(ThreadingHTTPServer):
    """Answers every question with the text behind its last ``note KEY``."""

    failures: int = 0
    status: int = 500
    message: str = "out of order"
    page: bool = False
    seen: list[dict[str, Any]]


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.server.seen.append({"path": self.path, "headers": dict(self.headers), **body})
        if self.server.page:
            self._send(200, "<html>a page</html>", "text/html")
            return
        if self.server.failures:
            self.server.failures -= 1
            self._send(self.server.status, {"error": {"type": "x", "message": self.server.message}})
            return
        answer = answer_to(body["messages"][0]["content"])
        if self.path.endswith("/chat/completions"):
            message = {"role": "assistant", "content": answer}
            choices = [{"index": 0, "finish_reason": "stop", "message": message}]
            usage = {"prompt_tokens": 100, "completion_tokens": 4, "total_tokens": 104}
            self._send(200, {"id": "1", "object": "chat.completion", "created": 1, "model": "m",
                             "choices": choices, "usage": usage})  # fmt: skip
        else:
            content = [{"type": "text", "text": answer}]
            usage = {"input_tokens": 100, "output_tokens": 4}
            message = {"id": "1", "type": "message", "role": "assistant", "model": "m"}
            end = {"stop_reason": "end_turn", "usage": usage}
            self._send(200, {**message, "content": content, **end})

    def _send(self, status: int, content: Any, kind: str = "application/json") -> None:
        payload = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(payload)))
        self.end_headers()
        self.wfile.write(payload)

    def log_message(self, *arguments: Any) -> None:
        pass


def answer_to(prompt: str) -> str:
    words = prompt.split()
    key = words[-1]
    for place, word in enumerate(words[:-2]):
        if word == "note" and words[place + 1] == key:
            return " ".join(words[place + 2 : place + 5])
    return "nothing"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    found = Server(("127.0.0.1", 0), Handler)
    found.seen = []
    thread = threading.Thread(target=found.serve_forever, daemon=True)
    thread.start()
    address = f"http://127.0.0.1:{found.server_address[1]}"
    monkeypatch.setenv("OPENAI_BASE_URL", f"{address}/v1")
    monkeypatch.setenv("ANTHROPIC_BASE_URL", address)
    for name in api.KEYS.values():
        monkeypatch.setenv(name, "secret")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    yield found
    found.shutdown()
    found.server_close()


def run(folder: Path, *words: str) -> int:
    parser = Parser()
    experiment.add_arguments(parser)
    fixed = ["--model_name", "embedded", "--context_sizes", "256", "--examples", "2", "--use_api"]
    parsed = parser.parse_args([*fixed, "--output_dir", str(folder), *words])
    return run_safely(lambda: experiment.command(parsed))


@pytest.mark.parametrize("model", ["claude-3-7-sonnet-20250219", "gpt-something"])
def test_answers_are_scored_and_nothing_else_is_claimed(
    server: Server, tmp_path: Path, model: str
) -> None:
    assert run(tmp_path, "--api_model", model, "--api_prices", "3", "15") == 0
    record = json.loads((tmp_path / outputs.API_RESULTS).read_text())
    assert [row["accuracy"] for row in record["rows"]] == [1.0, 1.0, 1.0]
    assert (record["calls"], record["tokens_read"], record["tokens_written"]) == (6, 600, 24)
    assert record["cost"] == pytest.approx((600 * 3 + 24 * 15) / 1e6)
    assert not any("memory" in key or "time_to" in key for row in record["rows"] for key in row)
    assert "100.00" in (tmp_path / outputs.API_TABLE).read_text()
    asked = server.seen[0]
    assert asked["model"] == model
    assert asked["max_tokens"] == 50
    wanted = "/v1/messages" if model.startswith("claude") else "/v1/chat/completions"
    assert asked["path"] == wanted
    assert not list(tmp_path.glob("*_results.json"))


def test_failed_calls_are_tried_again(server: Server, tmp_path: Path) -> None:
    server.failures = 1
    assert run(tmp_path, "--api_model", "m", "--benchmarks", "Synthetic") == 0
    assert len(server.seen) == 3


def test_what_stays_failed_is_null_with_a_reason(server: Server, tmp_path: Path) -> None:
    server.failures = 99
    words = ["--api_model", "m", "--benchmarks", "Synthetic", "--api_retries", "0"]
    assert run(tmp_path, *words) == 1
    (row,) = json.loads((tmp_path / outputs.API_RESULTS).read_text())["rows"]
    assert row["accuracy"] is None
    assert row["reason"].startswith("all calls failed: InternalServerError")
    assert len(row["failed"]) == 2


@pytest.mark.parametrize("status", [401, 404])
def test_a_refused_key_or_model_ends_the_run(
    server: Server, tmp_path: Path, status: int, capsys: pytest.CaptureFixture[str]
) -> None:
    server.failures, server.status = 99, status
    assert run(tmp_path, "--api_model", "m") == 2
    assert len(server.seen) == 1
    assert "the hosted model cannot be asked" in capsys.readouterr().err


class Scripted:
    """A client that says what it is told to, one thing per question."""

    def __init__(self, *said: api.Reply | api.CallError):
        self.said = list(said)

    def ask(self, prompt: str, new_tokens: int) -> api.Reply:
        reply = self.said.pop(0)
        if isinstance(reply, api.CallError):
            raise reply
        return reply


def few(count: int) -> list[Sample]:
    return [
        Sample("synthetic", index, "context ", "question ", "", ("x",), 5, 9, 0)
        for index in range(count)
    ]


def test_answers_before_an_error_that_ends_the_run_are_kept() -> None:
    kept: list[tuple[list[dict[str, Any]], int]] = []
    client = Scripted(
        *[api.Reply("x", 1, 1)] * 3, api.CallError("the key was withdrawn", final=True)
    )
    cells = [("A", 256, few(2)), ("A", 512, few(2)), ("B", 256, few(2))]
    with pytest.raises(UserError, match="the key was withdrawn"):
        api.reference(
            client, cells, 5, api.Limits(),
            keep=lambda rows, spent: kept.append(([*rows], spent.calls)),
        )  # fmt: skip
    assert [(len(rows), calls) for rows, calls in kept] == [(1, 2), (2, 4)]
    assert (kept[-1][0][1]["answered"], kept[-1][0][1]["failed"]) == (1, ["the key was withdrawn"])


def test_a_cost_that_is_not_known_ends_a_run_that_limits_it() -> None:
    client = Scripted(api.Reply("x", 0, 0))
    limits = api.Limits(cost=1.0, prices=(3.0, 15.0))
    rows, spent = api.reference(client, [("A", 256, few(2))], 5, limits)
    assert rows[0]["answered"] == 1
    assert "the cost is not known" in rows[0]["reason"]
    assert spent.cost(limits) is None


def test_sizes_beyond_the_limit_are_null_with_a_reason(server: Server, tmp_path: Path) -> None:
    words = ["--benchmarks", "Synthetic", "--context_sizes", "256", "9000", "--max_seq_len", "512"]
    assert run(tmp_path, "--api_model", "m", *words) == 0
    rows = json.loads((tmp_path / outputs.API_RESULTS).read_text())["rows"]
    assert [row["accuracy"] for row in rows] == [1.0, None]
    assert rows[1]["reason"] == "9000 tokens exceed --max_seq_len 512"


@pytest.mark.parametrize("model", ["claude-3-7-sonnet-20250219", "gpt-something"])
def test_a_page_instead_of_an_answer_is_no_traceback(
    server: Server, tmp_path: Path, model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    server.page = True
    assert run(tmp_path, "--api_model", model) == 2
    assert "_BASE_URL" in capsys.readouterr().err.strip().splitlines()[-1]


def test_a_key_that_the_server_repeats_reaches_no_file(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.failures, server.message = 99, "no funds behind secret"
    words = ["--api_model", "m", "--benchmarks", "Synthetic", "--api_retries", "0"]
    assert run(tmp_path, *words) == 1
    printed = "".join(capsys.readouterr())
    assert "no funds behind [key]" in (tmp_path / outputs.API_RESULTS).read_text()
    for text in (printed, *(path.read_text() for path in tmp_path.iterdir())):
        assert "secret" not in text


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--api_max_calls", "1"], "the limit of 1 calls was reached"),
        (["--api_max_cost", "0.0001", "--api_prices", "3", "15"], "the limit of 0.0001 was"),
        (["--api_max_seconds", "0.000001"], "seconds was reached"),
    ],
)
def test_limits_end_the_run_with_what_there_is(
    server: Server, tmp_path: Path, words: list[str], reason: str
) -> None:
    assert run(tmp_path, "--api_model", "m", "--benchmarks", "Synthetic", *words) == 1
    (row,) = json.loads((tmp_path / outputs.API_RESULTS).read_text())["rows"]
    assert reason in row["reason"]
    assert row["answered"] < 2
    assert len(server.seen) == row["answered"]


@pytest.mark.parametrize("model", ["claude-3-7-sonnet-20250219", "gpt-something"])
def test_without_a_key_it_says_so_in_one_line(
    model: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name in api.KEYS.values():
        monkeypatch.delenv(name, raising=False)
    assert run(tmp_path / "out", "--api_model", model) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert api.KEYS[api.provider_of(model, "auto")] in line
    assert not (tmp_path / "out").exists()


def test_a_missing_library_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "x")
    monkeypatch.setitem(__import__("sys").modules, "openai", None)
    with pytest.raises(UserError, match=r"catekv\[api\]"):
        api.make_client("m", "openai", api.Limits())


def test_the_model_name_tells_the_interface_unless_one_is_named() -> None:
    assert api.provider_of("Claude-x", "auto") == "anthropic"
    assert api.provider_of("llama", "auto") == "openai"
    assert api.provider_of("claude-x", "openai") == "openai"
    assert importlib.util.find_spec("openai") is not None


def test_the_prompt_is_the_whole_sample() -> None:
    sample = Sample("synthetic", 0, "context ", "question ", "prefix", ("x",), 5, 9, 0)
    assert api.prompt_of(sample) == "context question prefix"


@pytest.mark.parametrize("values", [{"calls": 0}, {"seconds": 0.0}, {"retries": -1}])
def test_limits_must_allow_something(values: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="must be above 0"):
        api.Limits(**values)
