"""``catekv heads`` and ``catekv mask convert``: what is refused, and when."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from catekv.calibration.heads.head_scores import HeadScores
from catekv.commands.cli import main, run_safely

SCORES = np.random.default_rng(0).random((4, 4))


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two head files of four layers and four heads, in the working folder."""
    monkeypatch.chdir(tmp_path)
    HeadScores(SCORES, {"kind": "one"}).save("one.npz")
    torch.save(torch.from_numpy(1 - SCORES), "two.pt")
    return tmp_path


def refused(line: str, capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that a command refuses with."""
    assert main(line.split()) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    return error


@pytest.mark.parametrize("action", ["curves", "gates --length 1024", "kvzip --text prose"])
def test_an_output_that_cannot_be_written_is_refused_before_the_model_is_read(
    action: str, here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import catekv.evaluation.run.session as session

    monkeypatch.setattr(session, "open_model", lambda *a, **k: pytest.fail("the model was read"))
    assert "Is a directory; give the name of a file" in refused(
        f"heads {action} --output {here}", capsys
    )
    assert "a part of the path is a file" in refused(
        f"heads {action} --output one.npz/x.npz", capsys
    )


def test_passkeys_that_a_length_does_not_hold_are_refused_before_the_bar(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = "heads gates --output g.npz --length 512 --sinks 16 --recent 64 --passkeys 100"
    assert "give a larger --length" in refused(line, capsys)


def test_scores_that_are_all_alike_are_not_written(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = "heads kvzip --text prose --length 1 --samples 1 --quiet --output zip.npz"
    assert "none is worth more than another" in refused(line, capsys)
    assert not (here / "zip.npz").exists()


def test_an_interruption_promises_nothing_that_is_not_kept(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def interrupted() -> int:
        raise KeyboardInterrupt

    assert run_safely(interrupted) == 130
    assert "begins anew where it keeps none" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("random-0=one.npz two.pt", "'random-0' is the name of a row of its own"),
        ("full=one.npz two.pt", "'full' is the name of a row of its own"),
        ("../out=one.npz two.pt", "would lead elsewhere"),
        ("=one.npz two.pt", "would lead elsewhere"),
        ("a= two.pt", "names no head file"),
        ("one.npz two.pt --budget 1024", "which is all"),
        ("one.npz two.pt --length 1", "which is all"),
    ],
)
def test_comparisons_that_would_mean_something_else_are_refused(
    line: str, message: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in refused(f"heads compare {line} --ratio 0.3 --output compared", capsys)
    assert not (here / "compared").exists()


def test_what_a_measurement_refuses_is_a_wrong_comparison(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = "heads compare one.npz two.pt --ratio 0.3 --output compared --measure --tasks none"
    assert "unknown task 'none'" in refused(line, capsys)


def test_a_text_that_curves_would_count_twice_is_refused(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = "heads curves --output curves.npz --length 200 --samples 1 --texts prose prose"
    assert "--texts holds prose twice" in refused(line, capsys)


def test_what_was_measured_is_not_replaced_unasked(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (here / "one.npz").read_bytes()
    for action in ("curves", "gates", "kvzip --text prose", "overlaps --text prose"):
        assert "use --overwrite" in refused(f"heads {action} --output one.npz", capsys)
    assert (here / "one.npz").read_bytes() == before


def test_a_template_that_no_text_takes_is_refused(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = "heads curves --output c.npz --texts prose --length 200 --chat-template none"
    assert "--texts has none" in refused(line, capsys)


@pytest.mark.parametrize("action", ["heads kvzip", "heads overlaps --steps 1", "kvzap train"])
def test_pieces_of_a_token_are_refused(
    action: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "text.txt").write_text("One and two and three.")
    line = f"{action} --text text.txt --length 1 --output out"
    assert "give a larger length" in refused(line, capsys)


def test_a_mask_replaces_no_other_one(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    drawn = "mask random masks --layers 4 --kv-heads 4 --ratio 0.5"
    assert main(drawn.split()) == main(drawn.split()) == 0
    before = (here / "masks" / "head_type_p50.csv").read_bytes()
    for line in (
        f"{drawn} --seed 1",
        "mask convert one.npz masks --ratios 0.25 0.5",
        "heads export one.npz --to catekv --ratio 0.5 --output masks",
    ):
        assert "head_type_p50.csv is another mask" in refused(line, capsys)
    assert (here / "masks" / "head_type_p50.csv").read_bytes() == before
    assert not (here / "masks" / "head_type_p25.csv").exists()


@pytest.mark.parametrize(
    ("ratios", "message"), [("0.5 2", "is outside (0, 1]"), ("0.5 0.501", "twice")]
)
def test_no_mask_is_written_where_one_of_them_cannot_be(
    ratios: str, message: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in refused(f"mask convert one.npz masks --ratios {ratios}", capsys)
    assert not (here / "masks").exists()


@pytest.mark.parametrize("ratio", ["5", "0", "-1"])
@pytest.mark.parametrize("form", ["duo_attention", "tangram", "catekv"])
def test_shares_of_heads_that_are_none_are_refused(
    form: str, ratio: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = f"heads export one.npz --to {form} --output exported --ratio {ratio}"
    assert "is outside (0, 1]" in refused(line, capsys)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("two.pt --from tangram", "holds neither cluster_of nor ratio_per_head"),
        ("folder --from kvzip", "holds no file *.pt"),
        ("one_heads.json", "is no HeadKV score file"),
    ],
)
def test_files_of_another_format_are_refused(
    line: str, message: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "folder").mkdir()
    (here / "one_heads.json").write_text('{"0-0": [], "0-1": []}')
    assert message in refused(f"heads import {line} --output imported.npz", capsys)


def test_a_strict_mask_without_any_head_is_refused(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "leaves no adaptive head" in refused(
        "mask convert two.pt masks --ratios 0.04 --strict", capsys
    )


def test_methods_with_one_label_are_refused_where_fidelity_would_average_them(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = "fidelity --methods full:store=int8 full:store=int4 --lengths 128 --samples 1"
    assert "method label 'full' is used twice" in refused(line, capsys)


@pytest.mark.parametrize(
    "action",
    ["curves", "gates", "kvzip --text prose", "overlaps --text prose"],
)
def test_texts_beyond_the_window_are_refused_before_they_are_made(
    action: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = f"heads {action} --length 10000000 --output long.npz"
    said = refused(line, capsys)
    assert "exceed the model's context window of" in said
    assert "10000" in said
    assert not (here / "long.npz").exists()


def test_texts_that_memory_does_not_hold_are_refused_before_they_are_made(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("catekv.prefill.capacity.free_memory_bytes", lambda device: 1000)
    said = refused("heads curves --length 1024 --output long.npz", capsys)
    assert "a prefill of 1024 tokens needs" in said


def test_a_shape_whose_query_heads_cannot_be_grouped_is_refused(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = refused("heads import two.pt --shape 4x4x6 --output imported.npz", capsys)
    assert "6 query heads are no multiple of 4 KV heads" in said
    assert not (here / "imported.npz").exists()
