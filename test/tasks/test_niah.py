"""Needle in a haystack: grid, placement, needles of the user, results of the original test."""

from __future__ import annotations

import json
import re

import pytest
import ruler_tokenizers

from catekv import tasks
from catekv.errors import UserError
from catekv.tasks.core.prompt import encode
from catekv.tasks.drawing.needle_grid import ends_of_tokens, place_needle
from catekv.tasks.families.niah.grid import grid_of
from catekv.tasks.families.niah.results import read_results
from catekv.tasks.wording.tokenizer import build_tokenizer

OWN = {
    "needle": "The lamp in the north window is painted green.",
    "question": "What colour is the lamp in the north window?",
    "answer": "green",
}


def build(length=1024, count=3, tokenizer=None, **options):
    return tasks.build("niah", tokenizer or ruler_tokenizers.byte_level(), length, count, **options)


@pytest.mark.parametrize("kind", sorted(ruler_tokenizers.ALL))
@pytest.mark.parametrize("insertion", ["text", "tokens"])
def test_length_is_fitted_through_the_real_input_path(kind, insertion):
    tokenizer = ruler_tokenizers.ALL[kind]()
    for length in (512, 2048):
        for sample in build(length, 3, tokenizer, insertion=insertion):
            assert sample.length == len(encode(sample, tokenizer)) + sample.max_new_tokens
            assert 0.97 * length <= sample.length <= length


def test_samples_are_cells_of_the_grid():
    samples = build(1024, 5, depths="0,100", rounds=2)
    assert [sample.metadata["depth"] for sample in samples] == [0, 0, 100, 100, 0]
    assert [sample.metadata["round"] for sample in samples] == [0, 1, 0, 1, 2]
    assert len({sample.outputs for sample in samples}) == 5
    assert len({sample.context for sample in samples}) == 5


def test_a_sample_depends_on_its_index_only():
    many = build(700, 4)
    assert build(700, 2, first=2) == many[2:]
    assert build(700, 1) != build(700, 1, seed=1)


@pytest.mark.parametrize("insertion", ["text", "tokens"])
@pytest.mark.parametrize("depth", [0, 30, 55.5, 80, 100])
def test_the_needle_stands_behind_the_sentence_before_its_depth(insertion, depth):
    (sample,) = build(4096, 1, depths=[depth], insertion=insertion)
    instruction, text = sample.context.rstrip("\n").split("\n", 1)
    (needle,) = re.findall(r"A locker number of \S+ is \d{7}\.", text)
    before, after = text.split(needle)
    assert bool(before) == (depth > 0)
    assert bool(after) == (depth < 100)
    if before:
        assert before.endswith(". ")
    # a sentence has up to 200 characters; counted in tokens the place differs a little more
    share, sentence = (100 * part / len(before + after) for part in (len(before), 200))
    assert depth - sentence <= share <= depth + (sentence if insertion == "tokens" else 0)
    start = round(sample.depths[0] * len(sample.context))
    assert sample.context[start:].startswith(needle)
    assert instruction.count("\n") == 0


def test_insertion_by_tokens_is_the_originals():
    tokenizer = ruler_tokenizers.byte_level()
    (sample,) = build(2048, 1, depths=[60], insertion="tokens")
    text = sample.context.split("\n", 1)[1].rstrip("\n")
    needle = re.search(r"A locker number of \S+ is \d{7}\.", text).group()
    hay = text.replace(f"{needle} ", "")
    encoded = tokenizer(hay, add_special_tokens=False, return_offsets_mapping=True)
    ends = ends_of_tokens(hay, encoded["offset_mapping"])
    placed = place_needle(encoded["input_ids"], [-1], ends, 60)
    assert encoded["offset_mapping"][placed.position - 1][1] == text.index(needle) - 1


def test_several_needles_follow_at_equal_distances():
    (sample,) = build(4096, 1, depths=[20], num_needles=4)
    assert sample.depths == pytest.approx([0.2, 0.4, 0.6, 0.8], abs=0.06)
    assert len(set(sample.outputs)) == 4
    one = tasks.score(sample.outputs[0], sample)
    assert one["official"] == 0.25
    assert set(tasks.score(", ".join(sample.outputs), sample).values()) == {1.0}


def test_exact_match_with_keyword_recall_beside_it():
    (sample,) = build(1024, 1, fact="fixed")
    right = tasks.score(f"It is spent {sample.outputs[0]}.", sample)
    half = tasks.score("On a bridge with warm chestnuts, I think.", sample)
    assert right == {"official": 1.0, "strict": 1.0, "keyword_recall": 1.0}
    assert half["official"] == half["strict"] == 0
    assert 0.3 < half["keyword_recall"] < 0.8
    assert set(tasks.score("", sample).values()) == {0.0}
    (number,) = build(1024, 1)
    inside = tasks.score(f"8{number.outputs[0]}", number)
    assert (inside["official"], inside["strict"]) == (1.0, 0.0)


def test_the_fixed_fact_lies_in_one_text_for_the_whole_grid():
    first, second = build(1024, 2, fact="fixed", depths="0,100")
    assert first.outputs == second.outputs
    needle = first.context.split("\n")[1].split(". ")[0]
    assert first.context.replace(f"{needle}. ", "")[:800] == second.context[:800]


def test_needle_and_question_of_the_user():
    (sample,) = build(1024, 1, depths=[50], answer_prefix="The colour is", **OWN)
    assert OWN["needle"] in sample.context
    assert sample.question == OWN["question"]
    assert sample.answer_prefix == " The colour is"
    assert sample.outputs == ("green",)
    assert sample.metadata["options"]["needle"] == OWN["needle"]


def test_prose_of_the_user_in_sorted_order_and_repeated(tmp_path):
    (tmp_path / "b.txt").write_text("Bears sleep in winter. They wake in spring.")
    (tmp_path / "a.txt").write_text("Apples are red. Ants are small.")
    (sample,) = build(700, 1, essay_path=str(tmp_path), depths=[100], **OWN)
    text = sample.context.split("\n", 1)[1]
    assert text.count("Ants are small. Bears sleep in winter. They wake in spring. Apples") > 3
    assert sample.metadata["data"].startswith(f"file:{tmp_path.name}:")
    (fixed,) = build(700, 1, essay_path=str(tmp_path), depths=[100], fact="fixed")
    assert fixed.context.split("\n", 1)[1].startswith("Apples are red.")


def test_text_that_gives_the_answer_away_is_refused(tmp_path):
    (tmp_path / "a.txt").write_text("The grass is green here. The sky is blue today.")
    with pytest.raises(UserError, match="outside the needle"):
        build(700, 1, essay_path=str(tmp_path / "a.txt"), **OWN)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"needle": "A fact."}, "only needle given"),
        ({**OWN, "answer": "purple"}, "does not occur in the needle"),
        ({**OWN, "answer_prefix": OWN["answer"]}, "gives the answer away"),
        ({**OWN, "num_needles": 2}, "hides random facts"),
        ({"rounds": "two"}, "rounds='two'; use a whole number"),
        ({"fact": True}, "fact=True; use a text"),
        ({"answer_prefix": "It is"}, "needle of your own"),
        ({"rounds": 0}, "rounds=0"),
        ({"fact": "none"}, "fact='none'"),
        ({"insertion": "bytes"}, "insertion='bytes'"),
        ({"depths": "50,150"}, "percentages"),
        ({"essay_path": "nowhere.txt"}, "nowhere.txt"),
        ({"colour": "red"}, "valid options"),
    ],
)
def test_wrong_options_are_named(options, message):
    with pytest.raises(UserError, match=message):
        build(1024, 1, **options)


def test_too_short_a_length_names_the_shortest():
    with pytest.raises(UserError, match=r"at least \d+ tokens"):
        build(80, 1)


def test_the_embedded_models_words():
    tokenizer = build_tokenizer()
    for sample in build(512, 4, tokenizer) + build(512, 1, tokenizer, fact="fixed"):
        ids = encode(sample, tokenizer).ids
        assert tokenizer.unk_token_id not in ids
        key = re.fullmatch(r"ask (\w+) \?", sample.question).group(1)
        assert f"note {key} {sample.outputs[0]} ." in sample.context
        assert sample.answer_prefix == f" note {key}"
    with pytest.raises(UserError, match="does not know every word"):
        build(512, 1, tokenizer, **OWN)


def test_samples_survive_a_file(tmp_path):
    samples = build(700, 2)
    tasks.write(tmp_path / "samples.jsonl", samples)
    read = tasks.read(tmp_path / "samples.jsonl")
    assert [sample.context for sample in read] == [sample.context for sample in samples]
    assert [sample.metadata for sample in read] == [sample.metadata for sample in samples]
    (tmp_path / "rows.jsonl").write_text('{"context_length": 5, "score": 1}\n')
    with pytest.raises(UserError, match="read_results"):
        tasks.read(tmp_path / "rows.jsonl", "niah")


def result_row(**changes):
    row = {"model": "m", "context_length": 1000, "depth_percent": 50.0, "score": 10}
    return json.dumps({**row, **changes})


def test_results_of_the_original_test(tmp_path):
    file = tmp_path / "results.jsonl"
    rows = [
        result_row(),
        result_row(score=5),
        result_row(depth_percent=0, score=1),
        result_row(context_length=3000, score=7),
        result_row(context_length=None, model=None, score=3),
    ]
    file.write_text("\n".join(rows))
    grid = read_results(file)
    assert grid.lengths == (1000, 3000)
    assert grid.depths == (0, 50)
    assert grid.means == ((0.1, None), (0.75, 0.7))
    assert grid.counts == ((1, 0), (2, 1))
    assert grid.mean == pytest.approx((0.1 + 0.75 + 0.7) / 3)
    with pytest.raises(ValueError, match="at least one score"):
        grid_of([])


@pytest.mark.parametrize(
    ("rows", "model", "message"),
    [
        ([result_row(), result_row(model="n")], None, "choose one with model="),
        ([result_row()], "n", "no row of model 'n'"),
        ([result_row(context_length=None)], None, "no row with a context_length"),
        ([result_row(), result_row(score=70)], None, r"line 2: score 70"),
        ([result_row(depth_percent=-1)], None, r"line 1: depth_percent -1"),
        (['{"context_length": 4, "depth_percent": 1}'], None, "field 'score' is missing"),
        ([result_row()[:-5]], None, "line 1: not a complete JSON object"),
    ],
)
def test_bad_result_files_are_named_with_their_line(tmp_path, rows, model, message):
    file = tmp_path / "results.jsonl"
    file.write_text("\n".join(rows))
    with pytest.raises(UserError, match=message):
        read_results(file, model)


def test_the_published_result_file(published_files):
    grid = read_results(published_files / "niah" / "original_results.jsonl")
    assert (len(grid.lengths), len(grid.depths)) == (35, 35)
    assert (grid.lengths[0], grid.lengths[-1]) == (1000, 200000)
    counts = [count for row in grid.counts for count in row]
    assert sum(counts) == 1376
    assert counts.count(2) == 151
    assert min(counts) == 1
    assert all(0.1 <= value <= 1 for row in grid.means for value in row)
