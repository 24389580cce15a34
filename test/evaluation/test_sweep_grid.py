"""The grid of a sweep: what it may say, and what is said about one that says something else."""

from __future__ import annotations

from pathlib import Path

import pytest

from catekv.errors import UserError
from catekv.evaluation.sweep.grid import Grid, Placement, read_grid

REPOSITORY = Path(__file__).resolve().parents[2]
GOOD = """
models: [embedded]
methods: [full, catekv]
tasks: [ruler/vt]
lengths: [512, 1024]
"""


def grid_of(text: str, folder: Path) -> Grid:
    path = folder / "grid.yaml"
    path.write_text(text)
    return read_grid(path)


def test_the_shipped_example_is_a_grid() -> None:
    grid = read_grid(REPOSITORY / "examples" / "mini_sweep.yaml")
    assert [model.path for model in grid.models] == [None]
    assert len(grid.methods) * len(grid.ratios) * len(grid.tasks) * len(grid.lengths) > 8


def test_four_keys_are_enough(tmp_path: Path) -> None:
    grid = grid_of(GOOD, tmp_path)
    assert grid.lengths == (512, 1024)
    assert (grid.ratios, grid.questions, grid.seeds, grid.dtypes) == (
        (None,), ("agnostic",), (42,), ("auto",)
    )  # fmt: skip
    assert grid.placement == Placement(cpus=None, share=True)


def test_one_value_stands_for_a_list_of_one(tmp_path: Path) -> None:
    grid = grid_of("models: embedded\nmethods: full\ntasks: ruler/vt\nlengths: 512\n", tmp_path)
    assert (grid.methods, grid.tasks, grid.lengths) == (("full",), ("ruler/vt",), (512,))


def test_models_have_names_and_masks(tmp_path: Path) -> None:
    text = GOOD.replace("[embedded]", "[some/folder, {model: org/other, name: it, masks: m.csv}]")
    models = grid_of(text, tmp_path).models
    assert [(model.name, model.path, model.masks) for model in models] == [
        ("folder", "some/folder", ()),
        ("it", "org/other", ("m.csv",)),
    ]


def test_exclude_leaves_out_combinations(tmp_path: Path) -> None:
    text = GOOD + "exclude: [{model: embedded, length: [1024]}]\n"
    grid = grid_of(text, tmp_path)
    place = {"model": "embedded", "task": "ruler/vt", "seed": 42, "dtype": "auto"}
    assert grid.excludes(**place, length=1024)
    assert not grid.excludes(**place, length=512)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("", "holds no grid"),
        ("[1, 2]", "holds no grid"),
        ("models: [embedded\n", "line 2 is not YAML"),
        (GOOD + "lengths: [64]\n", "'lengths' is written twice"),
        (GOOD + "ratio: [0.4]\n", "unknown key 'ratio' (did you mean 'ratios'?)"),
        (GOOD.replace("tasks:", "task:"), "unknown key 'task' (did you mean 'tasks'?)"),
        (GOOD.replace("tasks: [ruler/vt]\n", ""), "tasks is missing"),
        (GOOD.replace("[ruler/vt]", "[]"), "tasks is empty"),
        (GOOD.replace("[ruler/vt]", "[3]"), "tasks holds 3; give a text"),
        (GOOD.replace("[512, 1024]", "[512, 512]"), "lengths holds 512 twice"),
        (GOOD.replace("[512, 1024]", "[4k]"), "lengths holds '4k'; give a whole number from 0"),
        (GOOD.replace("[512, 1024]", "[true]"), "lengths holds True; give a whole number from 0"),
        (GOOD + "ratios: [1.5]\n", "ratios holds 1.5; give a share from 0 to 1"),
        (GOOD + "questions: [both]\n", "questions holds 'both'; use agnostic, aware"),
        (GOOD + "dtypes: [int8]\n", "dtypes holds 'int8'; use auto, float32"),
        (GOOD + "seeds: [-1]\n", "seeds holds -1; give a whole number from 0"),
        (GOOD + "samples: 0\n", "samples is 0; give a whole number from 1"),
        (GOOD + "samples: 100000\n", "samples is 100000; give a whole number from 1 to 65536"),
        (GOOD + f"seeds: {2**63}\n", "give a whole number from 0"),
        (GOOD + f"batch_size: {2**40}\n", "give a whole number from 1"),
        (GOOD + "preset: best\n", "preset is 'best'; use published, recommended"),
        (GOOD + "prefill: lazy\n", "prefill is 'lazy'; use auto, shared, separate"),
        (GOOD + "joint_decode: 1\n", "joint_decode is 1; give true or false"),
        (GOOD + "task_options: [1]\n", "task_options is [1]; give names and values"),
        (GOOD + "device: tpu\n", "device is 'tpu'; use auto, cpu, cuda"),
        (GOOD.replace("[embedded]", "[]"), "models is empty"),
        (GOOD.replace("[embedded]", "[3]"), "models holds 3; write a folder"),
        (GOOD.replace("[embedded]", "[{name: x}]"), "models holds {'name': 'x'}; write a folder"),
        (GOOD.replace("[embedded]", "[{model: a, mask: b}]"), "did you mean 'masks'?"),
        (GOOD.replace("[embedded]", "[{model: a, name: b/c}]"), "give one without '/'"),
        (GOOD.replace("[embedded]", "[{model: a, masks: [1]}]"), "must be [NAME=]SOURCE"),
        (GOOD.replace("[embedded]", "[a/x, b/x]"), "two models are called 'x'"),
        (GOOD + "placement: 2\n", "placement is 2; write {cpus: N, share: true}"),
        (GOOD + "placement: {gpu: 1}\n", "placement has no 'gpu'"),
        (GOOD + "placement: {cpus: 0}\n", "placement.cpus is 0; give a whole number from 1"),
        (GOOD + "placement: {share: 1}\n", "placement.share is 1; give true or false"),
        (GOOD + "exclude: [512]\n", "exclude holds 512; write e.g. {model: NAME, length: 4096}"),
        (GOOD + "exclude: [{lengths: 512}]\n", "exclude names 'lengths' (did you mean 'length'?)"),
        (GOOD + "exclude: [{length: []}]\n", "exclude names no length"),
        (GOOD + "seeds: 1\nexclude: [{seed: true}]\n", "exclude names seed True, which"),
        (GOOD + "exclude: [{length: 64}]\n", "exclude names length 64, which the grid does not"),
    ],
)
def test_what_is_wrong_is_named_in_one_line(tmp_path: Path, change: str, message: str) -> None:
    with pytest.raises(UserError) as told:
        grid_of(change, tmp_path)
    assert message in str(told.value)
    assert str(tmp_path / "grid.yaml") in str(told.value)
    assert "\n" not in str(told.value)


def test_a_missing_or_binary_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot read .*missing\.yaml"):
        read_grid(tmp_path / "missing.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00\x80")
    with pytest.raises(UserError, match="it is not UTF-8"):
        read_grid(tmp_path / "binary.yaml")
