"""``--budget`` alone, and the options of edges and window, in every command."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_checkpoint import save_tiny_checkpoint

from catekv.commands import cli
from catekv.methods.head_mask import HeadMask

RECIPE = {"kind": "vote", "window": 16, "init_tokens": 8, "recent_tokens": 16, "guard_tokens": 8}
GIVEN = ["--init-tokens", "4", "--recent-tokens", "b/128", "--window", "12"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_checkpoint(tmp_path_factory.mktemp("model"))


@pytest.fixture
def words(checkpoint: Path, tmp_path: Path) -> dict[str, list[str]]:
    """Words of every command, for a mask in ``tmp_path / "mask"``."""
    context = tmp_path / "text.txt"
    context.write_text("the road is long . " * 40)
    shared = ["--model", str(checkpoint), "--mask", str(tmp_path / "mask"), "--budget", "64"]
    small = ["--methods", "catekv", "--tasks", "ruler/vt", "--lengths", "192", "--samples", "1",
             "--output", str(tmp_path / "run"), "--overwrite", "--quiet"]  # fmt: skip
    return {
        "evaluate": [*shared, *small, "--max-new-tokens", "1"],
        "fidelity": [*shared, *small, "--text", "none", "--forced", "2"],
        "generate": [*shared, "--context", str(context), "--question", "a",
                     "--max-new-tokens", "1"],
        "efficiency": [*shared, "--methods", "catekv", "--lengths", "192", "--new-tokens", "1",
                       "--output", str(tmp_path / "speed")],
    }  # fmt: skip


@pytest.mark.parametrize("command", ["evaluate", "fidelity", "generate"])
@pytest.mark.parametrize(
    ("recipe", "more", "used"),
    [
        (RECIPE, [], "the first 8 and the last 16 tokens; window 16"),
        (None, [], "the first 2 and the last 0 tokens; window 64"),
        (RECIPE, GIVEN, "the first 4 and the last 0 tokens; window 12"),
    ],
)
def test_what_was_used_stands_below(
    command: str,
    recipe: dict[str, object] | None,
    more: list[str],
    used: str,
    words: dict[str, list[str]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    HeadMask(torch.tensor([[1, 0], [0, 1]]), {"ratio": 0.5, "recipe": recipe}).save(
        tmp_path / "mask"
    )
    assert cli.main([command, *words[command], *more]) == 0
    printed = capsys.readouterr()
    assert f"catekv: budget 64, of it {used}." in printed.out + printed.err
    if command != "generate":
        name = {"evaluate": "summary.md", "fidelity": "report.md"}[command]
        assert f"of it {used}." in (tmp_path / "run" / name).read_text()


def test_efficiency_takes_them_too(
    words: dict[str, list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    HeadMask(torch.tensor([[1, 0], [0, 1]]), {"ratio": 0.5, "recipe": RECIPE}).save(
        tmp_path / "mask"
    )
    assert cli.main(["efficiency", *words["efficiency"], "--init-tokens", "65"]) == 2
    assert "the edges it includes (65 initial + 0 recent" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["evaluate", "fidelity", "generate"])
@pytest.mark.parametrize(
    ("more", "cause"),
    [
        (["--init-tokens", "-1"], "--init-tokens"),
        (["--window", "0"], "--window"),
        (["--recent-tokens", "some"], "recent_tokens 'some' must be a number of tokens"),
    ],
)
def test_wrong_ones_are_one_line(
    command: str,
    more: list[str],
    cause: str,
    words: dict[str, list[str]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    HeadMask(torch.tensor([[1, 0], [0, 1]]), {"ratio": 0.5}).save(tmp_path / "mask")
    try:
        code = cli.main([command, *words[command], *more])
    except SystemExit as left:
        code = int(left.code or 0)
    error = capsys.readouterr().err.strip().splitlines()
    assert code == 2
    assert cause in error[-1]
