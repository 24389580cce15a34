"""Damaged files and odd words on the command line: one line and exit code 2, nothing else lost."""

from __future__ import annotations

import contextlib
import functools
import io
import os
import random
import re
import resource
import signal
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

import pytest
from damaged_calls import Call, Playground, remaining
from sound_calls import CALLS, FOREIGN, run_words

#: commands whose findings may be bad ones, which ends with 1: samples failed, a model does not fit
WITH_FINDINGS = (
    "check",
    "doctor",
    "evaluate",
    "test/eval_acc.py",
    "experiments/atskv/run_experiment.py",
)
LONGEST_SECONDS = 60
MOST_BYTES = 8 << 30


class TooLongError(BaseException):
    """A call went on for more than ``LONGEST_SECONDS``; no handler of the toolkit catches it."""


@pytest.fixture
def playground(
    tmp_path_factory: pytest.TempPathFactory, capsys: pytest.CaptureFixture[str]
) -> Playground:
    @functools.cache
    def options(command: str) -> tuple[str, ...]:
        capsys.readouterr()
        assert run_words([*command.split(), "--help"]) == 0
        known = set(re.findall(r"--[a-z][\w-]*", capsys.readouterr().out)) - {"--help"}
        return tuple(sorted(known)) or ("--help",)

    return Playground(tmp_path_factory.mktemp("playground"), options)


@pytest.fixture(autouse=True)
def alone(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder of its own, no network, and of the harness's tasks only those that are named."""
    from lm_eval.tasks import TaskManager

    monkeypatch.chdir(tmp_path)
    # the variables count only before the first import
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path_factory.mktemp("datasets"))
    every = functools.partialmethod(TaskManager.__init__, include_defaults=False)
    monkeypatch.setattr(TaskManager, "__init__", every)


@pytest.fixture
def bounded() -> Iterator[None]:
    """Calls that may be stopped from outside, and that cannot take all memory of the machine."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise TooLongError

    handler = signal.signal(signal.SIGUSR1, stop)
    limits = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MOST_BYTES, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, limits)
    signal.signal(signal.SIGUSR1, handler)


def fault_of(call: Call, capsys: pytest.CaptureFixture[str]) -> str | None:
    """What is wrong with the way that a call ends; None if nothing is."""
    stopper = threading.Timer(LONGEST_SECONDS, os.kill, (os.getpid(), signal.SIGUSR1))
    complaints = io.TextIOWrapper(io.BytesIO(), "utf-8", "backslashreplace")
    stopper.start()
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(complaints):
            warnings.simplefilter("ignore")
            code = run_words(call.words)
    except TooLongError:
        return f"no answer within {LONGEST_SECONDS} s"
    except Exception as error:
        return f"{type(error).__name__}: {str(error)[:200]}"
    finally:
        stopper.cancel()
        stopper.join()
    capsys.readouterr()
    complaints.seek(0)
    complaint = complaints.read()
    if "Traceback" in complaint:
        return "a traceback"
    if code not in ((0, 1, 2) if call.words[0] in WITH_FINDINGS else (0, 2)):
        return f"exit code {code}"
    if code == 2 and not re.search(r"^(lm-eval.*)?error: .+\Z", complaint.rstrip(), re.MULTILINE):
        return f"exit code 2 whose last line is no reason: {complaint[-100:]}"
    if call.surely_wrong and code != 2:
        return f"exit code {code} despite an empty word"
    return None


def touched_of(
    call: Call, playground: Playground, place: Path, index: int, run: Callable[[], str | None]
) -> str | None:
    """Run a call whose files are those of number ``index``; what it did to others is its fault."""
    out = place / f"{index}"
    own = [out / "here", out / "outside", out / "results" / "new"]
    written = [playground.files[name] for name in ("run", "fidelity", "trained", "task_scores")]

    def others() -> dict[Path, bytes]:
        foreign = {folder / name for folder in written for name in FOREIGN}
        mine = [folder for folder in written if str(folder) in call.words]
        found = remaining(place, own) | remaining(playground.folder, mine)
        return found | {file: file.read_bytes() for file in foreign if file.is_file()}

    before = others()
    fault = run()
    after = others()
    changed = [file for file in before | after if before.get(file) != after.get(file)]
    if fault is None and changed:
        fault = f"changed {changed[0].relative_to(place.parent)}"
    if fault is None and not Path(os.devnull).is_char_device():
        fault = f"replaced {os.devnull}"
    return fault


def search(
    seed: int,
    count: int,
    playground: Playground,
    place: Path,
    capsys: pytest.CaptureFixture[str],
) -> list[str]:
    """Faults of ``count`` damaged calls, each of which runs in a folder of its own."""
    draw = random.Random(seed)
    sound = playground.sound()
    faults = []
    for index in range(count):
        out = place / f"{index}"
        (out / "here").mkdir(parents=True)
        (out / "results").mkdir()
        os.chdir(out / "here")
        call = playground.call(draw, out / "results" / "new")
        fault = touched_of(
            call, playground, place, index, functools.partial(fault_of, call, capsys)
        )
        if fault is not None:
            words = " ".join(word[:60] for word in call.words)
            faults.append(f"{index}: {fault!a} after {call.damage!a}: {words!a}")
        playground.restore(sound)
    return faults


@pytest.mark.timeout(7200)
@pytest.mark.usefixtures("bounded")
@pytest.mark.parametrize(("seed", "count"), [(1, 40), pytest.param(2, 250, marks=pytest.mark.slow)])
def test_damage_ends_in_one_line(
    seed: int,
    count: int,
    playground: Playground,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    faults = search(seed, count, playground, tmp_path, capsys)
    assert not faults, "\n".join(faults)


@pytest.mark.slow
def test_calls_without_damage_succeed(playground: Playground, tmp_path: Path) -> None:
    """Each form that the others damage goes all the way, so that damage is met where it is read."""
    ends = {
        template[:40]: run_words(playground.sound_call(template, tmp_path / f"new-{index}").words)
        for index, template in enumerate(CALLS)
    }
    assert not {form: code for form, code in ends.items() if code != 0}
