"""select_headmask/static.py as somebody calls it, and the files it reads."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from catekv import calibration
from catekv.calibration.head_masks.cv_files import pair_folder, read_cv, read_folder, write_cv
from catekv.errors import UserError
from catekv.methods.head_mask import HeadMask
from select_headmask import static

SCRIPT = Path(__file__).parents[2] / "select_headmask" / "static.py"


@pytest.fixture
def published(tmp_path: Path) -> tuple[Path, torch.Tensor]:
    """A folder in the published layout, written as plain text, and its CVs."""
    folder = tmp_path / "headmask_newtiny" / "vt_fraction0.99_top1.0_lastq64"
    folder.mkdir(parents=True)
    cvs = torch.rand(5, 3, 4, generator=torch.Generator().manual_seed(7)).double()
    for index, sample in enumerate(cvs.tolist()):
        text = "\n".join(",".join(repr(value) for value in row) for row in sample)
        (folder / f"{'abcde'[index] * 10}.csv").write_text(text)
    return folder, cvs


def main(*arguments: object) -> int:
    """The script's main function in this process; its exit code."""
    try:
        return static.main([str(argument) for argument in arguments])
    except SystemExit as exit_:
        return int(exit_.code or 0)


def call(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_masks_from_the_published_layout(published, tmp_path: Path) -> None:
    folder, cvs = published
    out = tmp_path / "masks"
    done = call("--input", folder, "--output", out, "--ratios", 0.05, 0.29, 0.4, "--model", "tiny")
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in out.glob("*.csv")) == [
        "head_type_p29.csv",
        "head_type_p40.csv",
        "head_type_p5.csv",
    ]
    for ratio in (0.05, 0.29, 0.4, 0.77):
        assert HeadMask.load(out, ratio) == calibration.vote(cvs, ratio)
    meta = HeadMask.load(out, 0.4).meta
    assert meta["model"] == "tiny"
    assert (meta["recipe"]["k"], meta["recipe"]["alpha"]) == (0.99, 1.0)


def test_published_form_of_the_vote(published, tmp_path: Path) -> None:
    folder, cvs = published
    out = tmp_path / "masks"
    options = ("--static_vote", "cumulative", "--vote_count", "keep_ties")
    assert main("--input", folder, "--output", out, *options) == 0
    assert len(list(out.glob("head_type_p*.csv"))) == 12
    expected = calibration.vote(cvs, 0.3, "cumulative", "keep_ties")
    assert HeadMask.load(out, 0.3) == expected


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("--input", "/nowhere/here"), "no folder /nowhere/here"),
        (("--ratios", "1.5"), "ratio 1.5 is outside"),
        (("--num_samples", "9"), "holds 5 samples, 9 were asked for"),
        (("--static_vote", "none"), "invalid choice"),
        (("--ratios", "many"), "invalid float value"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_two(
    published,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    change: tuple[str, ...],
    message: str,
) -> None:
    assert main("--input", published[0], "--output", tmp_path / "masks", *change) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.strip().splitlines()) == 1
    assert not (tmp_path / "masks").exists()


def test_torn_mixed_and_empty_folders_are_named(published, tmp_path: Path) -> None:
    folder, _ = published
    with pytest.raises(UserError, match="subfolders, pass one of them: vt_fraction"):
        read_folder(folder.parent)
    (folder / "zzzzzzzzzz.csv").write_text("1.0,2.0\n1.0\n")
    with pytest.raises(UserError, match=r"zzzzzzzzzz\.csv is torn"):
        read_folder(folder)
    (folder / "zzzzzzzzzz.csv").write_text("1.0,2.0\n")
    with pytest.raises(UserError, match="mixes models"):
        read_folder(folder)
    (folder / "zzzzzzzzzz.csv").write_text("1.0,x\n")
    with pytest.raises(UserError, match="no CV file"):
        read_folder(folder)
    (folder / "zzzzzzzzzz.csv").write_text("1.0,nan\n")
    with pytest.raises(UserError, match="not finite"):
        read_folder(folder)


def test_written_values_come_back_exactly(tmp_path: Path) -> None:
    cvs = torch.rand(4, 2, generator=torch.Generator().manual_seed(1)).double() / 3
    write_cv(tmp_path / "new" / "a.csv", cvs)
    assert torch.equal(read_cv(tmp_path / "new" / "a.csv"), cvs)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.csv"]


def test_draw_depends_on_the_seed_only(published) -> None:
    folder, _ = published
    first = read_folder(folder, 3, seed=1)
    assert torch.equal(first, read_folder(folder, 3, seed=1))
    assert first.shape == (3, 3, 4)
    assert any(not torch.equal(first, read_folder(folder, 3, seed=seed)) for seed in range(2, 6))


def test_folder_names_are_the_published_ones() -> None:
    assert pair_folder("ruler/vt", 0.998, 1, 64) == "vt_fraction0.998_top1.0_lastq64"
    assert pair_folder("data/mine.jsonl", 0.99, 0.8, 32) == "mine_fraction0.99_top0.8_lastq32"
