"""Every kernel builds for A100 and Hopper chips on a machine that has neither."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from catekv.kernels import compile_check
from catekv.kernels.compile_check import Built, render
from catekv.kernels.dispatch import table

pytest.importorskip("triton", reason="triton has no package for this platform")


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own: the compiler and the interpreter exclude each other."""
    clean = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    return subprocess.run(
        [sys.executable, "-m", "catekv.kernels.compile_check", *arguments],
        capture_output=True,
        text=True,
        env={**clean, **environment},
        check=False,
    )


#: The type and width that most models run in, on Hopper; all others take twenty times as long.
HOT = (
    "bf16 d128", "bf16 width 4096", "copy (bf16", "reduce", "silu_multiply bf16",
    "int4 decode bf16, d128", "int8 decode bf16, d128",
)  # fmt: skip


@pytest.mark.parametrize(
    ("which", "chips"),
    [(HOT, ["90"]), pytest.param(("",), ["80", "90"], id="all", marks=pytest.mark.slow)],
)
def test_every_variant_builds_without_spills_in_hot_kernels(
    which: Sequence[str], chips: Sequence[str], tmp_path: Path
):
    done = run("--chips", *chips, "--only", *which, "--output", str(tmp_path / "kernels.json"))
    assert done.returncode == 0, done.stdout + done.stderr
    built = json.loads((tmp_path / "kernels.json").read_text())
    assert {one["chip"] for one in built} == {f"sm_{chip}" for chip in chips}
    assert all(one["registers"] > 0 for one in built)
    for kernel, row in table().items():
        if "triton" in row:
            assert any(kernel in one["variant"] for one in built), kernel


def test_an_unknown_name_and_the_interpreter_are_refused():
    # in a process of its own: modules imported without the interpreter stay without it
    assert "no variant's name contains" in run("--only", "nothing like it").stderr
    refused = run(TRITON_INTERPRET="1")
    assert refused.returncode == 2
    assert "unset TRITON_INTERPRET" in refused.stderr


def test_programs_share_registers_and_shared_memory():
    fit = compile_check.programs_that_fit
    assert fit(160, 4, 71680, 90) == 3
    assert fit(160, 4, 71680, 80) == 2
    assert fit(255, 8, 1024, 90) == 1
    # as a compiler once laid out a launch that counts on two
    assert fit(128, 4, 131_072, 90) == 1


def test_a_problem_is_an_exit_code(monkeypatch: pytest.MonkeyPatch):
    one = Built("some kernel", "sm_80", 255, 16, 0, "spills 16 bytes of registers")
    monkeypatch.setattr(compile_check, "check", lambda *_arguments: [one])
    assert compile_check.main([]) == 1
    assert "| some kernel | sm_80 | 255 | 16 | 0.0 | spills 16 bytes of registers |" in render(
        [one], "triton"
    )
