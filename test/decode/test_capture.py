"""The order of things when a graph is recorded, on a stand-in for the CUDA runtime."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from catekv.decode import graph
from catekv.decode.graph import HostInvolvedError, WithoutHost

CPU = torch.device("cpu")


class Runtime:
    """Writes down what is done, on which stream, and whether something is being recorded."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.streams = ["main"]
        self.recording = False
        self.invalid = False

    def note(self, what: str) -> None:
        self.log.append(f"{self.streams[-1]}: {what}")


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch) -> Runtime:
    runtime = Runtime()

    class Stream:
        def __init__(self, name: Any = "side"):
            self.name = name if isinstance(name, str) else "side"

        def wait_stream(self, other: Any) -> None:
            runtime.note(f"{self.name} waits for {other.name}")

    class Graph:
        def capture_begin(self, pool: Any = None, capture_error_mode: str = "global") -> None:
            assert runtime.streams[-1] == "side", "the default stream cannot be recorded"
            assert capture_error_mode == "thread_local"
            runtime.recording = True
            runtime.note("begin")

        def capture_end(self) -> None:
            runtime.note("end")
            if runtime.invalid:
                runtime.invalid = False
                raise RuntimeError("capture invalidated")
            assert runtime.recording
            runtime.recording = False

    @contextlib.contextmanager
    def stream(target: Stream) -> Iterator[None]:
        runtime.streams.append(target.name)
        try:
            yield
        finally:
            runtime.streams.pop()

    def end_pool(device: int, pool: Any) -> None:
        runtime.note("end of pool")
        runtime.recording = False

    cuda = torch.cuda
    monkeypatch.setattr(cuda, "Stream", Stream)
    monkeypatch.setattr(cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(cuda, "stream", stream)
    monkeypatch.setattr(cuda, "device", lambda device: contextlib.nullcontext())
    monkeypatch.setattr(cuda, "current_device", lambda: 0)
    monkeypatch.setattr(cuda, "current_stream", lambda: Stream(runtime.streams[-1]))
    monkeypatch.setattr(cuda, "synchronize", lambda: runtime.note("synchronize"))
    monkeypatch.setattr(cuda, "empty_cache", lambda: runtime.note("empty cache"))
    monkeypatch.setattr(cuda, "memory_reserved", lambda: 1000 + 24 * len(runtime.log))
    monkeypatch.setattr(cuda, "graph_pool_handle", lambda: (0, 1))
    monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", end_pool, raising=False)
    monkeypatch.setattr(graph, "_streams", type(graph._streams)())
    return runtime


def test_a_recording_in_order(runtime: Runtime):
    counter = torch.zeros(1)

    def run() -> Tensor:
        runtime.note("run, recorded" if runtime.recording else "run")
        return counter.add_(1)

    recording = graph.record(run, lambda: runtime.note("rewind"), CPU)
    assert runtime.log == [
        "main: side waits for main",
        "side: run",
        "side: rewind",
        "main: main waits for side",
        "main: synchronize",
        "main: empty cache",
        "side: begin",
        "side: run, recorded",
        "side: end",
    ]
    assert recording.output is counter
    assert recording.nbytes == 3 * 24
    assert runtime.streams == ["main"]


def test_what_needs_the_host_is_found_before_anything_is_recorded(runtime: Runtime):
    values = torch.ones(3)
    with pytest.raises(HostInvolvedError, match="_local_scalar_dense"):
        graph.record(lambda: values * float(values.sum()), lambda: runtime.note("rewind"), CPU)
    assert runtime.log == [
        "main: side waits for main",
        "side: rewind",
        "main: main waits for side",
    ]


def test_a_recording_that_fails_tells_the_first_error_and_leaves_torch_usable(runtime: Runtime):
    def run() -> Tensor:
        if runtime.recording:
            runtime.invalid = True
            raise RuntimeError("operation not permitted when stream is capturing")
        return torch.zeros(1)

    with pytest.raises(RuntimeError, match="not permitted"):
        graph.record(run, lambda: None, CPU)
    # a second recording, which succeeds, brings the default generator out of the first one
    assert runtime.log[-5:] == [
        "side: begin",
        "side: end",
        "side: end of pool",
        "side: begin",
        "side: end",
    ]
    assert not runtime.recording
    assert runtime.streams == ["main"]


def test_one_thread_records_on_one_stream(runtime: Runtime):
    assert graph._stream(CPU) is graph._stream(CPU)


def test_where_nothing_can_be_recorded():
    assert "CUDA" in (graph.why_not(CPU) or "")
    assert graph.why_not(torch.device("cuda", 0)) is None


X = torch.arange(6.0).view(2, 3)


@pytest.mark.parametrize(
    "what",
    [
        lambda: X.sum().item(),
        lambda: bool(X[0, 0] > 1),
        lambda: X.nonzero(),
        lambda: X[X > 2],
        lambda: X.masked_select(X > 2),
        lambda: X.unique(),
        lambda: torch.equal(X, X),
        lambda: X.repeat_interleave(torch.tensor([1, 2, 1]), dim=1),
        lambda: X.clone().index_put_((X > 2,), torch.zeros(())),
        lambda: torch.tensor([1, 2]),
        lambda: X.to("meta"),
    ],
)
def test_operations_that_involve_the_host(what: Any):
    what()
    with pytest.raises(HostInvolvedError), WithoutHost(CPU):
        what()


@pytest.mark.parametrize(
    "what",
    [
        lambda: X + 1.5,
        lambda: X.masked_fill(X > 2, -torch.inf),
        lambda: X[:, torch.arange(2)],
        lambda: X.index_select(1, torch.zeros(2, dtype=torch.long)),
        lambda: X.repeat_interleave(2, dim=0),
        lambda: X.half().float().clone().copy_(X),
        lambda: torch.full((2,), 3.0).add_(1),
        lambda: torch.where(X > 1, X, 0.0).softmax(-1) @ X.T,
    ],
)
def test_operations_that_do_not(what: Any):
    with WithoutHost(CPU):
        what()


def test_a_device_without_an_index_is_that_of_its_tensors(monkeypatch: pytest.MonkeyPatch):
    """``cuda`` and ``cuda:0`` differ to torch, and a model may have either."""

    class Empty:
        device = torch.device("cuda", 0)

    monkeypatch.setattr(torch, "empty", lambda *size, device: Empty())
    assert graph.WithoutHost(torch.device("cuda")).device == torch.device("cuda:0")
