"""docs/first_steps.md: what a newcomer types works, in its order, on a small model in its place."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from test_readme import REPOSITORY
from tiny_checkpoint import save_tiny_checkpoint

from catekv.commands import cli
from catekv.methods.head_mask import HeadMask

PAGE = REPOSITORY / "docs" / "first_steps.md"
MODEL = "ckpt/SmolLM2-135M-Instruct.Q4_1.gguf"
#: A random model of two layers, for machines without weights.
STAND_IN = "ckpt/tiny"
#: Commands that measure.
LONG = ("calibrate", "check", "evaluate", "report")
#: A command and what the page shows of its output.
TYPED = re.compile(r"^\$ ((?:.*\\\n)*.*)\n((?:(?!\$ |```).*\n)*)", re.MULTILINE)


def steps() -> list[tuple[str, str]]:
    return [
        (typed.replace("\\\n", " "), shown)
        for block in re.findall(r"```console\n(.*?```)", PAGE.read_text(), re.DOTALL)
        for typed, shown in TYPED.findall(block)
    ]


def squeezed(text: str) -> str:
    return " ".join(text.split())


@pytest.mark.parametrize("measured", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_every_step_runs_and_prints_what_depends_on_no_model(
    measured: bool,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("LICENSE", "docs"):
        (tmp_path / name).symlink_to(REPOSITORY / name)
    monkeypatch.chdir(tmp_path)
    save_tiny_checkpoint(Path(STAND_IN), max_position_embeddings=8192)
    assert len(steps()) == 10
    for typed, shown in steps():
        words = shlex.split(typed.replace(MODEL, STAND_IN))
        assert words[0] == "catekv"
        if words[1] in LONG and not measured:
            # what comes after a calibration finds masks
            HeadMask.random((2, 2), 0.4).save(Path("results/headmask-tiny/chosen"))
            continue
        code = cli.main(words[1:])
        said = capsys.readouterr()
        assert code == (2 if shown.startswith("error: ") else 0), said.err
        if MODEL not in typed or code:
            printed = squeezed(said.out + said.err).replace(STAND_IN, MODEL)
            for part in re.split(r"^\.\.\.$", shown, flags=re.MULTILINE):
                assert squeezed(part) in printed
