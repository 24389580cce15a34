"""Every kernel builds for A100 and Hopper chips on a machine that has neither."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import pytest

from catekv.kernels import compile_check
from catekv.kernels.compile_check import Built, render
from catekv.kernels.dispatch import table

pytest.importorskip("triton", reason="triton has no package for this platform")


REPOSITORY = Path(__file__).resolve().parents[2]
#: The oldest triton that is supported, which machines with a GPU may have.
OLDEST = re.search(r"^OLDEST_TRITON=(\S+)", (REPOSITORY / "run_tests.sh").read_text(), re.M)


def clean(**environment: str) -> dict[str, str]:
    """The environment without the interpreter, which excludes the compiler."""
    kept = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    return {**kept, **environment}


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "catekv.kernels.compile_check", *arguments],
        capture_output=True,
        text=True,
        env=clean(**environment),
        check=False,
    )


@pytest.fixture(
    params=["installed", pytest.param("oldest", marks=pytest.mark.slow)], scope="session"
)
def compiler(request: pytest.FixtureRequest) -> dict[str, str]:
    """Environment in which a process finds this triton: the installed one, or the oldest one,
    fetched once into a folder beside other temporary files."""
    if request.param == "installed":
        return {}
    assert OLDEST is not None
    folder = Path(tempfile.gettempdir()) / f"catekv-triton-{OLDEST[1]}-{os.getuid()}"
    if not (folder / "triton" / "__init__.py").exists():
        with tempfile.TemporaryDirectory(dir=folder.parent) as made:
            words = ["install", "--quiet", "--no-deps", "--target", made, f"triton=={OLDEST[1]}"]
            done = subprocess.run(
                [sys.executable, "-m", "pip", *words], capture_output=True, text=True, check=False
            )
            if done.returncode:
                pytest.skip(f"triton {OLDEST[1]} cannot be fetched: {done.stderr[-200:]}")
            shutil.copytree(made, folder, dirs_exist_ok=True)
    path = [str(folder), str(REPOSITORY), os.environ.get("PYTHONPATH", "")]
    return {
        "PYTHONPATH": os.pathsep.join(filter(None, path)),
        "TRITON_CACHE_DIR": str(folder / "cache"),
    }


#: The type and width that most models run in, on Hopper; all others take twenty times as long.
HOT = (
    "bf16 d128", "bf16 width 4096", "copy (bf16", "reduce", "silu_multiply bf16",
    "int4 decode bf16, d128", "int8 decode bf16, d128",
)  # fmt: skip


@pytest.mark.parametrize(
    ("which", "chips", "compiler"),
    [
        pytest.param(HOT, ["90"], "installed", id="hot"),
        # seven minutes on one core; docs/results/kernels.csv shows those of the installed one
        pytest.param(
            ("",),
            ["80", "90"],
            "oldest",
            id="all",
            marks=[pytest.mark.slow, pytest.mark.timeout(5400)],
        ),
    ],
    indirect=["compiler"],
)
def test_every_variant_builds_without_spills_in_hot_kernels(
    which: Sequence[str], chips: Sequence[str], tmp_path: Path, compiler: dict[str, str]
):
    words = ["--chips", *chips, "--only", *which, "--output", str(tmp_path / "kernels.json")]
    done = run(*words, **compiler)
    assert done.returncode == 0, done.stdout + done.stderr
    built = json.loads((tmp_path / "kernels.json").read_text())
    assert {one["chip"] for one in built} == {f"sm_{chip}" for chip in chips}
    assert all(one["registers"] > 0 for one in built)
    assert not compiler or OLDEST is None or f"(triton {OLDEST[1]})" in done.stdout
    for kernel, row in table().items():
        if "triton" in row:
            assert any(kernel in one["variant"] for one in built), kernel


@pytest.mark.parametrize(
    ("module", "variant", "most", "wide"),
    [
        ("ragged_decode_triton", "ragged_decode decode bf16 d128", 480, True),
        ("quantised_decode_triton", "quantised_decode int4 decode bf16, d128", 1150, False),
        # the oldest compiler puts a few bytes of these aside
        *(
            pytest.param(
                "quantised_decode_triton",
                f"quantised_decode {form} bf16, d128",
                1600,
                False,
                marks=pytest.mark.slow,
            )
            for form in ("fp8 decode", "int8 decode capped")
        ),
    ],
)
def test_the_loop_of_a_step_is_what_it_should_be(
    module: str, variant: str, most: int, wide: bool, compiler: dict[str, str]
):
    """Blocks of 64 entries: products on tensor cores, asynchronous copies of 16 bytes (of codes, 8
    or 16), nothing in local memory, and no more instructions than the memory leaves time for."""
    done = subprocess.run(
        [sys.executable, str(REPOSITORY / "test/helpers/machine_code.py"), "90", module, variant],
        capture_output=True, text=True, env=clean(**compiler), check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    loops = json.loads(done.stdout)[variant]
    assert len(loops) >= 2, "the loops of prefix and tail"
    for kinds in loops:
        copies = {name: count for name, count in kinds.items() if name.startswith("LDGSTS")}
        assert sum(copies.values()) >= 12
        assert not wide or all(name.endswith(".128") for name in copies), copies
        assert sum(count for name, count in kinds.items() if name.startswith("HMMA")) >= 32
        assert not [name for name in kinds if name.startswith(("LDL", "STL"))]
        assert sum(kinds.values()) <= most


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
