"""Head files of other projects: round trips, rules of their own, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from catekv import methods
from catekv.calibration.heads.exchange import FORMATS, format_of, mask_from, read_heads
from catekv.calibration.heads.formats.asked import Asked
from catekv.calibration.heads.formats.duo_attention import gate_heads
from catekv.calibration.heads.formats.known_model import KnownModel
from catekv.calibration.heads.head_scores import HeadScores
from catekv.errors import UserError

MODEL = KnownModel(3, 4, 8, (0, 1, 2))
SCORES = HeadScores(
    np.random.default_rng(0).permutation(12).reshape(3, 4) / 16 - 0.25,
    {"kind": "test", "config_hash": "0123"},
)
#: format -> file, and what scores become in it
KINDS: dict[str, tuple[str, Any]] = {
    "duo_attention": ("folder", lambda scores: (scores + 0.25) * 16 / 11),
    "kvzip": ("model-squad-0.pt", lambda scores: scores),
    "headkv": ("model_heads.json", lambda scores: scores + 0.25),
    "catekv": ("masks", lambda scores: scores > np.sort(scores.flat)[5]),
    "cokv": ("cc_task_1.npy", lambda scores: scores),
    "tangram": ("pg4_r0.npz", lambda scores: scores),
}


def asked(**changes: Any) -> Asked:
    return Asked(**{"model": MODEL, "ratio": 0.5, "trust_pickle": True, "tokens": 96, **changes})


def test_all_formats_are_tried_here() -> None:
    assert set(KINDS) == set(FORMATS)


@pytest.mark.parametrize("form", KINDS)
def test_round_trips(form: str, tmp_path: Path) -> None:
    name, becomes = KINDS[form]
    path = tmp_path / name
    FORMATS[form].write(SCORES, path, asked())
    assert format_of(path) == form
    found = read_heads(path, asked())
    # the best half is the same whatever the numbers are
    assert found.mask(0.5) == SCORES.mask(0.5)
    assert found.recipe["kind"] == form
    assert found.recipe["ratio"] == 0.5
    if form == "tangram":
        assert found.scores.sum() == pytest.approx(6)
    else:
        np.testing.assert_allclose(found.scores, becomes(SCORES.scores), atol=1e-7)


def test_own_files_are_read_and_refused_for_another_model(tmp_path: Path) -> None:
    path = SCORES.save(tmp_path / "heads.npz")
    assert np.array_equal(read_heads(path, asked()).scores, SCORES.scores)
    other = KnownModel(3, 4, 8, (0, 1, 2), "m", "4567")
    with pytest.raises(UserError, match="configuration 0123, this one has 4567"):
        read_heads(path, asked(model=other))


def test_gates_become_full_heads_by_their_own_rule(golden: Any) -> None:
    for case in golden("methods_2026", "gate_heads"):
        gates = torch.tensor(case["inputs"]["gates"])
        found = gate_heads(gates, case["inputs"]["sparsity"])
        assert found.threshold == pytest.approx(case["expected"]["threshold"], abs=1e-5)
        assert found.full.int().tolist() == case["expected"]["full"]


def test_query_heads_and_hybrid_layers_are_brought_to_the_model(tmp_path: Path) -> None:
    path = tmp_path / "one_heads.json"
    rows = {f"{layer}-{head}": [layer + head, 1] for layer in range(2) for head in range(4)}
    path.write_text(json.dumps(rows))
    hybrid = KnownModel(3, 2, 4, (0, 2))
    found = read_heads(path, Asked(hybrid))
    # means of the trials, maximum of a group; the middle layer is not compressed
    assert found.scores.tolist() == [[1, 2], [0.5, 0.5], [1.5, 2.5]]
    assert read_heads(path, Asked(hybrid), query_rule="mean").scores[0].tolist() == [0.75, 1.75]


def test_a_cluster_map_has_what_its_server_checks(tmp_path: Path) -> None:
    for scope in ("global", "per_layer"):
        path = FORMATS["tangram"].write(SCORES, tmp_path / f"{scope}.npz", asked(scope=scope))
        with np.load(path, allow_pickle=False) as arrays:
            cluster, column = arrays["cluster_of"], arrays["column_of"]
            members, meta = arrays["cluster_members"], json.loads(bytes(arrays["meta"]))
        for layer, head in np.ndindex(3, 4):
            assert members[cluster[layer, head], column[layer, head]].tolist() == [layer, head]
        assert cluster.dtype == column.dtype == members.dtype == np.int32
        assert meta["cluster_scope"] == scope
        assert meta["static_layer_ids"] == [0, 1, 2]
        assert 0 <= meta["waste"] < 1
        if scope == "per_layer":
            assert (cluster == np.arange(3)[:, None]).all()


TEXTS = {
    "full_attention_heads.tsv": [
        ("1\t0.5\n0.25\n", r"line 2 has 1 values, line 1 has 2"),
        ("1\t0.5\n0.25\tnan\n", r"line 2 holds something that is no finite number"),
        ("0.5\t0.5\n0.5\t0.5\n", r"all scores are 0.5"),
        ("0\t1\n", r"for 1 layers but the model has 2 layers x 2 KV heads"),
    ],
    "cv.csv": [
        ("0.5,0.25\n0.125,inf\n", r"line 2 holds something that is no finite number"),
        ("0.5,0.25,1\n0.125,0,2\n", r"for 3 heads a layer but the model has 2 layers x 2"),
    ],
    "x_heads.json": [
        ('{"0-0": [1], "1-1": [1]}', r"names 2 heads, but its layers and heads reach")
    ],
}


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [(name, *case) for name, cases in TEXTS.items() for case in cases],
)
def test_damaged_and_foreign_files_are_refused(
    name: str, text: str, message: str, tmp_path: Path
) -> None:
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        read_heads(path, Asked(KnownModel(2, 2, 4, (0, 1)), ratio=0.5))


def test_damaged_binary_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    path.write_bytes(b"no archive")
    with pytest.raises(UserError, match="is no tensor file"):
        read_heads(path, Asked())
    torch.save({"scores": torch.ones(2, 2)}, path)
    with pytest.raises(UserError, match="holds no tensor"):
        read_heads(path, Asked())
    FORMATS["tangram"].write(SCORES, path := tmp_path / "map.npz", asked())
    with np.load(path) as loaded:
        arrays = dict(loaded)
    np.savez(path, **{**arrays, "column_of": arrays["column_of"] * 0})
    with pytest.raises(UserError, match="a slot of its own"):
        read_heads(path, Asked())
    FORMATS["cokv"].write(SCORES, path := tmp_path / "cc.npy", asked())
    with pytest.raises(UserError, match="holds 12 players and not their layers"):
        read_heads(path, asked(model=KnownModel()))


def test_masks_of_query_heads_need_the_model(tmp_path: Path) -> None:
    path = tmp_path / "one_heads.json"
    path.write_text('{"0-0": [1.0], "0-1": [2.0], "0-2": [0.5], "0-3": [0.1]}')
    with pytest.raises(UserError, match=r"counts query heads.*catekv heads import FILE --model"):
        mask_from(path, 0.5)


def test_gates_of_rlkv_are_read_like_those_of_duo_attention(tmp_path: Path) -> None:
    table = np.linspace(0, 1.02, 12).reshape(3, 4)
    np.savetxt(tmp_path / "adapter_weights.tsv", table, delimiter="\t")
    for path in (tmp_path, tmp_path / "adapter_weights.tsv"):
        found = read_heads(path, asked())
        assert found.recipe["full_heads_by_its_rule"] == 6
        assert np.allclose(found.scores, table.clip(0, 1))
    assert mask_from(tmp_path, 0.25).adaptive.sum() == 3
    method = methods.create("duo_attention", pattern=tmp_path, streaming_share=0.5)
    assert method.streaming.int().sum() == 6
    assert not method.streaming[2].any()
