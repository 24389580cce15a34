"""Reports on several runs: what is joined, what is kept apart, what is left out and said."""

from __future__ import annotations

import csv
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import report_runs as runs

from catekv.commands import cli
from catekv.errors import UserError
from catekv.evaluation.report import report
from catekv.evaluation.report.build import Options, build
from catekv.evaluation.report.document import Figure, Section, Table, Text
from catekv.evaluation.report.groups import group_runs
from catekv.evaluation.report.inputs import read_inputs, read_run
from catekv.methods.head_mask import STATISTICS_FILE, HeadMask
from catekv.tasks.families.ruler.tasks import RULER


def all_text(section: Section) -> str:
    """Everything a reader can read in a document."""
    words = [section.title]
    for block in section.blocks:
        if isinstance(block, Text):
            words.append(block.text)
        elif isinstance(block, Table):
            words += [block.caption, *block.header, *(cell for row in block.rows for cell in row)]
    return "\n".join([*words, *map(all_text, section.sections)])


def tables(section: Section) -> list[Table]:
    own = [block for block in section.blocks if isinstance(block, Table)]
    return [*own, *(table for inner in section.sections for table in tables(inner))]


def figures(section: Section) -> list[Figure]:
    own = [block for block in section.blocks if isinstance(block, Figure)]
    return own + [figure for inner in section.sections for figure in figures(inner)]


def document(*paths: Path, **options: Any) -> Section:
    return build(read_inputs(paths), Options(**options))[0]


# what is joined


def test_a_reference_in_another_folder_gives_the_differences(tmp_path: Path) -> None:
    found = runs.manifest()
    full = {**found, "methods": {"full": found["methods"]["full"]}}
    others = {k: v for k, v in found["methods"].items() if k != "full"}
    rows = runs.records(found)
    runs.write_run(tmp_path / "full", full, [r for r in rows if r.method == "full"])
    runs.write_run(
        tmp_path / "rest", {**found, "methods": others}, [r for r in rows if r.method != "full"]
    )
    (joined,) = group_runs(read_inputs([tmp_path]).runs)
    assert joined.summary == report.summarise(rows, found)
    average = next(row for row in joined.summary["averages"] if row["method"] == "snapkv")
    assert average["difference"] is not None


def test_variants_under_one_label_are_named_by_what_differs(tmp_path: Path) -> None:
    for budget in (64, 128):
        runs.run(tmp_path / f"b{budget}", methods=runs.methods(budget))
    (group,) = group_runs(read_inputs([tmp_path]).runs)
    assert list(group.manifest["methods"]) == [
        "full",
        "catekv",
        "snapkv (budget 64)",
        "snapkv (budget 128)",
    ]
    assert {row["method"] for row in group.summary["cells"]} == set(group.manifest["methods"])


def test_an_option_of_another_version_does_not_name_a_variant(tmp_path: Path) -> None:
    newer = runs.methods()
    newer["snapkv"] = {**newer["snapkv"], "hash": "new", "options": {"budget": 64, "added": 1}}
    runs.run(tmp_path / "old")
    runs.run(tmp_path / "new", methods=newer)
    (group,) = group_runs(read_inputs([tmp_path]).runs)
    assert {"snapkv (old)", "snapkv (new)"} <= set(group.manifest["methods"])


# what is kept apart


def test_models_are_never_in_one_table(tmp_path: Path) -> None:
    runs.run(tmp_path / "one", model="tiny", model_hash="w1")
    runs.run(tmp_path / "two", model="other", model_hash="w2")
    page = document(tmp_path)
    titles = [section.title for section in page.sections]
    assert titles == ["All runs", "tiny", "other", "Manifests"]
    assert "compare lines within a group only" in all_text(page.sections[0])


def test_settings_that_differ_are_in_the_titles(tmp_path: Path) -> None:
    runs.run(tmp_path / "one", model_hash="w1")
    runs.run(tmp_path / "two", model_hash="w2")
    groups = group_runs(read_inputs([tmp_path]).runs)
    assert [g.title for g in groups] == ["tiny (model hash w1)", "tiny (model hash w2)"]


def test_other_samples_of_the_same_task_are_another_group(tmp_path: Path) -> None:
    runs.run(tmp_path / "one", data="a")
    runs.run(tmp_path / "two", data="b")
    groups = group_runs(read_inputs([tmp_path]).runs)
    assert [[run.name for run in group.runs] for group in groups] == [["one"], ["two"]]
    assert [group.title for group in groups] == ["tiny (one)", "tiny (two)"]


def test_benchmarks_are_not_averaged_with_each_other(tmp_path: Path) -> None:
    runs.run(tmp_path, tasks=["ruler/vt", "longbench/qasper"])
    (section, _) = document(tmp_path).sections
    titles = [inner.title for inner in section.sections]
    assert titles[0].startswith("ruler, 512 tokens")
    assert titles[1].startswith("longbench, 512 tokens")


# what is shown


def test_length_curves_average_only_common_tasks(tmp_path: Path) -> None:
    found = runs.manifest(lengths=[512, 1024])
    rows = [r for r in runs.records(found) if not (r.task == "ruler/vt" and r.length == 1024)]
    runs.write_run(tmp_path, found, rows)
    page = document(tmp_path)
    # the numbers lie beside the picture, the page does not say them twice
    assert not any("over prompt lengths" in table.caption for table in tables(page))
    (figure,) = (f for f in figures(page) if "over prompt lengths" in f.caption)
    assert "niah_single_1 over prompt lengths" in figure.caption
    assert figure.table is not None
    assert figure.table.header == ["method", "512", "1K"]


def test_a_ruler_table_says_that_tasks_are_missing(tmp_path: Path) -> None:
    most = [f"ruler/{name}" for name in list(RULER)[:8]]
    runs.run(tmp_path, tasks=most, lengths=[512, 1024])
    text = all_text(document(tmp_path))
    assert "wAvg(inc)" in text
    assert "8 tasks here, not the 13 of RULER" in text


def test_two_tasks_are_no_average_of_ruler(tmp_path: Path) -> None:
    runs.run(tmp_path, lengths=[512, 1024])
    assert "wAvg(inc)" not in all_text(document(tmp_path))


def test_no_table_has_two_columns_of_one_name_and_the_difference_comes_first(
    tmp_path: Path,
) -> None:
    runs.run(tmp_path / "a", lengths=[512, 1024])
    runs.run(tmp_path / "b", model="other")
    found = tables(document(tmp_path))
    for table in found:
        assert len(set(table.header)) == len(table.header), table.header
    scores = [table for table in found if table.caption.startswith("Scores x 100")]
    assert all(table.header[1] == "to full (95 %)" for table in scores)
    line = scores[0].rows[1][1]
    assert re.fullmatch(r"[+-][\d.]+ \(-?[\d.]+ \.\. -?[\d.]+\)", line), line


def test_score_against_memory_is_drawn_where_there_are_two_sizes(tmp_path: Path) -> None:
    found = runs.manifest()
    one = [replace(r, stored_bytes=500, full_bytes=1000) for r in runs.records(found)]
    runs.write_run(tmp_path / "one", found, one)
    assert not any("Score against memory" in f.caption for f in figures(document(tmp_path)))
    labels = [label for label in found["methods"] if label != "full"]
    two = [replace(r, stored_bytes=700) if r.method == labels[-1] else r for r in one]
    runs.write_run(tmp_path / "two", found, two)
    page = document(tmp_path / "two")
    assert sum("Score against memory" in f.caption for f in figures(page)) >= 1


def test_a_report_opens_with_what_it_says(tmp_path: Path) -> None:
    runs.run(tmp_path, lengths=[512])
    (group,) = document(tmp_path).sections[:1]
    first = group.blocks[0]
    assert isinstance(first, Text)
    assert " points on 2 tasks [" in first.text


def test_longbench_has_categories_and_buckets(tmp_path: Path) -> None:
    tasks = ["longbench/qasper", "longbench_e/hotpotqa"]
    runs.run(tmp_path, tasks=tasks, lengths=[512, 1024], samples=6)
    found = tables(document(tmp_path))
    categories = next(t for t in found if t.caption.startswith("LongBench, english"))
    assert categories.header[1] == "single-document"
    assert categories.rows[0][1].endswith("(1/3)")
    buckets = next(t for t in found if t.caption.startswith("LongBench-E"))
    assert buckets.header == ["method", "limit", "0-4k", "4-8k", "8k+"]
    # texts cut to different lengths are not averaged with each other
    assert [row[1] for row in buckets.rows[:2]] == ["512", "1K"]
    assert all("(n 2)" in cell for row in buckets.rows for cell in row[2:])


def test_longbench_v2_has_its_groups_and_the_share_of_cut_texts(tmp_path: Path) -> None:
    found = runs.manifest(tasks=["longbench_v2"])
    rows = runs.records(found, samples=4)
    for row in rows:
        easy = row.index < 2
        notes = {"difficulty": "easy" if easy else "hard", "length": "short", "truncated": not easy}
        row.metadata.clear()
        row.metadata.update(notes)
    runs.write_run(tmp_path, found, rows)
    table = next(t for t in tables(document(tmp_path)) if t.caption.startswith("LongBench v2"))
    assert table.header[2:] == [
        "overall", "easy", "hard", "short", "medium", "long", "cut %",
    ]  # fmt: skip
    assert [cell.partition(" (")[2] for cell in table.rows[0][2:5]] == ["n 4)", "n 2)", "n 2)"]
    assert table.rows[0][-1] == "50.0"


def test_needles_are_a_grid_of_depths_and_lengths(tmp_path: Path) -> None:
    runs.run(tmp_path, tasks=["niah"], lengths=[512, 1024], samples=10)
    page = document(tmp_path, trained=512)
    figure = next(f for f in page.figures() if "niah-snapkv" in f.name)
    assert figure.table is not None
    assert figure.table.header == ["depth", "512", "1024"]
    assert [row[0] for row in figure.table.rows] == ["0", "25", "50", "75", "100"]
    assert "snapkv: mean 0." in figure.svg
    assert "trained: 512" in figure.svg


def test_masks_show_votes_and_cv_where_their_statistics_are_at_hand(tmp_path: Path) -> None:
    runs.run(tmp_path / "run")
    folder = runs.mask_folder(tmp_path / "masks")
    alone = [figure.name for figure in document(tmp_path / "run").figures()]
    assert [n for n in alone if "catekv-mask" in n]
    assert not [n for n in alone if "votes" in n]
    both = [figure.name for figure in document(tmp_path / "run", folder).figures()]
    assert {"tiny-catekv-votes", "tiny-catekv-cv"} <= set(both)


@pytest.mark.parametrize(("ratios", "shown"), [((0.25,), 2), ((0.125, 0.5), 4), ((0.75, 0.125), 1)])
def test_masks_without_statistics_are_shown_at_the_ratio_nearest_to_the_usual_one(
    ratios: tuple[float, ...], shown: int, tmp_path: Path
) -> None:
    for ratio in ratios:
        HeadMask.random((2, 4), ratio).save(tmp_path / "masks")
    (figure,) = document(tmp_path / "masks").figures()
    assert f"mask: {shown} of 8 adaptive" in figure.svg


def test_efficiency_results_have_tables_curves_and_parts(tmp_path: Path) -> None:
    page = document(runs.efficiency(tmp_path / "speed"))
    text = all_text(page)
    assert "1.67x" in text
    assert "absent: flash_attn is not installed" in text
    names = [figure.name for figure in page.figures()]
    assert names == [
        "efficiency-speed-0",
        "efficiency-speed-1",
        "efficiency-speed-1024-1-parts",
        "efficiency-speed-2048-1-parts",
    ]


def test_validity_checks_are_no_methods(tmp_path: Path) -> None:
    found = runs.manifest()
    oracle = {"hash": "o", "name": "sanity oracle", "options": {}, "mask": None}
    rows = runs.records(found)
    perfect = [
        r.__class__(**{**r.__dict__, "method": "[oracle]", "method_hash": "o", "official": 1.0})
        for r in rows
        if r.method == "full"
    ]
    found["methods"] = {**found["methods"], "[oracle]": oracle}
    runs.write_run(tmp_path, found, [*rows, *perfect])
    section = document(tmp_path).sections[0]
    validity = next(s for s in section.sections if s.title == "Validity of the tasks")
    assert tables(validity)[0].rows[0] == ["ruler/niah_single_1", "512", "after", "100.0"]
    assert "[oracle]" not in all_text(section.sections[0])


# bad input


@pytest.mark.parametrize("option", ["--rescore", "--official"])
def test_what_needs_a_run_is_refused_without_one(
    option: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs.mask_folder(tmp_path)
    assert cli.main(["report", str(tmp_path), option]) == 2
    assert f"leave out {option}" in capsys.readouterr().err


def test_what_cannot_be_read_in_a_folder_is_left_out_and_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs.run(tmp_path / "good")
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "manifest.json").write_text("{")
    (tmp_path / "speed").mkdir()
    (tmp_path / "speed" / "efficiency.json").write_text('{"title": "x", "results": [{}]}')
    mask = HeadMask.random((2, 2), 0.5, 0).save(tmp_path / "mask")
    (mask.parent / STATISTICS_FILE).write_bytes(b"no array")
    assert cli.main(["report", str(tmp_path)]) == 1
    error = capsys.readouterr().err
    assert all(f"left out: {name}:" in error for name in ("bad", "speed", "mask"))
    assert "Left out, because it could not be read: bad:" in (tmp_path / "report.md").read_text()


@pytest.mark.parametrize(
    ("content", "reason"),
    [("{", "cannot be read as JSON"), ("{}", "its methods is missing or damaged")],
)
def test_a_run_that_is_named_must_be_readable(tmp_path: Path, content: str, reason: str) -> None:
    (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(UserError, match=reason):
        read_inputs([tmp_path])


def test_an_efficiency_file_of_another_form_is_refused(tmp_path: Path) -> None:
    (tmp_path / "efficiency.json").write_text('{"title": "x", "results": 3}')
    with pytest.raises(UserError, match="catekv efficiency"):
        read_inputs([tmp_path])


def test_a_folder_without_any_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is no run directory and holds none"):
        read_inputs([tmp_path])


def test_a_torn_last_line_is_left_out_and_said(tmp_path: Path) -> None:
    runs.run(tmp_path)
    file = tmp_path / "samples.jsonl"
    whole = file.read_text()
    file.write_text(whole[:-40])
    run = read_run(tmp_path)
    assert len(run.records) == whole.count("\n") - 1
    assert "the last line of samples.jsonl is torn" in run.notes[0]
    assert "is torn" in all_text(document(tmp_path))


def test_an_empty_run_is_a_report_that_says_so(tmp_path: Path) -> None:
    runs.write_run(tmp_path, runs.manifest(), [])
    assert "no sample has been measured yet" in all_text(document(tmp_path))
    assert cli.main(["report", str(tmp_path)]) == 0


def test_failed_samples_and_unknown_methods_are_counted(tmp_path: Path) -> None:
    found = runs.manifest()
    rows = runs.records(found)
    failed = {"type": "RuntimeError", "message": "x", "phase": "decode"}
    rows[0] = rows[0].__class__(**{**rows[0].__dict__, "official": None, "error": failed})
    rows.append(rows[1].__class__(**{**rows[1].__dict__, "method_hash": "foreign"}))
    runs.write_run(tmp_path, found, rows)
    notes = read_run(tmp_path).notes
    assert "1 records of methods that the manifest does not name are left out" in notes
    assert any(note.startswith("1 of 25 measurements failed") for note in notes)


# the files


def test_all_files_are_written_and_agree(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one = runs.run(tmp_path / "one", tasks=["niah", "ruler/vt"], lengths=[512, 1024])
    two = runs.run(tmp_path / "two", model="other", model_hash="w2")
    speed = runs.efficiency(tmp_path / "speed")
    target = tmp_path / "report"
    words = ["report", str(one), str(two), str(speed), "--output", str(target)]
    assert cli.main(words) == 0
    assert "average" in capsys.readouterr().out
    html = (target / "report.html").read_text()
    root = ElementTree.fromstring(html.removeprefix("<!DOCTYPE html>\n"))
    assert root.findtext("head/title") == "Compressed caches: tiny, other"
    assert "src=" not in html
    outside = [e.get("href", "#").partition("#")[0] for e in root.iter()]
    # heat maps are pictures in the page
    assert all(not place or place.startswith("data:image/png;base64,") for place in outside)
    anchors = {e.get("id") for e in root.iter() if e.get("id")}
    links = {e.get("href", "#")[1:] for e in root.iter("a")}
    assert links <= anchors
    assert len([e for e in root.iter() if e.get("id")]) == len(anchors)
    markdown = (target / "report.md").read_text()
    linked = [line.split("](")[1].rstrip(")") for line in markdown.splitlines() if "](" in line]
    assert linked
    assert all((target / name).is_file() for name in linked)
    for name in linked:
        ElementTree.fromstring((target / name).read_text())
    rows = list(csv.DictReader((target / "report.csv").open()))
    assert {row["runs"] for row in rows} == {"tiny", "other"}
    grid = list(csv.reader((target / "figures" / "tiny-niah-full-agnostic.csv").open()))
    assert grid[0] == ["depth", "512", "1024"]
    assert json.loads((one / "summary.json").read_text())["model"] == "tiny"


def test_a_second_report_leaves_no_old_figures(tmp_path: Path) -> None:
    runs.run(tmp_path / "a", tasks=["niah"])
    runs.run(tmp_path / "b")
    report.report_on([tmp_path / "a"], output=tmp_path / "out")
    first = {path.name for path in (tmp_path / "out" / "figures").iterdir()}
    report.report_on([tmp_path / "b"], output=tmp_path / "out")
    second = {path.name for path in (tmp_path / "out" / "figures").iterdir()}
    assert any("niah" in name for name in first)
    assert not any("niah" in name for name in second)


def test_a_folder_of_runs_gets_the_report_and_keeps_its_runs(tmp_path: Path) -> None:
    inner = runs.run(tmp_path / "sweep" / "one")
    before = sorted(path.name for path in inner.iterdir())
    report.report_on([tmp_path / "sweep"])
    assert (tmp_path / "sweep" / "report.html").is_file()
    assert sorted(path.name for path in inner.iterdir()) == before


def test_an_unknown_colour_scale_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["report", str(runs.run(tmp_path)), "--colours", "rainbow"]) == 2
    assert "blue-yellow or red-yellow-green" in capsys.readouterr().err
