"""Text of users: with a byte order mark it reads as without, other encodings are named."""

from __future__ import annotations

import codecs
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from catekv.calibration.head_masks.cv_files import read_cv
from catekv.errors import UserError
from catekv.evaluation.predictions.scores import read_predictions
from catekv.evaluation.sweep.grid import read_grid
from catekv.files import read_text
from catekv.methods.allocator_files import load_plain, read_budgets, read_scores
from catekv.methods.head_mask import HeadMask
from catekv.tasks.drawing.essay import file_sentences
from catekv.tasks.drawing.words import read_words
from catekv.tasks.rows.rows import read_rows
from catekv.tasks.rows.sources import _table_rows

ROW = json.dumps({"context": "Café", "input": "Who?", "answer": ["é"]}, ensure_ascii=False)
PREDICTION = json.dumps({"pred": "Café", "answers": ["Café"], "all_classes": None, "length": 5})
GRID = "models: [tiny]\nmethods: [snapkv]\ntasks: [synthetic/kv]\nlengths: [64]\n"
READERS: dict[str, tuple[Callable[[Path], Any], str, str]] = {
    "rows": (read_rows, "rows.jsonl", f"{ROW}\n{ROW}\n"),
    "list": (read_rows, "rows.json", f"[{ROW}]"),
    "csv rows": (_table_rows, "rows.csv", "context,input\nCafé,Who?\n"),
    "predictions": (read_predictions, "hotpotqa.jsonl", PREDICTION),
    "mask": (lambda path: HeadMask.load(path).adaptive.tolist(), "mask.csv", "1,0\n0,1\n"),
    "gates": (
        lambda path: HeadMask.load(path, 0.5).adaptive.tolist(),
        "full_attention_heads.tsv",
        "0.5\t0.1\n0.2\t0.9\n",
    ),
    "cv": (lambda path: read_cv(path).tolist(), "cv.csv", "0.5,0.1\n0.2,0.9\n"),
    "scores": (read_scores, "scores.csv", "0.5,0.1\n0.2,0.9\n"),
    "budgets": (read_budgets, "budgets.csv", "5,1\n2,9\n"),
    "allocator": (load_plain, "budgets.yaml", "kind: pyramid\nbeta: 10\n"),
    "allocator in JSON": (load_plain, "budgets.json", '{"kind": "pyramid"}'),
    "words": (lambda path: read_words(str(path)), "words.txt", "café\nharbour\n"),
    "essays": (lambda path: file_sentences(str(path)), "essay.txt", "The café is open. It is."),
    "text": (read_text, "context.txt", "Café\nat the harbour\n"),
}


def written(folder: Path, reader: str, mark: bytes, encoding: str = "utf-8") -> Path:
    _, name, text = READERS[reader]
    folder.mkdir()
    file = folder / name
    file.write_bytes(mark + text.encode(encoding))
    return file


@pytest.mark.parametrize("reader", READERS)
def test_a_byte_order_mark_is_no_part_of_the_text(reader: str, tmp_path: Path):
    read = READERS[reader][0]
    marked = read(written(tmp_path / "marked", reader, codecs.BOM_UTF8))
    plain = read(written(tmp_path / "plain", reader, b""))
    assert repr(marked).replace("marked", "plain") == repr(plain)


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-32"])
def test_wide_encodings_are_named(reader: str, encoding: str, tmp_path: Path):
    with pytest.raises(UserError, match=r"UTF-16|no CV file") as error:
        READERS[reader][0](written(tmp_path / "wide", reader, b"", encoding))
    assert "\n" not in str(error.value)


def test_latin_1_is_named(tmp_path: Path):
    file = written(tmp_path / "latin", "rows", b"", "latin-1")
    with pytest.raises(UserError, match=r"cannot read .* not UTF-8 .*Latin-1.*0xe9.* save"):
        read_rows(file)


def test_marks_in_the_middle_of_files_that_were_joined(tmp_path: Path):
    file = tmp_path / "rows.jsonl"
    line = codecs.BOM_UTF8 + ROW.encode() + b"\n"
    file.write_bytes(line + line)
    assert [row for _, row in read_rows(file)] == [json.loads(ROW)] * 2


def test_the_grid_of_a_sweep_may_begin_with_a_mark(tmp_path: Path):
    file = tmp_path / "grid.yaml"
    contents = []
    for mark in (b"", codecs.BOM_UTF8):
        file.write_bytes(mark + GRID.encode())
        try:
            contents.append(repr(read_grid(file)))
        except UserError as error:
            contents.append(str(error))
    assert contents[0] == contents[1]


def test_a_folder_of_masks_with_marks(tmp_path: Path):
    mask = HeadMask(torch.tensor([[True, False], [False, True]]), {"ratio": 0.5})
    file = mask.save(tmp_path)
    for path in (file, tmp_path / "meta.json"):
        path.write_bytes(codecs.BOM_UTF8 + path.read_bytes())
    assert HeadMask.load(tmp_path) == mask
