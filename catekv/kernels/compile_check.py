"""Build every kernel for real chips on a machine that has none of them.

``python -m catekv.kernels.compile_check`` compiles all variants for sm_80 (A100) and sm_90 (H100,
H200) down to machine code and lists registers, spills and shared memory. It fails on a spill of
more than a few words in a kernel that runs in every decode step, on more shared memory than the
chip has, and where fewer programs share a multiprocessor than the launch counts on. It says nothing
about results or speed: results are compared in triton's interpreter and on a GPU.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from catekv.errors import UserError
from catekv.files import write_atomically, write_table
from catekv.kernels.dispatch import has_triton, table
from catekv.kernels.variant import Variant

#: Shared memory that one program may use, in bytes, per compute capability. A multiprocessor has a
#: KiB more, and takes a KiB of it for each program.
SHARED_MEMORY = {80: 163 * 1024, 90: 227 * 1024}
#: Registers of a multiprocessor; a warp gets them in units.
REGISTERS, REGISTER_UNIT = 65536, 256


@dataclass(frozen=True)
class Built:
    """What one variant became on one chip; ``problem`` is empty if it is fit to ship."""

    variant: str
    chip: str
    registers: int
    spilled_bytes: int
    shared_bytes: int
    problem: str


def modules() -> list[str]:
    """Modules with triton kernels, from the dispatch table."""
    return sorted({row["triton"] for row in table().values() if "triton" in row})


def compiled(variant: Variant, capability: int) -> Any:
    """What triton makes of one variant for one compute capability (80, 90 ...)."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    function = variant.function
    names = function.arg_names
    arguments: dict[str, Any] = {
        "signature": {
            name: "constexpr" if name in variant.constants else variant.signature[name]
            for name in names
        },
        "constexprs": {(names.index(name),): value for name, value in variant.constants.items()},
        # what a launch finds out about its arguments: pointers and strides are aligned
        "attrs": {(names.index(name),): [["tt.divisibility", 16]] for name in variant.divisible},
    }
    return triton.compile(
        ASTSource(fn=function, **arguments),
        target=GPUTarget("cuda", capability, 32),
        options={
            "num_warps": variant.num_warps,
            "num_stages": variant.num_stages,
            "enable_fp_fusion": True,
        },
    )


#: Bytes a thread that an assembler may put aside to keep to the registers it is given: a few words
#: that are written and read once, before and behind the loop over the prefix.
SPILLED_OUTSIDE = 16


def build(variant: Variant, capability: int) -> Built:
    """Compile one variant for one compute capability, and count what it takes."""
    chip = f"sm_{capability}"
    try:
        made = compiled(variant, capability)
        log = _assemble(made.asm["ptx"])
    except Exception as error:
        reason = str(error).strip() or type(error).__name__
        return Built(variant.name, chip, 0, 0, 0, f"does not compile: {reason.splitlines()[-1]}")
    registers, spilled = (_number(log, p) for p in (r"Used (\d+) reg", r"(\d+) bytes spill stores"))
    shared = made.metadata.shared
    problem = ""
    if spilled > SPILLED_OUTSIDE and variant.hot:
        problem = f"spills {spilled} bytes of registers"
    elif shared > SHARED_MEMORY[capability]:
        problem = f"needs {shared} bytes of shared memory, {SHARED_MEMORY[capability]} are there"
    else:
        fit = programs_that_fit(registers, variant.num_warps, shared, capability)
        if fit < variant.programs:
            problem = f"{fit} programs share a multiprocessor, {variant.programs} are counted on"
    return Built(variant.name, chip, registers, spilled, shared, problem)


def programs_that_fit(registers: int, num_warps: int, shared: int, capability: int) -> int:
    """How many programs share a multiprocessor, by its registers and its shared memory."""
    per_warp = -(-registers * 32 // REGISTER_UNIT) * REGISTER_UNIT
    by_registers = REGISTERS // max(1, per_warp * num_warps)
    return min(by_registers, (SHARED_MEMORY[capability] + 1024) // (shared + 1024))


def _assemble(ptx: str) -> str:
    """Output of an assembler that triton carries, which counts registers and spills."""
    import triton

    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    architecture = re.search(r"\.target (sm_\w+)", ptx)
    assert architecture is not None
    with tempfile.NamedTemporaryFile("w", suffix=".ptx") as file:
        file.write(ptx)
        file.flush()
        # two of them since Blackwell, and each knows its own versions of the language only
        for name in ("ptxas", "ptxas-blackwell"):
            command = [str(tools / name), "-v", f"-arch={architecture.group(1)}", file.name]
            done = subprocess.run([*command, "-o", os.devnull], capture_output=True, text=True)
            if done.returncode == 0:
                return done.stderr
    raise RuntimeError(done.stderr.strip())


def _number(text: str, pattern: str) -> int:
    found = re.search(pattern, text)
    return int(found.group(1)) if found else 0


def _build_named(module: str, index: int, capability: int) -> Built:
    return build(importlib.import_module(module).variants()[index], capability)


#: Columns of the table of all variants.
HEADER = ("variant", "chip", "registers", "spilled_bytes", "shared_kib", "problem")


def check(chips: Sequence[int], patterns: Sequence[str] = ("",), jobs: int = 2) -> list[Built]:
    """Build all variants whose name contains one of the ``patterns``, in ``jobs`` processes.

    Raises:
        UserError: triton is not installed, or only its interpreter is active.
    """
    if not has_triton():
        raise UserError("the compile check needs triton: pip install 'catekv[gpu]'")
    if os.environ.get("TRITON_INTERPRET") == "1":
        raise UserError("unset TRITON_INTERPRET: the interpreter replaces the compiler")
    work = [
        (module, index, chip)
        for module in modules()
        for index, variant in enumerate(importlib.import_module(module).variants())
        for chip in chips
        if any(pattern in variant.name for pattern in patterns)
    ]
    if not work:
        raise UserError(f"no variant's name contains {' or '.join(map(repr, patterns))}")
    with ProcessPoolExecutor(jobs) as pool:
        return list(pool.map(_build_named, *zip(*work, strict=True)))


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; exit code 1 if a variant is not fit to ship."""
    parser = argparse.ArgumentParser(
        prog="python -m catekv.kernels.compile_check", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument(
        "--chips", type=int, nargs="+", default=sorted(SHARED_MEMORY), choices=SHARED_MEMORY,
        help="compute capabilities (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--only",
        nargs="+",
        default=[""],
        metavar="TEXT",
        help="variants so named",
    )
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes")
    parser.add_argument("--output", type=Path, help="also write a .md, .csv or .json table here")
    parsed = parser.parse_args(arguments)
    try:
        built = check(parsed.chips, parsed.only, max(1, parsed.jobs))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    import triton

    text = render(built, f"triton {triton.__version__}")
    print(text)
    if parsed.output is not None:
        if parsed.output.suffix == ".json":
            text = json.dumps([asdict(one) for one in built], indent=1) + "\n"
        if parsed.output.suffix == ".csv":
            write_table(parsed.output, HEADER, [_cells(one) for one in built])
        else:
            write_atomically(parsed.output, text)
    return 1 if any(one.problem for one in built) else 0


def render(built: Sequence[Built], compiler: str) -> str:
    """Markdown table of what was built."""
    lines = [
        f"# Kernels as compiled ({compiler})\n",
        "Registers per thread, spilled bytes and shared memory of every variant; built without a "
        "GPU by `python -m catekv.kernels.compile_check`.\n",
        "| variant | chip | registers | spilled | shared KiB | problem |",
        "|---|---|---:|---:|---:|---|",
    ]
    lines += [f"| {' | '.join(_cells(one))} |" for one in built]
    return "\n".join(lines) + "\n"


def _cells(one: Built) -> list[str]:
    numbers = (one.registers, one.spilled_bytes, f"{one.shared_bytes / 1024:.1f}")
    return [one.variant, one.chip, *map(str, numbers), one.problem]


if __name__ == "__main__":
    sys.exit(main())
