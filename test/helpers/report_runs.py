"""Small run directories, efficiency results and masks to report on."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import torch

from catekv import HeadMask
from catekv.evaluation.records.journal import line_of
from catekv.evaluation.records.records import Record, RunDirectory
from catekv.methods.head_mask import save_statistics

RULER = ("ruler/niah_single_1", "ruler/vt")


def mask() -> HeadMask:
    rows = ["0110", "1000"]
    meta = {"recipe": {"kind": "vote", "reference": "ruler/vt", "k": 0.99}, "ratio": 0.375}
    return HeadMask(torch.tensor([[c == "1" for c in row] for row in rows]), meta)


def methods(budget: int = 64) -> dict[str, dict[str, Any]]:
    content = mask().to_dict()
    content.pop("meta")
    return {
        "full": {"hash": "f", "name": "full", "options": {"name": "full"}, "mask": None},
        "catekv": {
            "hash": "c",
            "name": "catekv",
            "options": {"name": "catekv", "head_mask": content, "ratio": 0.375},
            "mask": mask().meta,
        },
        "snapkv": {
            "hash": f"s{budget}",
            "name": "snapkv",
            "options": {"name": "snapkv", "budget": budget},
            "mask": None,
        },
    }


def manifest(**changes: Any) -> dict[str, Any]:
    model_hash = changes.pop("model_hash", "weights-1")
    return {
        "format": 1,
        "model": "tiny",
        "config_hash": f"config of {model_hash}",
        "configuration": {"model_hash": model_hash, "seed": 42, "dtype": "float32"},
        "methods": methods(),
        "tasks": list(RULER),
        "lengths": [512],
        "samples": 4,
        "questions": ["agnostic"],
        "versions": {"catekv": "0", "torch": "2"},
        "device": {"kind": "cpu", "name": "a processor"},
        "git_commit": "0123456789abcdef",
        "starts": [{"time": "2026-01-01T00:00:00+00:00", "command": "catekv evaluate"}],
        **changes,
    }


_SCORE = {"full": 0.95, "catekv": 0.9, "snapkv": 0.6}
_SHARE = {"full": 1.0, "catekv": 0.45, "snapkv": 0.125}


def records(
    found: dict[str, Any], *, samples: int = 4, data: str = "a", tasks: Any = None
) -> list[Record]:
    """Scores of 0 and 1 drawn per sample, the same whenever they are asked for."""
    chance = random.Random(0)
    made = []
    for task in tasks or found["tasks"]:
        for length in found["lengths"]:
            for question in found["questions"]:
                for index in range(samples):
                    for label, method in found["methods"].items():
                        share = _SHARE[method["name"]]
                        depth = 100.0 * (index % 5) / 4
                        score = float(chance.random() < _SCORE[method["name"]])
                        made.append(
                            Record(
                                task=task,
                                length=length,
                                index=index,
                                method=label,
                                question=question,
                                method_hash=method["hash"],
                                sample_hash=f"{data}-{task}-{length}-{index}",
                                prediction="12345",
                                references=("12345",),
                                wording="small-1",
                                official=score,
                                strict=score,
                                scores={"catekv": score},
                                kept_share=share,
                                asked_share=share,
                                stored_bytes=int(share * (1 << 20)),
                                full_bytes=1 << 20,
                                prompt_tokens=length,
                                decode_seconds=0.01 * (1 + share),
                                decode_steps=4,
                                prefill_seconds=0.2,
                                metadata={"depth": depth, "length": 3000 + 2500 * (index % 3)},
                            )
                        )
    return made


def write_run(folder: Path, found: dict[str, Any], rows: list[Record]) -> Path:
    directory = RunDirectory(folder)
    directory.prepare(found, resume=True, overwrite=True)
    (folder / "samples.jsonl").write_bytes(b"".join(line_of(row.to_dict()) for row in rows))
    return folder


def run(folder: Path, *, samples: int = 4, data: str = "a", **changes: Any) -> Path:
    """A run directory with records of all its methods."""
    found = manifest(**changes)
    return write_run(folder, found, records(found, samples=samples, data=data))


def efficiency(folder: Path) -> Path:
    """Results as ``catekv efficiency --output`` writes them."""
    from catekv.evaluation.efficiency.measurement import Measurement

    rows = [
        Measurement(
            variant=variant,
            length=length,
            batch=1,
            method=kept < length,
            kept_tokens=kept,
            stored_bytes=int(kept) << 10,
            full_bytes=length << 10,
            step_seconds=[seconds, 1.1 * seconds, 0.9 * seconds],
            step_bytes=1e6,
            attention_seconds=0.4 * seconds,
            rest_seconds=0.5 * seconds,
        )
        for length in (1024, 2048)
        for variant, kept, seconds in (
            ("full, our kernel", float(length), 1e-5 * length),
            ("catekv", 0.4 * length, 6e-6 * length),
        )
    ]
    rows.append(Measurement(variant="full, flash-attn", length=1024, batch=1))
    rows[-1].leave_out("absent", "flash_attn is not installed")
    content = {
        "title": "tiny (float32), a processor",
        "notes": ["a note of the run"],
        "results": [row.to_dict() for row in rows],
    }
    folder.mkdir(parents=True)
    (folder / "efficiency.json").write_text(json.dumps(content))
    return folder


def mask_folder(folder: Path) -> Path:
    """A folder of head masks with the statistics that make :func:`mask` at its ratio."""
    cvs = torch.full((5, 2, 4), 2.0, dtype=torch.float64)
    cvs[:, mask().adaptive] = 0.5
    save_statistics(folder, cvs)
    HeadMask.load(folder, 0.375).save(folder)
    return folder
