"""From a grid to jobs, and from jobs to places: what shares a run, what fits where."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from catekv.errors import UserError
from catekv.evaluation.sweep.grid import Grid, GridModel, Placement
from catekv.evaluation.sweep.jobs import Job, make_jobs
from catekv.evaluation.sweep.placement import Machine, needed_bytes, place_all
from catekv.models import presets
from catekv.prefill.devices import GIB

EMBEDDED = GridModel("embedded", None)
GRID = Grid(
    models=(EMBEDDED,),
    methods=("full", "catekv", "snapkv", "fixed=snapkv:budget=64"),
    tasks=("ruler/vt", "ruler/niah_single_1"),
    lengths=(512, 1024),
    ratios=(0.25, 0.5),
    settings={"samples": 3},
)
CPU = Machine("desk", "cpu", 16 * GIB, cpus=8)
SMALL_GPU = Machine("small", "cuda", 24 * GIB, cpus=16, gpus=4, node="a")
LARGE_GPU = Machine("large", "cuda", 80 * GIB, cpus=16, gpus=2, node="b")


@pytest.fixture(scope="module")
def large_model(tmp_path_factory: pytest.TempPathFactory) -> GridModel:
    """The shape of a model of 8 billion parameters, without its weights."""
    folder = tmp_path_factory.mktemp("shape") / "llama-8b"
    config = presets.preset_config("llama3.1-8b")
    config.dtype = torch.bfloat16
    config.save_pretrained(folder)
    return GridModel("llama-8b", str(folder), ("random:0",))


def large_job(model: GridModel, length: int = 131072, **changes: Any) -> Job:
    settings = {"samples": 1, **changes}
    values = {"models": (model,), "methods": ("full", "catekv"), "tasks": ("ruler/vt",)}
    (job,) = make_jobs(Grid(**values, lengths=(length,), settings=settings))  # type: ignore[arg-type]
    return job


def test_a_job_is_a_task_at_a_length_with_all_methods_and_ratios() -> None:
    jobs = make_jobs(GRID)
    assert [job.name for job in jobs] == [
        "embedded/ruler-vt-1024",
        "embedded/ruler-niah_single_1-1024",
        "embedded/ruler-vt-512",
        "embedded/ruler-niah_single_1-512",
    ]
    # what follows a ratio is there once per ratio, the rest once
    assert [spec.label for spec in jobs[0].specs] == [
        "full", "catekv-r0.25", "snapkv-r0.25", "fixed", "catekv-r0.5", "snapkv-r0.5"
    ]  # fmt: skip
    assert jobs[0].measurements == 3 * 6


def test_ratios_give_the_masks_their_share() -> None:
    specs = {spec.label: spec for spec in make_jobs(GRID)[0].specs}
    assert specs["catekv-r0.25"].options["head_mask"].ratio == 0.25
    assert specs["catekv-r0.5"].options["head_mask"].ratio == 0.5
    memory = specs["snapkv-r0.5"].equal_memory_to
    assert memory is not None
    assert memory.options["head_mask"].ratio == 0.5


def test_one_ratio_needs_no_suffix() -> None:
    jobs = make_jobs(dataclasses.replace(GRID, ratios=(0.5,)))
    assert [spec.label for spec in jobs[0].specs] == ["full", "catekv", "snapkv", "fixed"]


def test_seeds_and_dtypes_have_run_directories_of_their_own() -> None:
    grid = dataclasses.replace(
        GRID, tasks=("ruler/vt",), lengths=(512,), seeds=(42, 7), dtypes=("auto", "bfloat16")
    )
    assert [job.name.partition("/")[2] for job in make_jobs(grid)] == [
        "ruler-vt-512", "ruler-vt-512-bfloat16", "ruler-vt-512-seed7", "ruler-vt-512-seed7-bfloat16"
    ]  # fmt: skip


def test_a_job_has_another_hash_if_and_only_if_its_results_do() -> None:
    first = make_jobs(GRID)[0]
    assert make_jobs(GRID)[0].hash == first.hash
    for changed in (
        dataclasses.replace(GRID, settings={"samples": 4}),
        dataclasses.replace(GRID, ratios=(0.25,)),
        dataclasses.replace(GRID, methods=("full", "catekv:window=16")),
        dataclasses.replace(GRID, models=(GridModel("embedded", None, ("random:3",)),)),
    ):
        assert make_jobs(changed)[0].hash != first.hash
    grown = dataclasses.replace(GRID, lengths=(512, 1024, 2048))
    assert first.hash in [job.hash for job in make_jobs(grown)]


def test_another_file_under_the_same_name_is_another_job(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    hashes = []
    for content in ("one", "two", "one"):
        file.write_text(content)
        hashes.append(make_jobs(dataclasses.replace(GRID, tasks=(str(file),)))[0].hash)
    assert hashes[0] == hashes[2] != hashes[1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tasks": ("no/such.jsonl",)}, "cannot read no/such.jsonl: No such file"),
        ({"tasks": ("ruler/none",)}, "ruler/none"),
        ({"methods": ("no_such_method",)}, "unknown method 'no_such_method'"),
        ({"methods": ("snapkv:budgett=3",)}, "budgett"),
        ({"methods": ("full", "full=snapkv:budget=64")}, "two methods of the grid are called"),
        ({"settings": {"task_options": {"no_such": 1}}}, "no task of the grid has an option"),
        ({"lengths": (1 << 20,)}, "exceeds the window of model 'embedded'"),
        ({"models": (GridModel("gone", "no/such/folder"),)}, "there is no checkpoint folder"),
        (
            {"exclude": ({"task": GRID.tasks},)},
            "the grid excludes everything it names",
        ),
        ({"tasks": ("ruler/vt", "vt")}, "holds ruler/vt twice"),
        ({"lengths": (0,)}, "ruler/vt is built to a length"),
        ({"settings": {"attention": "quick"}}, "unknown attention 'quick'"),
        ({"methods": ("full",)}, "leave out ratios"),
        (
            {"methods": ("full",), "ratios": (None,), "settings": {"budget": 64}},
            "leave out budget",
        ),
    ],
)
def test_what_cannot_be_measured_is_told_before_anything_starts(
    change: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError) as told:
        make_jobs(dataclasses.replace(GRID, **change))
    assert message in str(told.value)


def test_cores_are_shared_out_among_the_jobs() -> None:
    jobs = make_jobs(GRID)
    places = place_all(jobs, [CPU], Placement())
    assert {place.cpus for place in places.values()} == {8 // len(jobs)}
    assert {place.kind for place in places.values()} == {"cpu"}
    assert {p.cpus for p in place_all(jobs, [CPU], Placement(cpus=5)).values()} == {5}


def test_memory_is_that_of_the_plan_and_a_reserve() -> None:
    job = make_jobs(GRID)[0]
    place = place_all([job], [CPU], Placement())[job.name]
    assert place.needed_bytes == round(needed_bytes(job, "cpu", "shared"))
    assert place.memory_bytes == pytest.approx(place.needed_bytes + GIB, abs=1)


def test_a_shared_prefill_holds_the_dense_prompt_beside_a_compressed_one(
    large_model: GridModel,
) -> None:
    job = large_job(large_model)
    shared, separate = (needed_bytes(job, "cuda", mode) for mode in ("shared", "separate"))
    dense = 131072 * 32 * 8 * 128 * 2 * 2
    # full attention is among the methods: its own cache is as large as the dense prompt
    assert shared == pytest.approx(separate + dense, rel=0.02)


def test_small_jobs_share_a_gpu_and_large_ones_take_it_alone(large_model: GridModel) -> None:
    short, long = large_job(large_model, 4096), large_job(large_model)
    for job, most in ((short, 0.5), (long, 1)):
        place = place_all([job], [LARGE_GPU], Placement())[job.name]
        assert 0 < place.gpus <= most
        assert place.needed_bytes + GIB <= place.memory_bytes
    alone = place_all([short], [LARGE_GPU], Placement(share=False))[short.name]
    assert alone.gpus == 1


def test_shares_of_a_gpu_add_up_to_no_more_than_one() -> None:
    jobs = make_jobs(GRID)
    place = place_all(jobs, [LARGE_GPU], Placement())[jobs[0].name]
    count = round(1 / place.gpus)
    assert count * place.gpus <= 1
    assert count * place.memory_bytes <= LARGE_GPU.memory_bytes


def test_prefills_are_separate_where_a_shared_one_does_not_fit(large_model: GridModel) -> None:
    job = large_job(large_model)
    tight = dataclasses.replace(LARGE_GPU, memory_bytes=44 * GIB)
    assert place_all([job], [LARGE_GPU], Placement())[job.name].prefill == "shared"
    assert place_all([job], [tight], Placement())[job.name].prefill == "separate"


def test_a_job_goes_only_to_the_machines_that_hold_it(large_model: GridModel) -> None:
    short, long = large_job(large_model, 4096), large_job(large_model)
    places = place_all([short], [SMALL_GPU, LARGE_GPU], Placement())
    assert places[short.name].nodes == ()
    places = place_all([long], [SMALL_GPU, LARGE_GPU], Placement())
    assert places[long.name].nodes == ("b",)


def test_what_no_gpu_holds_is_shared_by_as_few_as_hold_it(large_model: GridModel) -> None:
    job = large_job(large_model)
    place = place_all([job], [SMALL_GPU], Placement())[job.name]
    assert place.gpus == place.processes == 2
    one, two = (needed_bytes(job, "cuda", place.prefill, count) for count in (1, 2))
    assert one + GIB > SMALL_GPU.memory_bytes >= two + GIB
    # the table of embeddings is everywhere, the rest is shared
    assert 2 * two > one > 1.5 * two


def test_what_fits_nowhere_is_refused_with_its_numbers(large_model: GridModel) -> None:
    job = large_job(large_model)
    tiny = dataclasses.replace(SMALL_GPU, memory_bytes=8 * GIB, gpus=2)
    with pytest.raises(UserError) as told:
        place_all([job, dataclasses.replace(job, name="other")], [tiny], Placement())
    text = str(told.value)
    assert f"job {job.name} needs {needed_bytes(job, 'cuda', 'separate') / GIB:.2f} GiB" in text
    assert "the largest GPU has 8.00 GiB" in text
    assert "shared by 2 GPUs each of them needs" in text
    assert "1 more jobs do not fit either" in text


def test_a_machine_without_gpus_cannot_serve_a_grid_that_asks_for_them() -> None:
    grid = dataclasses.replace(GRID, settings={"samples": 1, "device": "cuda"})
    with pytest.raises(UserError, match="no machine has a CUDA device"):
        place_all(make_jobs(grid), [CPU], Placement())


def test_a_job_that_asks_for_more_cores_than_there_are_is_refused() -> None:
    with pytest.raises(UserError, match="is 9 and the largest machine has 8 cores"):
        place_all(make_jobs(GRID), [CPU], Placement(cpus=9))
