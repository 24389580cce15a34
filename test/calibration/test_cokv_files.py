"""Score files: our own npz, the published pickles behind consent, and what is refused."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from catekv import methods
from catekv.calibration.cokv.drawing import Draw
from catekv.calibration.cokv.files import ScoreFile, merged
from catekv.calibration.cokv.game import Sums
from catekv.calibration.cokv.published import read_published, true_slice
from catekv.errors import UserError
from catekv.models.shape import ModelShape

LAYERS, HEADS = 3, 2
PLAYERS = LAYERS * HEADS


def gathered(size: int, run: str = "A", draws: int = 40) -> Sums:
    """Sums of a game in which a player is worth its number."""
    sums = Sums.empty(PLAYERS, size)
    for index in range(draws):
        members = Draw(index, size, run).members(1, PLAYERS)
        worth = np.arange(PLAYERS) / PLAYERS
        sums = sums.plus(members, float(worth[members].sum() - worth[~members].sum()))
    return sums


def score_file(**recipe: Any) -> ScoreFile:
    runs = tuple(tuple(gathered(size, run) for size in (2, 3)) for run in "AB")
    return ScoreFile(LAYERS, HEADS, runs, {"config_hash": "abc", **recipe})


def published(path: Path, sums: Sums, **changes: Any) -> Path:
    padded = {
        "cc_left": sums.left,
        "cc_right": sums.right,
        "count_left": sums.left_count,
        "count_right": sums.right_count,
    }
    content: dict[str, Any] = {
        name: np.append(np.asarray(values, dtype=np.float64), 0.0)
        for name, values in padded.items()
    }
    content["sampling_count"] = sums.draws
    content.update(changes)
    np.save(path, np.array(content, dtype=object), allow_pickle=True)
    return path


def test_a_file_comes_back_as_it_was_written(tmp_path: Path) -> None:
    file = score_file(task="toy")
    read = ScoreFile.load(file.save(tmp_path / "deep" / "scores.npz"))
    assert (read.layers, read.kv_heads, read.slices) == (LAYERS, HEADS, (2, 3))
    assert read.recipe == {"config_hash": "abc", "task": "toy"}
    np.testing.assert_array_equal(read.estimates(), file.estimates())
    assert read.draws == 160
    agreement = read.agreement()
    assert agreement is not None
    assert agreement.tolerance == 1 / PLAYERS
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["scores.npz"]


def test_the_method_reads_the_file(tmp_path: Path) -> None:
    file = score_file()
    path = file.save(tmp_path / "scores.npz")
    shape = ModelShape(LAYERS, 2 * HEADS, HEADS, 8)
    table = methods.create("cokv", scores=str(path), budget=30).budget_table(1000, shape) - 8
    weights = np.clip(file.scores() - np.sort(file.scores().ravel())[0], 0, None)
    expected = np.floor(weights / weights.sum() * 30 * PLAYERS + 1e-9)
    np.testing.assert_array_equal(table.numpy(), expected)


def test_scores_with_players_missing_are_not_written(tmp_path: Path) -> None:
    runs = ((Sums.empty(PLAYERS, 2).plus(np.arange(PLAYERS) < 2, 0.5),),)
    with pytest.raises(UserError, match="6 players have no estimate yet"):
        ScoreFile(LAYERS, HEADS, runs).save(tmp_path / "scores.npz")
    assert not list(tmp_path.iterdir())


def test_scores_of_another_model_are_refused() -> None:
    file = score_file(model="one")
    file.check_model(LAYERS, HEADS, "abc")
    file.check_model(LAYERS, HEADS)
    with pytest.raises(UserError, match="3 layers x 2 KV heads but the model has 4 layers x 2"):
        file.check_model(4, 2)
    with pytest.raises(UserError, match=r"another model \(one, configuration abc; this one has x"):
        file.check_model(LAYERS, HEADS, "xyz")


def test_wrong_shapes_are_refused() -> None:
    with pytest.raises(UserError, match="scores of 6 players do not fit 2 layers x 2 KV heads"):
        ScoreFile(2, 2, ((gathered(2),),))
    with pytest.raises(UserError, match="same slices in every run"):
        ScoreFile(LAYERS, HEADS, ((gathered(2),), (gathered(3),)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"left": np.zeros((1, 2, PLAYERS))}, "runs, slices and players make"),
        ({"shape": np.array([6])}, "does not say its layers"),
        ({"left_count": np.full((2, 2, PLAYERS), np.nan)}, "no finite number"),
        ({"recipe": np.array("{")}, "cannot read"),
        ({"recipe": np.array("[]")}, "holds no recipe"),
        ({"slices": np.array([2])}, "draws of other slices"),
        ({"slices": np.array([0, 3])}, "heads or draws rule out"),
        ({"draws": np.zeros((2, 2), dtype=int)}, "heads or draws rule out"),
        ({"draws": None}, "has no array 'draws'"),
    ],
)
def test_torn_files_are_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    path = score_file().save(tmp_path / "scores.npz")
    with np.load(path) as content:
        arrays = {**content, **changes}
    np.savez(path, **{name: value for name, value in arrays.items() if value is not None})
    with pytest.raises(UserError, match=message):
        ScoreFile.load(path)


def test_other_files_are_refused(tmp_path: Path) -> None:
    torn = tmp_path / "torn.npz"
    torn.write_bytes(b"PK\x03\x04nothing")
    array = tmp_path / "array.npz"
    with array.open("wb") as stream:
        np.save(stream, np.zeros((3, 2)))
    for path, message in (
        (torn, "cannot read the score file"),
        (array, "cannot read the score file"),
        (tmp_path / "none.npz", "cannot read the score file"),
        (tmp_path / "cc_qasper_32.npy", "published pickled layout"),
    ):
        with pytest.raises(UserError, match=message):
            ScoreFile.load(path)


def test_slices_of_several_files_become_one() -> None:
    one = ScoreFile(LAYERS, HEADS, ((gathered(3),),))
    other = ScoreFile(LAYERS, HEADS, ((gathered(2),),))
    both = merged([one, other])
    assert both.slices == (2, 3)
    np.testing.assert_allclose(both.scores(), (one.scores() + other.scores()) / 2)
    assert both.agreement() is None
    with pytest.raises(UserError, match="a slice is there twice"):
        merged([one, one])
    with pytest.raises(UserError, match="2 layers x 3 KV heads"):
        merged([one, ScoreFile(2, 3, ((gathered(2),),))])


def test_published_files_need_consent(tmp_path: Path) -> None:
    path = published(tmp_path / "cc_qasper_2.npy", gathered(2))
    with pytest.raises(UserError, match="--trust-pickle"):
        read_published(path)
    read = read_published(path, trust_pickle=True)
    assert read.sums.size == read.named_size == 2
    assert read.matches_name
    np.testing.assert_array_equal(read.sums.left, gathered(2).left)
    assert read.sums.players == PLAYERS


def test_the_true_slice_comes_from_the_counters(golden, tmp_path: Path) -> None:
    for case in golden("cokv", "slice_check"):
        given, expected = case["inputs"], case["expected"]
        found = true_slice(given["count_left"], given["sampling_count"])
        assert found == expected["true_j"]
        assert (found == given["named_j"]) is expected["matches_name"]
    path = published(tmp_path / "cc_trec_4.npy", gathered(2))
    with pytest.warns(UserWarning, match=r"cc_trec_4.npy holds slice 2, not 4"):
        read = read_published(path, trust_pickle=True)
    assert (read.sums.size, read.named_size, read.matches_name) == (2, 4, False)
    average = published(tmp_path / "cc_qwen3_average.npy", gathered(2))
    assert read_published(average, trust_pickle=True).named_size is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cc_left": np.zeros(3)}, "one element per player"),
        ({"cc_left": np.ones(PLAYERS + 1)}, "the last element is not 0"),
        ({"cc_right": np.full(PLAYERS + 1, np.nan)}, "not finite"),
        ({"sampling_count": 41}, "which no run leaves behind"),
        ({"sampling_count": "many"}, "other than numbers"),
    ],
)
def test_torn_published_files_are_refused(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    path = published(tmp_path / "cc_qasper_2.npy", gathered(2), **changes)
    with pytest.raises(UserError, match=message):
        read_published(path, trust_pickle=True)


def test_files_that_are_no_score_dict_are_refused(tmp_path: Path) -> None:
    plain, other, text = (tmp_path / name for name in ("plain.npy", "other.npy", "text.npy"))
    np.save(plain, np.zeros((3, 2)))
    np.save(other, np.array({"scores": 1}, dtype=object), allow_pickle=True)
    text.write_text("scores")
    for path, message in (
        (plain, "no pickled dict"),
        (other, "no published score file"),
        (text, "cannot read"),
    ):
        with pytest.raises(UserError, match=message):
            read_published(path, trust_pickle=True)


def shout() -> None:
    print("this must not run")


class Harmful:
    def __reduce__(self) -> tuple[Any, ...]:
        return shout, ()


def test_a_pickle_that_calls_something_is_not_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "cc_qasper_2.npy"
    array = np.array({"cc_left": Harmful()}, dtype=object)
    np.save(path, array, allow_pickle=True)
    assert b"shout" in path.read_bytes()
    with pytest.raises(UserError, match=r"asks for .*shout"):
        read_published(path, trust_pickle=True)
    assert capsys.readouterr().out == ""


def test_a_torn_pickle_is_refused(tmp_path: Path) -> None:
    path = published(tmp_path / "cc_qasper_2.npy", gathered(2))
    content = path.read_bytes()
    for end in range(len(content) - 400, len(content) - 1, 7):
        path.write_bytes(content[:end] + b"R.")
        with pytest.raises(UserError):
            read_published(path, trust_pickle=True)


def test_the_method_refuses_scores_of_another_model(tmp_path: Path) -> None:
    path = score_file(config_hash="abc").save(tmp_path / "scores.npz")
    for options in ({"scores": str(path)}, {"scores": str(path), "total": 100}):
        method = methods.create("cokv", **options)
        method.validate(ModelShape(LAYERS, 2 * HEADS, HEADS, 8))
        method.validate(ModelShape(LAYERS, 2 * HEADS, HEADS, 8, "abc"))
        with pytest.raises(UserError, match="model of configuration abc, this one has xyz"):
            method.validate(ModelShape(LAYERS, 2 * HEADS, HEADS, 8, "xyz"))
        again = dataclasses.replace(method, alpha=2)
        with pytest.raises(UserError, match="model of configuration abc"):
            again.validate(ModelShape(LAYERS, 2 * HEADS, HEADS, 8, "xyz"))
    plain = methods.create("cokv", scores=score_file().scores().tolist())
    plain.validate(ModelShape(LAYERS, 2 * HEADS, HEADS, 8, "xyz"))
