"""Reading, writing, converting and checking head masks."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import catekv
from catekv import calibration
from catekv.errors import UserError
from catekv.methods import ModelShape
from catekv.methods.head_mask import HeadMask, mask_file_name, save_statistics
from catekv.methods.head_votes import STANDARD_RATIOS

PUBLISHED_SHAPES = {"llama3": (32, 8), "llama3.1": (32, 8), "phi": (32, 32), "yi": (48, 4)}


def write_published_folder(folder: Path, layers: int, heads: int) -> dict[float, HeadMask]:
    """Twelve nested masks written as the published files are: by plain text, not by ``save``."""
    folder.mkdir()
    order = torch.randperm(layers * heads, generator=torch.Generator().manual_seed(layers))
    masks = {}
    for ratio in STANDARD_RATIOS:
        mask = torch.zeros(layers * heads, dtype=torch.int64)
        mask[order[: -(-layers * heads * round(100 * ratio) // 100)]] = 1
        mask = mask.view(layers, heads)
        text = "\n".join(",".join(str(v) for v in row) for row in mask.tolist()) + "\n"
        (folder / f"head_type_p{round(100 * ratio)}.csv").write_text(text)
        masks[ratio] = HeadMask(mask)
    return masks


@pytest.mark.parametrize("model", PUBLISHED_SHAPES)
def test_published_folders_load_at_every_ratio(tmp_path: Path, model: str) -> None:
    layers, heads = PUBLISHED_SHAPES[model]
    masks = write_published_folder(tmp_path / model, layers, heads)
    for ratio, expected in masks.items():
        mask = HeadMask.load(tmp_path / model, ratio=ratio)
        assert mask == expected
        assert mask.adaptive.shape == (layers, heads)
        assert mask.adaptive.dtype == torch.bool
        assert mask.nominal_ratio == ratio
        assert mask.ratio == pytest.approx(ratio, abs=1 / heads)
    assert catekv.HeadMask is HeadMask


def test_file_names_round_and_never_truncate() -> None:
    assert [mask_file_name(r) for r in (0.29, 0.57, 0.58, 0.07)] == [
        "head_type_p29.csv",
        "head_type_p57.csv",
        "head_type_p58.csv",
        "head_type_p7.csv",
    ]


def test_saved_masks_are_plain_published_files(tmp_path: Path) -> None:
    mask = HeadMask(
        torch.tensor([[1, 0], [0, 0], [1, 1]]),
        {"ratio": 0.4, "model": "tiny", "config_hash": "abc", "recipe": {"k": 0.99, "alpha": 0.8}},
    )
    path = mask.save(tmp_path)
    assert path.name == "head_type_p40.csv"
    assert path.read_text() == "1,0\n0,0\n1,1\n"
    meta = json.loads((tmp_path / "meta.json").read_text())
    assert (meta["model"], meta["config_hash"], meta["ratio"]) == ("tiny", "abc", 0.4)
    assert meta["recipe"] == {"k": 0.99, "alpha": 0.8}
    assert list(meta["files"]) == ["head_type_p40.csv"]
    assert meta["adaptive_heads"] == 3
    again = HeadMask.load(path)
    assert again == mask
    assert again.nominal_ratio == 0.4
    assert again.meta["recipe"]["k"] == 0.99
    assert again.ratio == 0.5


def test_several_masks_share_a_folder(tmp_path: Path) -> None:
    for ratio in (0.25, 0.5):
        HeadMask.random((2, 4), ratio).save(tmp_path)
    assert HeadMask.load(tmp_path, 0.25).adaptive.sum() == 2
    assert HeadMask.load(tmp_path, 0.5).adaptive.sum() == 4
    with pytest.raises(UserError, match="several ratios; say which"):
        HeadMask.load(tmp_path)
    with pytest.raises(UserError, match=r"available ratios: 0\.25, 0\.5"):
        HeadMask.load(tmp_path, 0.3)


def test_every_mask_of_a_folder_keeps_its_own_description(tmp_path: Path) -> None:
    shared = {"model": "tiny", "recipe": {"k": 0.99}}
    for ratio in (0.25, 0.5):
        mask = HeadMask.random((2, 4), ratio)
        HeadMask(mask.adaptive, {**shared, "ratio": ratio}).save(tmp_path)
    other = HeadMask(HeadMask.random((2, 4), 0.75).adaptive, {"ratio": 0.75, "recipe": {"k": 0.9}})
    other.save(tmp_path)
    found = {ratio: HeadMask.load(tmp_path, ratio).meta for ratio in (0.25, 0.5, 0.75)}
    assert [meta["recipe"]["k"] for meta in found.values()] == [0.99, 0.99, 0.9]
    assert [meta["ratio"] for meta in found.values()] == [0.25, 0.5, 0.75]
    assert [meta["adaptive_heads"] for meta in found.values()] == [2, 4, 6]
    assert found[0.75]["model"] is None


def test_any_ratio_comes_from_the_statistics(tmp_path: Path) -> None:
    cvs = torch.rand(9, 4, 4, generator=torch.Generator().manual_seed(0))
    calibration.vote(cvs, 0.4).save(tmp_path)
    save_statistics(tmp_path, cvs, model="tiny")
    for ratio in (0.07, 0.333, 0.4, 1.0):
        mask = HeadMask.load(tmp_path, ratio)
        assert mask == calibration.vote(cvs, ratio)
        assert mask.nominal_ratio == ratio
    assert HeadMask.load(tmp_path, 0.333).meta["model"] == "tiny"


def test_a_file_of_a_close_but_different_ratio_is_not_taken(tmp_path: Path) -> None:
    HeadMask.random((2, 4), 0.33).save(tmp_path)
    with pytest.raises(UserError, match=r"no mask for ratio 0\.333"):
        HeadMask.load(tmp_path, 0.333)


def test_duo_attention_pattern(tmp_path: Path) -> None:
    path = tmp_path / "full_attention_heads.tsv"
    path.write_text("0.9\t0.1\t0.4\t1.0\n0.2\t1.0\t0.7\t0.3\n")
    mask = HeadMask.load(path, ratio=0.5)
    assert mask.adaptive.int().tolist() == [[1, 0, 0, 1], [0, 1, 1, 0]]
    assert HeadMask.load(tmp_path, ratio=0.5) == mask
    tied = HeadMask.load(path, ratio=0.1)
    assert tied.adaptive.int().tolist() == [[0, 0, 0, 1], [0, 0, 0, 0]]
    with pytest.raises(UserError, match=r"ratio=0\.4"):
        HeadMask.load(path)
    reverse = HeadMask.load(path, 0.25).reversed()
    assert reverse.adaptive.int().tolist() == [[0, 1, 0, 0], [1, 0, 0, 0]]


def test_duo_golden_streaming_heads(golden, tmp_path: Path) -> None:
    for case in golden("baselines", "duo"):
        path = tmp_path / "full_attention_heads.tsv"
        path.write_text("\t".join(str(g) for g in case["inputs"]["gates"]) + "\n")
        mask = HeadMask.load(path, ratio=1 - case["inputs"]["streaming_share"])
        streaming = (~mask.adaptive[0]).nonzero().squeeze(-1).tolist()
        assert streaming == case["expected"]["streaming"]


def test_reversed_order_has_equal_size_and_the_highest_cvs(tmp_path: Path) -> None:
    cvs = torch.arange(8.0).view(1, 2, 4)
    save_statistics(tmp_path, cvs)
    assert HeadMask.load(tmp_path, 0.25).adaptive.int().tolist() == [[1, 1, 0, 0], [0] * 4]
    reverse = HeadMask.load(tmp_path, 0.25).reversed()
    assert reverse.adaptive.int().tolist() == [[0] * 4, [0, 0, 1, 1]]
    assert reverse.nominal_ratio == 0.25


def test_reversed_order_of_nested_files(tmp_path: Path) -> None:
    masks = write_published_folder(tmp_path / "yi", 48, 4)
    reverse = HeadMask.load(tmp_path / "yi", 0.05).reversed()
    assert reverse.adaptive.sum() == masks[0.05].adaptive.sum()
    assert not bool((reverse.adaptive & masks[0.9].adaptive).any())


def test_a_mask_without_order_cannot_be_reversed(tmp_path: Path) -> None:
    path = HeadMask.random((2, 4), 0.25).save(tmp_path)
    with pytest.raises(UserError, match="no order to reverse"):
        HeadMask.load(path).reversed()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is empty"),
        ("1,0\n1\n", "line 2 has 1 values"),
        ("h0,h1\n1,0\n", "holds 'h0'"),
        ("0.5,1\n1,0\n", "holds '0.5'"),
        ("1,0\n1,\n", "holds ''"),
        ("2,0\n", "holds '2'"),
    ],
)
def test_torn_and_foreign_files_are_named(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "head_type_p40.csv"
    path.write_text(content)
    with pytest.raises(UserError, match=message) as caught:
        HeadMask.load(path)
    assert str(path) in str(caught.value)


def test_binary_and_missing_files_are_named(tmp_path: Path) -> None:
    path = tmp_path / "head_type_p40.csv"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match=r"is not UTF-8.*pass a head mask file"):
        HeadMask.load(path)
    with pytest.raises(UserError, match="no head mask at"):
        HeadMask.load(tmp_path / "nowhere")
    with pytest.raises(UserError, match="no head_type_pNN"):
        HeadMask.load(tmp_path / "..", ratio=0.3)


def test_torn_statistics_are_named(tmp_path: Path) -> None:
    (tmp_path / "statistics.npz").write_bytes(b"PK\x03\x04torn")
    with pytest.raises(UserError, match=r"statistics\.npz is not a readable"):
        HeadMask.load(tmp_path, 0.4)


def test_a_file_for_another_ratio_is_refused(tmp_path: Path) -> None:
    path = HeadMask.random((2, 4), 0.25).save(tmp_path)
    with pytest.raises(UserError, match=r"ratio 0\.25, not 0\.5"):
        HeadMask.load(path, ratio=0.5)


def test_masks_of_two_models_do_not_share_a_folder(tmp_path: Path) -> None:
    HeadMask.random((2, 4), 0.25).save(tmp_path)
    with pytest.raises(UserError, match="masks of another model"):
        HeadMask.random((4, 2), 0.5).save(tmp_path)
    assert [path.name for path in tmp_path.glob("*.csv")] == ["head_type_p25.csv"]


def test_default_ratio_counts_only_where_a_ratio_is_needed(tmp_path: Path) -> None:
    for ratio in (0.25, 0.5):
        HeadMask.random((2, 4), ratio).save(tmp_path)
    assert HeadMask.load(tmp_path, default_ratio=0.5).ratio == 0.5
    assert HeadMask.load(tmp_path, 0.25, 0.5).ratio == 0.25
    assert HeadMask.load(tmp_path / "head_type_p25.csv", default_ratio=0.5).ratio == 0.25
    (tmp_path / "head_type_p25.csv").unlink()
    assert HeadMask.load(tmp_path, default_ratio=0.25).ratio == 0.5


@pytest.mark.parametrize("ratio", [0.0, -0.1, 1.01, float("nan")])
def test_ratios_outside_their_range_are_refused(tmp_path: Path, ratio: float) -> None:
    with pytest.raises(UserError, match="outside"):
        HeadMask.load(tmp_path, ratio)
    with pytest.raises(UserError, match="outside"):
        HeadMask.random((2, 4), ratio)


def test_validation_names_both_shapes() -> None:
    mask = HeadMask.random((3, 4), 0.5)
    mask.validate(ModelShape(3, 8, 4, 16))
    mask.validate(SimpleNamespace(num_hidden_layers=3, num_key_value_heads=4))
    mask.validate(SimpleNamespace(num_hidden_layers=3, num_attention_heads=4))
    with pytest.raises(UserError, match=r"3 layers x 4 KV heads .* 2 layers x 4 KV heads"):
        mask.validate(ModelShape(2, 8, 4, 16))
    with pytest.raises(UserError, match="names no number of layers"):
        mask.validate(SimpleNamespace())


def test_validation_accepts_transformers_configurations() -> None:
    from transformers import LlamaConfig

    config = LlamaConfig(num_hidden_layers=3, num_attention_heads=8, num_key_value_heads=4)
    HeadMask.random(config, 0.5).validate(config)
    assert HeadMask.random(config, 0.5).adaptive.shape == (3, 4)


def test_random_masks_have_exact_size_and_depend_on_the_seed() -> None:
    masks = [HeadMask.random((8, 8), 0.4, seed) for seed in range(3)]
    assert [int(mask.adaptive.sum()) for mask in masks] == [26] * 3
    assert masks[0] == HeadMask.random((8, 8), 0.4, 0)
    assert masks[0] != masks[1]


def test_picture_and_plain_dictionary() -> None:
    mask = HeadMask(torch.tensor([[1, 0], [0, 0]]), {"ratio": 0.2})
    assert str(mask).splitlines() == [
        "1 of 4 KV heads adaptive (25.0 %)",
        "layer 0  #.",
        "layer 1  ..",
    ]
    content = json.loads(json.dumps(mask.to_dict()))
    again = HeadMask.from_dict(content)
    assert again == mask
    assert again.nominal_ratio == 0.2
    assert hash(again) == hash(mask)
    assert mask.complement() == HeadMask(torch.tensor([[0, 1], [1, 1]]))


def test_a_folder_without_write_permission_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="a part of the path is a file"):
        HeadMask.random((2, 4), 0.5).save(tmp_path / "file" / "below")
