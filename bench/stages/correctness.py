"""``pytest -m gpu`` in several processes: correctness needs no quiet device, so they share it."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from pathlib import Path

from bench.cases import Result, Scale
from bench.results import ROOT
from catekv.evaluation.efficiency import memory

PROCESSES = 8
#: What the tests run on instead of a GPU, in triton's interpreter.
ON_CPU = {"CATEKV_GPU_TESTS": "cpu", "TRITON_INTERPRET": "1"}


def run(scale: Scale, name: str) -> Result:
    """Wrong if a test fails or none ran."""
    if importlib.util.find_spec("pytest") is None:
        return Result(wrong=True, note="pytest is not installed: nothing was compared")
    memory.free()
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        words = [sys.executable, "-m", "pytest", "-m", "gpu", str(ROOT / "test" / "gpu")]
        words += ["-p", "no:cacheprovider", "-o", "addopts=", "-q", f"--junitxml={report}"]
        if importlib.util.find_spec("xdist") is not None and not scale.tiny:
            words += ["-n", str(PROCESSES)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", **(ON_CPU if scale.tiny else {})}
        done = subprocess.run(
            words, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
        )
        if not report.exists():
            return Result(wrong=True, note=f"pytest ended with {done.returncode}", data=done.stdout)
        return read(report)


def read(report: Path) -> Result:
    """Counts of a JUnit report, and a line per test that failed."""
    suite = next(ElementTree.parse(report).getroot().iter("testsuite"))
    count = {key: int(suite.get(key, 0)) for key in ("tests", "failures", "errors", "skipped")}
    passed = count["tests"] - count["failures"] - count["errors"] - count["skipped"]
    rows = []
    for case in suite.iter("testcase"):
        for bad in (*case.iter("failure"), *case.iter("error")):
            said = " ".join((bad.get("message") or "").split())
            rows.append({"test": case.get("name", "?"), "says": said[:200].replace("|", "/")})
    note = f"{passed} passed, {len(rows)} failed, {count['skipped']} skipped"
    return Result(rows, wrong=bool(rows) or not passed, note=note, data=count)
