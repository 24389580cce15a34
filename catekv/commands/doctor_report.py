"""What a bug report needs: versions, devices, active kernels, and whether a model and mask fit."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import re
import shutil
from dataclasses import asdict
from pathlib import Path

from catekv.commands.doctor_findings import Check, Findings
from catekv.errors import UserError
from catekv.evaluation.records import environment
from catekv.kernels import dispatch
from catekv.prefill.sizes import GIB

#: Variables that change what runs; no others are printed, they may hold secrets.
VARIABLES = (
    dispatch.VARIABLE, "CATEKV_DATA", "TRITON_INTERPRET", "CUDA_VISIBLE_DEVICES",
    "OMP_NUM_THREADS", "HF_HUB_OFFLINE",
)  # fmt: skip


def run(model: str | None, mask: str | None, *, as_json: bool) -> int:
    """Print the findings; exit code 1 if something that was checked does not fit."""
    findings = examine(model, mask)
    if as_json:
        print(json.dumps({**asdict(findings), "fits": findings.fits}, indent=2))
    else:
        print(as_text(findings))
    return 0 if findings.fits else 1


def examine(model: str | None = None, mask: str | None = None) -> Findings:
    """Look at the installation, and at a model and a head mask if they are named.

    Args:
        model: local folder, .gguf file or hub name. Its weights are not read.
        mask: folder or file of a head mask; without a model it is held against the embedded one
            only if that is named.
    """
    findings = Findings()
    findings.facts["versions"] = {
        **environment.versions(),
        "commit": environment.git_commit() or "not a clone",
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
    }
    findings.facts["devices"] = _devices()
    findings.facts["kernels"] = _kernels(findings)
    findings.facts["extras"] = _extras()
    findings.facts["environment"] = {name: os.environ.get(name) or "not set" for name in VARIABLES}
    findings.facts["embedded model"] = {"folder": _embedded()}
    _check_data(findings)
    if model is not None or mask is not None:
        from catekv.commands.doctor_fit import examine_fit

        examine_fit(findings, model, mask)
    return findings


def as_text(findings: Findings) -> str:
    """One line per fact, aligned, to be pasted into a bug report."""
    names = [name for facts in findings.facts.values() for name in facts]
    width = max(map(len, [*names, *(check.name for check in findings.checks)])) + 2
    lines: list[str] = []
    for heading, facts in findings.facts.items():
        lines += [*([""] if lines else []), f"[{heading}]"]
        lines += [f"{name:<{width}}{value}" for name, value in facts.items()]
    if findings.checks:
        lines += ["", "[checks]"]
        lines += [
            f"{check.name:<{width}}{'ok' if check.fits else 'DOES NOT FIT'}: {check.reason}"
            for check in findings.checks
        ]
    return "\n".join(lines)


def _devices() -> dict[str, str]:
    import torch

    free = environment.free_memory_bytes("cpu")
    disk = shutil.disk_usage(Path.cwd())
    facts = {
        "cpu": f"{os.cpu_count()} cores, {torch.get_num_threads()} torch threads",
        "free memory": f"{free / GIB:.1f} GiB" if free else "unknown",
        "free disk": f"{disk.free / GIB:.1f} GiB here",
    }
    if not torch.cuda.is_available():
        return {**facts, "cuda": f"none (torch is built {_cuda_build()})"}
    for index in range(torch.cuda.device_count()):
        device = f"cuda:{index}"
        found = environment.device_description(device)
        major, minor = torch.cuda.get_device_capability(index)
        unused = environment.free_memory_bytes(device)
        free_text = f", {unused / GIB:.1f} GiB free" if unused is not None else ""
        facts[device] = (
            f"{found['name']}, sm_{major}{minor}, {found['memory_bytes'] / GIB:.0f} GiB{free_text}"
        )
    return facts


def _cuda_build() -> str:
    import torch

    return f"for CUDA {torch.version.cuda}" if torch.version.cuda else "without CUDA"


def _kernels(findings: Findings) -> dict[str, str]:
    """Which implementation of every kernel runs on the device that ``auto`` is, and why."""
    from catekv.loading import resolve_device

    device = resolve_device("auto")
    facts = {"device": str(device)}
    refused: dict[str, str] = {}
    for kernel in dispatch.table():
        try:
            backend = chosen_backend(kernel, device)
        except UserError as error:
            refused[kernel] = str(error)
            facts[kernel] = "none"
        else:
            facts[kernel] = f"{backend} ({_why(kernel, device.type, backend)})"
    if refused:
        reason = f"no {', '.join(refused)}: {next(iter(refused.values()))}"
        findings.checks.append(Check(dispatch.VARIABLE, False, reason))
    return facts


def chosen_backend(kernel: str, device: object) -> str:
    """Name of the backend that a kernel takes for tensors on a ``torch.device``.

    Raises:
        UserError: none can run, e.g. because the environment asks for triton without a GPU.
    """
    function = dispatch.choose(kernel, device)  # type: ignore[arg-type]
    # a kernel may take the torch form of another one: only the end of the name is its own
    return function.__name__.rpartition("_")[2]


def _why(kernel: str, kind: str, backend: str) -> str:
    forced = os.environ.get(dispatch.VARIABLE, "").strip().lower()
    if forced and forced != "auto":
        same = f"{dispatch.VARIABLE}={forced}"
        return same if backend == forced else f"{same}, which this kernel does not have"
    if backend == "triton":
        return "CUDA device and triton are there"
    if "triton" not in dispatch.table()[kernel]:
        return "torch is its only form"
    return "triton is not installed" if kind == "cuda" else "triton runs on GPUs"


def _extras() -> dict[str, str]:
    """Optional parts and what is missing of them, as the installed package declares them."""
    try:
        declared = importlib.metadata.requires("catekv") or []
    except importlib.metadata.PackageNotFoundError:
        return {"catekv": "not installed as a package, only on the path"}
    parts: dict[str, list[str]] = {}
    for line in declared:
        found = re.match(r"([A-Za-z0-9._-]+).*?;.*extra\s*==\s*['\"]([^'\"]+)['\"]", line)
        if found:
            parts.setdefault(found.group(2), []).append(found.group(1))
    facts = {}
    for extra, packages in parts.items():
        missing = [name for name in packages if _version(name) is None]
        versions = ", ".join(f"{name} {_version(name)}" for name in packages if name not in missing)
        facts[extra] = f"missing {', '.join(missing)}" if missing else versions
    return facts


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _embedded() -> str:
    from catekv.models import embedded

    try:
        return str(embedded.path())
    except UserError as error:
        return str(error)


def _check_data(findings: Findings) -> None:
    folder = os.environ.get("CATEKV_DATA")
    if folder:
        there = Path(folder).is_dir()
        reason = "the folder is there" if there else f"{folder} is no folder; change the variable"
        findings.checks.append(Check("CATEKV_DATA", there, reason))
