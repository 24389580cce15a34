"""State of a score run: whatever interrupts it, the result is that of an undisturbed run."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from catekv.calibration.cokv.course import Course
from catekv.calibration.cokv.drawing import RUNS
from catekv.calibration.cokv.game import Members, exact_slices
from catekv.calibration.cokv.journal import Plan, ScoreFolder
from catekv.calibration.cokv.progress import draws_needed, remaining_seconds
from catekv.errors import UserError

PLAYERS, SAMPLES = 6, 3
SLICES = (2, 3)
TOLERANCE, BLOCKS = 0.02, 40


def scores_of(sample: int, coalitions: list[Members]) -> list[float]:
    """A toy task: heads are worth their number, two of them more together, samples differ."""
    worth = np.arange(PLAYERS) / 20
    found = []
    for members in coalitions:
        bonus = 0.2 if members[[1, 4]].all() else 0.0
        found.append(min(1.0, float(worth[members].sum()) + bonus + 0.01 * sample))
    return found


def plan(processes: int = 1, **changes: int) -> Plan:
    return Plan(PLAYERS, SLICES, changes.get("seed", 5), 4, SAMPLES, processes)


def run(journal: ScoreFolder, lines: int = 10**9) -> Course:
    """Measure until the runs agree, or until so many lines are written (a killed process)."""
    course = Course(journal.plan)
    while not course.follow(journal.shards(), TOLERANCE, BLOCKS):
        shard = journal.own()
        if shard.block >= BLOCKS:
            break
        if not shard.missing_samples():
            shard.close_if_complete()
            continue
        with journal:
            for sample in shard.missing_samples():
                if not lines:
                    return course
                journal.append(shard.block, sample, scores_of(sample, shard.wanted()))
                lines -= 1
    return course


def started(folder: Path, part: int = 0, processes: int = 1) -> ScoreFolder:
    journal = ScoreFolder(folder, plan(processes), part)
    journal.prepare({"task": "toy", "processes": processes})
    return journal


def result(course: Course) -> tuple[int, float, list[float]]:
    last = course.agreements[-1]
    return course.draws, last.error, last.final.tolist()


def test_a_run_ends_when_its_halves_agree(tmp_path: Path) -> None:
    course = run(started(tmp_path))
    assert course.agreements[-1].error < TOLERANCE
    assert not any(one.error < TOLERANCE for one in course.agreements[:-1])
    assert course.draws == 4 * len(course.agreements)

    def utility(inside: frozenset[int]) -> float:
        members = np.isin(np.arange(PLAYERS), list(inside))
        return float(np.mean([scores_of(sample, [members])[0] for sample in range(SAMPLES)]))

    exact = exact_slices(utility, PLAYERS)[:, [1, 2]].mean(axis=1)
    np.testing.assert_allclose(course.agreements[-1].final, exact, atol=0.05)
    assert course.bounds == pytest.approx((utility(frozenset(range(6))), utility(frozenset())))


@pytest.mark.parametrize("lines", [0, 1, 4, 11])
def test_a_killed_run_goes_on_as_if_nothing_had_happened(tmp_path: Path, lines: int) -> None:
    whole = result(run(started(tmp_path / "whole")))
    folder = tmp_path / "killed"
    run(started(folder), lines)
    with (folder / "draws-1of1.jsonl").open("a") as stream:
        stream.write('{"block": 9, "sam')  # what kill -9 leaves of a line
    assert result(run(started(folder))) == whole
    texts = [(path / "draws-1of1.jsonl").read_text() for path in (tmp_path / "whole", folder)]
    assert texts[0] == texts[1]


def test_a_finished_run_is_not_measured_again(tmp_path: Path) -> None:
    whole = result(run(started(tmp_path)))
    assert result(run(started(tmp_path), lines=0)) == whole


@pytest.mark.parametrize("processes", [2, 3, 5])
def test_several_processes_find_what_one_finds(tmp_path: Path, processes: int) -> None:
    whole = result(run(started(tmp_path / "one")))
    journals = [started(tmp_path / "many", part, processes) for part in range(processes)]
    for part in reversed(range(processes)):  # one is far ahead before the next begins
        course = run(journals[part])
    assert result(course)[:2] == (whole[0], pytest.approx(whole[1], abs=1e-12))
    np.testing.assert_allclose(result(course)[2], whole[2], atol=1e-12)
    for part in range(processes):
        assert result(run(started(tmp_path / "many", part, processes), lines=0)) == result(course)


def test_a_coalition_is_looked_at_once(tmp_path: Path) -> None:
    journal = started(tmp_path)
    course = run(journal)
    lines = [json.loads(line) for line in (tmp_path / "draws-1of1.jsonl").read_text().splitlines()]
    looked_at = sum(len(line["scores"]) for line in lines) // SAMPLES
    assert looked_at == len(journal.own().known)
    assert looked_at <= 2 + 2 * (15 + 20)  # all coalitions of 2 and 3, and their complements
    assert sum(one.draws for name in RUNS for one in course.run(name)) > 35


def test_a_folder_of_another_recipe_is_refused(tmp_path: Path) -> None:
    run(started(tmp_path))
    journal = ScoreFolder(tmp_path, plan())
    with pytest.raises(UserError, match=r"different: task \(\"toy\", now \"other\"\)"):
        journal.prepare({"task": "other", "processes": 1})
    with pytest.raises(UserError, match=r"different: processes \(1, now 2\)"):
        journal.prepare({"task": "toy", "processes": 2})
    for outdated in ("scores.npz", "mae.csv", "alpha.json"):
        (tmp_path / outdated).write_text("of the draws that go")
    journal.prepare({"task": "other", "processes": 1}, overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["recipe.json"]


def test_a_damaged_journal_is_refused(tmp_path: Path) -> None:
    run(started(tmp_path))
    path = tmp_path / "draws-1of1.jsonl"
    path.write_text("no json\n" + path.read_text())
    with pytest.raises(UserError, match="line 1 is no block, sample and scores"):
        started(tmp_path).shards()
    for line in (
        "[]",
        '{"block": -1, "scores": [1.0, 0.0]}',
        '{"block": "-1", "sample": 0, "scores": [1.0, 0.0]}',
        '{"block": -1, "sample": [], "scores": [1.0, 0.0]}',
        '{"block": -1, "sample": 0, "scores": 3}',
        '{"block": -1, "sample": 0, "scores": [null, 0.0]}',
    ):
        path.write_text(line + "\n")
        with pytest.raises(UserError, match="line 1 is no block, sample and scores"):
            started(tmp_path).shards()
    path.write_text('{"block": -1, "sample": 0, "scores": [1.0]}\n')
    with pytest.raises(UserError, match="1 scores for 2 coalitions"):
        started(tmp_path).shards()


def test_overwriting_deletes_the_files_of_an_own_recipe_only(tmp_path: Path) -> None:
    run(started(tmp_path))
    (tmp_path / "draws-mine.jsonl").write_text("mine")
    new = {"task": "other", "processes": 1}
    journal = ScoreFolder(tmp_path, plan())
    journal.prepare(new, overwrite=True)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["draws-mine.jsonl", "recipe.json"]
    (tmp_path / "scores.npz").write_text("mine")
    for foreign in ('{"cake": "apple"}', "[]", "{", "[" * 99999):
        (tmp_path / "recipe.json").write_text(foreign)
        for overwrite in (True, False):
            with pytest.raises(UserError, match="another"):
                journal.prepare(new, overwrite=overwrite)
        assert (tmp_path / "scores.npz").exists()


def test_draws_without_a_recipe_are_not_taken_over(tmp_path: Path) -> None:
    run(started(tmp_path))
    (tmp_path / "recipe.json").unlink()
    for overwrite in (True, False):
        with pytest.raises(UserError, match=r"holds draws-1of1\.jsonl but no recipe\.json"):
            ScoreFolder(tmp_path, plan()).prepare(
                {"task": "toy", "processes": 1}, overwrite=overwrite
            )


def test_the_time_left_follows_from_the_difference(tmp_path: Path) -> None:
    course = run(started(tmp_path), lines=12)
    assert np.isnan(draws_needed(Course(plan())))
    last = course.agreements[-1]
    assert draws_needed(course) == pytest.approx(course.draws * (last.error / TOLERANCE) ** 2)
    assert remaining_seconds(course, 2.0, course.draws) == 0
    assert remaining_seconds(course, 2.0, course.draws + 1) <= 2
