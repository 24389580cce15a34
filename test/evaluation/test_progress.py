"""Progress: a bar with running scores, or plain lines that a log can hold."""

from __future__ import annotations

import io

import pytest

from catekv.commands import efficiency_run
from catekv.evaluation.run import progress
from catekv.evaluation.run.progress import BAR, LINES, NONE, Progress


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_lines_come_at_every_tenth_and_every_minute_and_at_the_end(clock: list[float]) -> None:
    stream = io.StringIO()
    with Progress(100, LINES, stream) as shown:
        for index in range(100):
            clock[0] += 1
            shown.tokens += 500
            shown.score("full", 1.0)
            shown.score("catekv", float(index % 2))
            shown.advance("ruler/vt", 1, 1)
    lines = stream.getvalue().splitlines()
    assert len(lines) == 10
    assert lines[0] == (
        "10/100 samples, ruler/vt, full 100.0, catekv 50.0, 500 tokens/s, 0:01:30 left"
    )
    assert lines[-1].startswith("100/100 samples")
    assert lines[-1].endswith("0:01:40 taken")
    assert "\r" not in stream.getvalue()


def test_a_slow_run_is_heard_of_every_minute(clock: list[float]) -> None:
    stream = io.StringIO()
    with Progress(1000, LINES, stream) as shown:
        for _ in range(4):
            clock[0] += 45
            shown.advance("niah", 1, 1)
    assert [line.split(",")[0] for line in stream.getvalue().splitlines()] == [
        "2/1000 samples",
        "4/1000 samples",
    ]


def test_what_was_measured_before_does_not_count_for_the_time_left(clock: list[float]) -> None:
    stream = io.StringIO()
    with Progress(10, LINES, stream) as shown:
        shown.advance("niah", 8)
        clock[0] += 5
        shown.advance("niah", 1, 1)
    assert stream.getvalue().splitlines()[-1].endswith("0:00:05 left")


def test_the_bar_shows_scores_and_tokens(clock: list[float]) -> None:
    stream = io.StringIO()
    with Progress(2, BAR, stream) as shown:
        clock[0] += 2
        shown.tokens += 100
        shown.score("full", 0.5)
        shown.advance("ruler/vt", 2, 2)
    assert "full 50.0, 50 tokens/s" in stream.getvalue()
    assert "2/2" in stream.getvalue()


def test_nothing_is_shown_to_those_who_do_not_ask() -> None:
    stream = io.StringIO()
    with Progress(1, NONE, stream) as shown:
        shown.advance("ruler/vt", 1, 1)
    assert stream.getvalue() == ""


@pytest.mark.parametrize("kind", [BAR, LINES])
def test_a_long_run_says_once_how_long_it_takes_and_what_shortens_it(
    kind: str, clock: list[float]
) -> None:
    stream = io.StringIO()
    # one sample of 1000 tokens, then nine of 4000
    with Progress(10, kind, stream, work=37_000, shorter="fewer --samples") as shown:
        for work in (1000, 4000, 4000):
            clock[0] += work / 100
            shown.advance("ruler/vt", 1, 1, work)
    said = [line for line in stream.getvalue().splitlines() if "on this machine" in line]
    assert [line.rpartition("\r")[2] for line in said] == [
        "about 7 minutes on this machine, after the first sample (10.0 s); shorter: fewer --samples"
    ]


def test_a_short_run_foretells_nothing(clock: list[float]) -> None:
    stream = io.StringIO()
    with Progress(4, LINES, stream, shorter="fewer --samples") as shown:
        for _ in range(4):
            clock[0] += 10
            shown.advance("ruler/vt", 1, 1)
    assert "on this machine" not in stream.getvalue()


def test_hours_are_said_in_hours() -> None:
    assert progress.foretold(8000, "1 s", "x").startswith("about 2.2 hours on this machine")


def test_an_efficiency_run_foretells_its_other_lengths(capsys: pytest.CaptureFixture[str]) -> None:
    efficiency_run._foretell(30.0, (1000,))
    assert not capsys.readouterr().err
    efficiency_run._foretell(30.0, (1000, 8000))
    assert capsys.readouterr().err.startswith("about 5 minutes on this machine, after the first")
