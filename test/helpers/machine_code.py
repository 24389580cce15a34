"""What the inner loops of a kernel are made of, on a chip that is not there.

    python machine_code.py 90 ragged_decode_triton "ragged_decode decode bf16 d128" ...

prints, as JSON, the instructions of every innermost loop with matrix products of these variants, by
kind. A process of its own: the compiler and the interpreter exclude each other.
"""

from __future__ import annotations

import importlib
import json
import re
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

_INSTRUCTION = re.compile(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)")
_LABEL = re.compile(r"^(\.L_x_\d+):")


def disassembled(cubin: bytes) -> str:
    """Machine code as text, by the disassembler that triton carries."""
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "nvdisasm"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        return subprocess.run(
            [str(tool), "-c", file.name], capture_output=True, text=True, check=True
        ).stdout


def inner_loops(text: str) -> list[Counter[str]]:
    """Instructions of every loop without another in it that has matrix products."""
    lines = text.splitlines()
    labels = {found[1]: at for at, line in enumerate(lines) if (found := _LABEL.match(line))}
    loops = []
    for at, line in enumerate(lines):
        found, target = _INSTRUCTION.match(line), re.search(r"\.L_x_\d+", line)
        if found and found[1].startswith("BRA") and target and labels.get(target[0], at) < at:
            loops.append((labels[target[0]], at))
    inner = [
        one
        for one in loops
        if not any(one[0] <= other[0] and other[1] <= one[1] for other in loops if other != one)
    ]
    counted = [
        Counter(found[1] for line in lines[start : stop + 1] if (found := _INSTRUCTION.match(line)))
        for start, stop in inner
    ]
    return [kinds for kinds in counted if any(name.startswith("HMMA") for name in kinds)]


def main() -> None:
    from catekv.kernels.compile_check import compiled

    capability, module, *names = sys.argv[1:]
    variants = importlib.import_module(f"catekv.kernels.{module}").variants()
    known = {variant.name: variant for variant in variants}
    print(
        json.dumps(
            {
                name: inner_loops(disassembled(compiled(known[name], int(capability)).asm["cubin"]))
                for name in names
            }
        )
    )


if __name__ == "__main__":
    main()
