"""How methods and masks are written down, and which settings may share a table."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from catekv.errors import UserError
from catekv.evaluation.columns import defaults
from catekv.evaluation.columns.settings import MethodSpec, RunSettings
from catekv.evaluation.columns.specification import (
    canonical_name,
    method_specs,
    parse_masks,
    parse_method,
    parse_value,
)
from catekv.evaluation.run.session import default_output, split_list
from catekv.methods import ModelShape
from catekv.methods.head_mask import HeadMask

SHAPE = ModelShape(layers=4, query_heads=8, kv_heads=4, head_dim=8)
MASK = HeadMask.random((4, 4), 0.5, 1)


def settings(**changes: Any) -> RunSettings:
    values: dict[str, Any] = {
        "model": "tiny",
        "model_hash": "w",
        "tasks": ("ruler/vt",),
        "lengths": (512,),
        "samples": 4,
        "methods": (MethodSpec("full", "full"),),
    }
    return RunSettings(**{**values, **changes})


@pytest.mark.parametrize(
    ("written", "name"),
    [("CateKV", "catekv"), ("SnapKV", "snapkv"), ("StreamingLLM", "streaming_llm"),
     ("Full", "full"), ("streaming-llm", "streaming_llm")],
)  # fmt: skip
def test_method_names_in_any_spelling(written: str, name: str) -> None:
    assert canonical_name(written) == name


def test_methods_are_taken_apart() -> None:
    assert parse_method("snapkv").label == ""
    parsed = parse_method("small=SnapKV:budget=64,pooling=average")
    assert (parsed.label, parsed.name) == ("small", "snapkv")
    assert parsed.options == {"budget": 64, "pooling": "average"}
    for text in ("a b", "=snapkv", "snapkv:budget", "snapkv:=3", ""):
        with pytest.raises(UserError):
            parse_method(text)


def test_options_of_options_are_written_with_dots() -> None:
    parsed = parse_method("snapkv:budgets=headkv,budgets.scores=heads.json,budgets.beta=1.2")
    assert parsed.options == {"budgets": {"kind": "headkv", "scores": "heads.json", "beta": 1.2}}
    assert parse_method("snapkv:budgets.kind=pyramid").options == {"budgets": {"kind": "pyramid"}}


@pytest.mark.parametrize("suffix", ["json", "yaml"])
def test_methods_come_from_files_through_the_same_validation(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"methods.{suffix}"
    content = [
        "small=snapkv:budget=64",
        {"name": "SnapKV", "label": "pyramid", "budget": 64, "budgets": {"kind": "pyramid"}},
        {"name": "pyramidkv", "preset": "recommended"},
    ]
    path.write_text(json.dumps(content))  # JSON is YAML
    specs = method_specs([str(path), "full"], {}, {})
    assert [spec.label for spec in specs] == ["small", "pyramid", "pyramidkv", "full"]
    assert specs[1].create().to_dict()["budgets"]["kind"] == "pyramid"
    assert specs[2].create().rescale
    path.write_text(json.dumps([{"name": "snapkv", "budgett": 3}]))
    with pytest.raises(UserError, match="no option 'budgett'"):
        method_specs([str(path)], {}, {})
    path.write_text(json.dumps([{"label": "x"}]))
    with pytest.raises(UserError, match="an object with its name and options"):
        method_specs([str(path)], {}, {})
    path.write_text("[")
    with pytest.raises(UserError, match=r"is not YAML|cannot be read as JSON"):
        method_specs([str(path)], {}, {})


@pytest.mark.parametrize(
    ("text", "value"),
    [("3", 3), ("0.5", 0.5), ("true", True), ("None", None), ("b/128", "b/128"), ("1e-3", 0.001)],
)
def test_option_values(text: str, value: object) -> None:
    assert parse_value(text) == value
    assert type(parse_value(text)) is type(value)


def test_masks_by_path_at_random_and_reversed(tmp_path: Path) -> None:
    MASK.save(tmp_path)
    masks = parse_masks([f"chosen={tmp_path}", "random:3", "other=random:4"], SHAPE, None)
    assert list(masks) == ["chosen", "random-3", "other"]
    assert masks["chosen"] == MASK
    assert all(mask.adaptive.sum() == MASK.adaptive.sum() for mask in masks.values())
    assert len(set(masks.values())) == 3
    first, turned = parse_masks(["random:3", "reversed"], SHAPE, 0.25).values()
    assert turned == first.reversed() != first
    assert turned.adaptive.sum() == 4
    with pytest.raises(UserError, match="needs a first mask"):
        parse_masks(["reversed"], SHAPE, 0.5)
    with pytest.raises(UserError, match="used twice"):
        parse_masks(["random:1", "random:1"], SHAPE, 0.5)
    with pytest.raises(UserError, match="random:SEED"):
        parse_masks(["random:x"], SHAPE, 0.5)


def test_a_masked_method_appears_once_per_mask() -> None:
    masks = {"a": MASK, "b": HeadMask.random((4, 4), 0.5, 2)}
    specs = method_specs(["full", "catekv", "one=catekv:mask=b,budget=512"], masks, {})
    assert [spec.label for spec in specs] == ["full", "catekv-a", "catekv-b", "one"]
    assert specs[3].options == {"head_mask": masks["b"], "budget": 512}
    with pytest.raises(UserError, match="--mask c=PATH"):
        method_specs(["catekv:mask=c"], masks, {})


def test_a_column_has_the_mask_of_its_own_ratio() -> None:
    def at(ratio: float | None) -> dict[str, HeadMask]:
        return parse_masks(["random:3", "reversed"], SHAPE, ratio)

    specs = method_specs(["catekv", "half=catekv:ratio=0.5,mask=random-3"], at(0.25), {}, at)
    assert [spec.create().ratio for spec in specs] == [0.25, 0.25, 0.5]
    assert [int(spec.options["head_mask"].adaptive.sum()) for spec in specs] == [4, 4, 8]
    assert specs[0].options["head_mask"].order == specs[2].options["head_mask"].order
    with pytest.raises(UserError, match=r"of ratio 0\.25, not 0\.5"):
        method_specs(["catekv:ratio=0.5"], at(0.25), {})
    with pytest.raises(UserError, match="ratio"):
        method_specs(["catekv:ratio=5"], at(0.25), {}, at)
    with pytest.raises(UserError, match="ratio"):
        method_specs(["catekv:ratio=much"], at(0.25), {}, at)
    with pytest.raises(UserError, match="ratio"):
        method_specs(["catekv:ratio=true"], at(0.25), {}, at)


def test_baselines_without_a_budget_follow_the_first_masked_method() -> None:
    specs = method_specs(["snapkv", "streaming_llm:budget=99", "catekv"], {"a": MASK}, {})
    assert specs[0].equal_memory_to == specs[2]
    assert specs[1].equal_memory_to is None
    for tokens in (600, 3000, 5001):
        like = specs[2].create().budget_table(tokens, SHAPE).double().mean()
        ours = specs[0].for_prompt(tokens, SHAPE).budget_table(tokens, SHAPE).double().mean()
        assert float(ours) == pytest.approx(float(like))
    (alone,) = method_specs(["snapkv"], {"a": MASK}, {})
    assert alone.equal_memory_to == dataclasses.replace(specs[2])
    (without,) = method_specs(["snapkv"], {}, {})
    assert without.equal_memory_to is None


@pytest.mark.parametrize(
    ("text", "follows"),
    [
        ("simcalkv", True),
        ("simcalkv_cam", True),
        ("adakv", True),
        ("dynamickv", True),
        ("quest", True),
        ("simcalkv:ratio=0.4", False),
        ("adakv:total=900", False),
        ("h2o:budgets.kind=uniform", False),
        ("pyramidinfer_kv", False),
        ("full", False),
    ],
)
def test_a_method_whose_size_nobody_set_follows_the_masked_one(text: str, follows: bool) -> None:
    mask = HeadMask.random((SHAPE.layers, SHAPE.kv_heads), 0.4, seed=0)
    specs = method_specs([text, "catekv"], {"chosen": mask}, {})
    assert (specs[0].equal_memory_to is not None) is follows


def test_written_options_beat_defaults() -> None:
    values = {"snapkv": {"window": 16, "kernel": 5}}
    (spec,) = method_specs(["snapkv:window=8,budget=10"], {}, values)
    assert spec.options == {"window": 8, "kernel": 5, "budget": 10}


def test_the_hash_covers_what_changes_a_record_and_nothing_else() -> None:
    base = settings()
    for changes in (
        {"seed": 1},
        {"model_hash": "v"},
        {"dtype": "bfloat16"},
        {"device": "cuda"},
        {"chat_template": "base"},
        {"max_new_tokens": 3},
        {"task_options": {"num_hops": 2}},
        {"attention": "eager"},
        {"temperature": 0.6},
    ):
        assert settings(**changes).config_hash != base.config_hash
    drawn = [settings(temperature=0.6, **more) for more in ({}, {"answers": 4}, {"top_p": 0.9})]
    assert len({one.config_hash for one in drawn}) == 3
    for changes in (
        {"samples": 9},
        {"tasks": ("ruler/fwe",)},
        {"lengths": (64,)},
        {"questions": ("aware",)},
        {"model": "another/path"},
        {"prefill": "separate"},
    ):
        assert settings(**changes).config_hash == base.config_hash


def test_the_method_hash_covers_options_heads_and_equal_memory() -> None:
    run = settings()

    def hashed(name: str = "catekv", **options: Any) -> str:
        return run.method_hash(MethodSpec("x", name, options))

    base = hashed(head_mask=MASK)
    assert base == hashed(head_mask=MASK, budget=2048)
    assert base == hashed(head_mask=HeadMask(MASK.adaptive, {"ratio": 0.5, "source": "there"}))
    assert base != hashed(head_mask=MASK, budget=1024)
    assert base != hashed(head_mask=HeadMask.random((4, 4), 0.5, 2))
    like = MethodSpec("x", "catekv", {"head_mask": MASK})
    other = MethodSpec("x", "catekv", {"head_mask": MASK, "budget": 1024})
    follows = [run.method_hash(MethodSpec("y", "snapkv", {}, spec)) for spec in (like, other)]
    assert len({*follows, hashed("snapkv")}) == 3


def test_bad_settings_are_refused() -> None:
    for changes, cause in (
        ({"samples": 0}, "at least 1"),
        ({"lengths": (-1,)}, "negative"),
        ({"batch_size": 0}, "at least 1"),
        ({"chunk_size": 0}, "chunk size is 0; it must be at least 1"),
        ({"max_new_tokens": 0}, "number of new tokens is 0; it must be at least 1"),
        ({"batch_size": 2, "joint_decode": True}, "leave one of them out"),
        ({"answers": 0}, "number of answers is 0; it must be at least 1"),
        ({"answers": 2}, "add e.g. --temperature 0.6"),
        ({"top_p": 0.5}, "add e.g. --temperature 0.6"),
        ({"temperature": -1.0}, "must be above 0"),
        ({"temperature": 1.0, "top_p": 1.5}, "top_p 1.5 must be above 0"),
        ({"tasks": ()}, "no task"),
        ({"methods": ()}, "no method"),
        ({"questions": ("never",)}, "unknown question mode 'never'"),
        ({"prefill": "none"}, "unknown prefill mode"),
        ({"methods": (MethodSpec("a", "full"), MethodSpec("a", "full"))}, "used twice"),
    ):
        with pytest.raises(UserError, match=cause):
            settings(**changes)


def test_the_default_folder_is_the_same_for_more_samples_only() -> None:
    base = default_output(settings())
    assert default_output(settings(samples=50)) == base
    assert default_output(settings(lengths=(64,))) != base
    assert default_output(settings(seed=3)) != base
    assert base.parts[0] == "results"
    assert default_output(settings(model="org/name")).name.startswith("name-")


def test_embedded_defaults_fit_its_lengths() -> None:
    options = defaults.method_defaults(embedded=True)
    mask = HeadMask(torch.zeros(4, 4))
    spec = MethodSpec("catekv", "catekv", {**options["catekv"], "head_mask": mask})
    kept = spec.create().budget_table(defaults.EMBEDDED_LENGTH, SHAPE)
    assert int(kept.max()) < 0.2 * defaults.EMBEDDED_LENGTH


def test_lists_take_spaces_and_commas() -> None:
    assert split_list(["a,b", "c"]) == ("a", "b", "c")
    assert split_list([]) == ()
    with pytest.raises(UserError, match="names nothing"):
        split_list([","])
