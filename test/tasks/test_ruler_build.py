"""What every built RULER sample must be: fitted, reproducible, answerable."""

from __future__ import annotations

import re
import time
from collections import Counter

import pytest
import ruler_tokenizers

from catekv import tasks
from catekv.errors import UserError
from catekv.tasks.core.prompt import encode
from catekv.tasks.core.randomness import generator

NAMES = [name.removeprefix("ruler/") for name in tasks.available() if name.startswith("ruler/")]
ESSAYS = ["niah_single_2", "niah_single_3", "niah_multikey_1", "niah_multivalue", "niah_multiquery"]
#: below this length cwe has no room for its repetitions with the test tokenizers
SHORTEST = {"cwe": 2048}
#: the small Unigram vocabulary spells most names in syllables
SHORTEST_SPELLED = {
    "cwe": 4096,
    "qa_2": 1024,
    "niah_multiquery": 1024,
    "vt": 1024,
    "vt_dense": 1024,
}


def build(name, length=1024, count=2, tokenizer=None, **options):
    tokenizer = tokenizer or ruler_tokenizers.byte_level()
    return tasks.build(f"ruler/{name}", tokenizer, length, count, **options)


def oracle(sample):
    return ", ".join(sample.outputs)


def test_all_thirteen_tasks_exist():
    assert len(tasks.RULER) == 13
    assert set(NAMES) == {*tasks.RULER, "vt_dense"}
    assert set(tasks.PUBLISHED) == set(tasks.RULER) - {"cwe"}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", sorted(ruler_tokenizers.ALL))
def test_length_is_fitted_through_the_real_input_path(name, kind):
    tokenizer = ruler_tokenizers.ALL[kind]()
    shortest = (SHORTEST_SPELLED if kind == "sentencepiece_like" else SHORTEST).get(name, 0)
    # the longest one takes most of the time, and a tokenizer has been fitted by then
    for length in (512, 1024, 4096):
        if length < shortest or (length == 4096 and shortest < 4096 and kind != "byte_level"):
            continue
        for sample in build(name, length, 2, tokenizer):
            tokens = len(encode(sample, tokenizer)) + sample.max_new_tokens
            assert sample.length == tokens
            assert 0.97 * length <= tokens <= length, (length, sample.index)
            assert sample.target_length == length


@pytest.mark.parametrize("name", NAMES)
def test_sample_depends_on_its_index_only(name):
    length = SHORTEST.get(name, 700)
    many = build(name, length, 4)
    assert build(name, length, 2) == many[:2]
    assert build(name, length, 2, first=2) == many[2:]
    assert len({sample.context for sample in many}) == 4
    assert [sample.index for sample in many] == [0, 1, 2, 3]


def test_draws_are_the_same_on_every_machine():
    assert generator("ruler", 42, 0).randrange(10**9) == 456396822
    assert generator("ruler", 42, 0).random() != generator("ruler", 420).random()


def test_other_seed_length_or_stream_gives_other_draws():
    answers = {
        build("niah_single_1", length, 1, seed=seed, stream=stream)[0].outputs
        for length, seed, stream in (
            (512, 42, "test"),
            (600, 42, "test"),
            (512, 43, "test"),
            (512, 42, "calibration"),
        )
    }
    assert len(answers) == 4


@pytest.mark.parametrize("name", NAMES)
def test_oracle_scores_one_and_silence_zero(name):
    for sample in build(name, SHORTEST.get(name, 700), 2):
        scores = tasks.score(oracle(sample), sample)
        assert {key: scores[key] for key in scores} == dict.fromkeys(scores, 1.0)
        assert set(tasks.score("", sample).values()) == {0.0}
        assert set(tasks.score("I do not know.", sample).values()) == {0.0}


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("niah")])
def test_needle_answers_stand_once_and_only_in_their_needle(name):
    for sample in build(name, 1500, 3):
        for answer in sample.outputs:
            assert sample.context.count(answer) == 1
        asked = sample.metadata["keys"]
        for key in asked:
            assert sample.context.count(key) == len(sample.outputs) // len(asked)
            assert key in sample.question
            assert key in sample.answer_prefix
        assert len(set(sample.outputs)) == len(sample.outputs)


@pytest.mark.parametrize(
    ("name", "keys", "answers"),
    [
        ("niah_single_1", 1, 1),
        ("niah_multikey_1", 4, 1),
        ("niah_multivalue", 1, 4),
        ("niah_multiquery", 4, 4),
    ],
)
def test_numbers_of_keys_and_values(name, keys, answers):
    (sample,) = build(name, 1500, 1)
    needles = re.findall(r"A locker number of (\S+) is (\d{7})\.", sample.context)
    assert len({key for key, _ in needles}) == keys
    assert len(needles) == max(keys, answers)
    assert len(sample.outputs) == answers


def test_every_line_of_needle_hay_is_a_needle_with_its_own_key():
    (sample,) = build("niah_multikey_3", 4096, 1)
    lines = sample.context.strip().split("\n")[1:]
    uuid = r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}"
    pairs = [re.fullmatch(rf"A serial code of ({uuid}) is ({uuid})\.", line) for line in lines]
    needles = [pair for pair in pairs if pair]
    assert len(needles) >= len(lines) - 1
    assert len({pair.group(1) for pair in needles}) == len(needles)
    assert len({pair.group(2) for pair in needles}) == len(needles)


def follow(context, value):
    """Variables that hold ``value``, found by reading the statements in order."""
    holding = {value}
    for name, source in re.findall(r"^LET (\w+) = (\w+)$", context, re.MULTILINE):
        if source in holding:
            holding.add(name)
    return holding - {value}


@pytest.mark.parametrize("name", ["vt", "vt_dense"])
@pytest.mark.parametrize("chains", [1, 3])
def test_chains_can_be_followed_and_lead_to_the_answers_only(name, chains):
    for sample in build(name, 1200, 3, num_chains=chains, num_hops=3):
        value = re.search(r"number (\d{5})", sample.question).group(1)
        assert follow(sample.context, value) == set(sample.outputs)
        assert len(sample.outputs) == 4
        assert value in sample.answer_prefix


def test_dense_tracking_has_no_line_without_a_fact():
    (sample,) = build("vt_dense", 4096, 1)
    hay = sample.context.split("\n\n")[1].strip().split("\n")[1:]
    assert sum(not line.startswith("LET ") for line in hay) == 0
    names = re.findall(r"^LET (\w{5}) =", sample.context, re.MULTILINE)
    assert len(names) == len(set(names)) > 100


def test_variable_tracking_carries_a_solved_example():
    (sample,) = build("vt", 2048, 1)
    example, rest = sample.context.split("\n\n")
    value = re.search(r"number (\d{5})", example).group(1)
    assert set(example.rsplit("are: ", 1)[1].split()) == follow(example, value)
    assert all(len(name) == 3 for name in follow(example, value))
    assert value not in rest


def test_frequent_words_are_ranks_two_to_four_by_clear_margins():
    for sample in build("fwe", 1024, 3):
        words = Counter(sample.context.strip().split("\n")[1].split())
        ranked = words.most_common()
        assert ranked[0][0] == "..."
        assert tuple(word for word, _ in ranked[1:4]) == sample.outputs
        counts = [count for _, count in ranked[:5]]
        assert counts == sorted(set(counts), reverse=True)


def test_common_words_repeat_as_stated():
    (sample,) = build("cwe", 4096, 1)
    example, rest = sample.context.split("\n\n")
    words = Counter(re.findall(r"\d+\. (\w+)", rest))
    assert {words[word] for word in sample.outputs} == {30}
    others = Counter(count for word, count in words.items() if word not in sample.outputs)
    assert others[3] >= sum(others.values()) - 1
    assert not set(words) & set(re.findall(r"\d+\. (\w+)", example))
    (short,) = build("cwe", 2048, 1)
    words = Counter(re.findall(r"\d+\. (\w+)", short.context.split("\n\n")[1]))
    assert {words[word] for word in short.outputs} == {6}


def test_common_words_are_never_part_of_each_other():
    (sample,) = build("cwe", 4096, 1)
    words = set(re.findall(r"\d+\. (\w+)", sample.context))
    assert len({len(word) for word in words}) == 1


@pytest.mark.parametrize(
    "name", ["niah_single_1", *ESSAYS, "niah_multikey_2", "vt", "qa_1", "qa_2"]
)
def test_depths_vary_and_point_at_the_answers(name):
    samples = build(name, 2048 if name == "niah_single_1" else 900, 12)
    depths = [depth for sample in samples for depth in sample.depths]
    assert min(depths) < 0.4
    assert max(depths) > 0.6
    assert len(set(depths)) >= 10
    for sample in samples:
        if name.startswith("niah"):
            for depth, answer in zip(sample.depths, sample.outputs, strict=True):
                place = round(depth * len(sample.context))
                assert answer in sample.context[place : place + 120]


def test_fixed_depth_and_grid():
    for depth in (0.0, 0.5, 1.0):
        for sample in build("niah_single_1", 2048, 2, depth=depth):
            assert sample.depths[0] == pytest.approx(depth, abs=0.12)
    grid = [sample.depths[0] for sample in build("niah_single_2", 2048, 11, depth="grid")]
    assert grid == sorted(grid)
    assert grid[-1] - grid[0] > 0.8


def test_question_answers_stand_in_the_gold_document_only():
    for name in ("qa_1", "qa_2"):
        for sample in build(name, 2048, 4):
            documents = sample.context.split("\nDocument ")
            holding = [text for text in documents if sample.outputs[0].lower() in text.lower()]
            assert len(holding) == 1
            assert sample.outputs[0].lower() not in sample.question.lower()


def test_no_sentence_twice_in_an_essay():
    (sample,) = build("niah_single_2", 4096, 1)
    sentences = sample.context.split(". ")
    assert len(sentences) > 100
    assert len(set(sentences)) == len(sentences)


@pytest.mark.parametrize("name", NAMES)
def test_too_short_a_length_names_the_shortest(name):
    with pytest.raises(UserError, match=r"at least (\d+) tokens") as caught:
        build(name, 60, 1)
    shortest = int(re.search(r"at least (\d+)", str(caught.value)).group(1))
    assert shortest > 60
    assert len(build(name, max(shortest + 200, SHORTEST.get(name, 0)), 1)) == 1


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("nothing", {}, "unknown task"),
        ("vt", {"hops": 3}, "valid options: begin_answer, num_chains, num_hops, depth, dense"),
        ("vt", {"num_hops": 0}, "num_hops=0"),
        ("vt", {"num_chains": 90_000}, "only 89999 values exist"),
        ("niah_single_1", {"depth": 50}, "depth=50"),
        ("niah_single_1", {"haystack": "hay"}, "haystack='hay'"),
        ("niah_single_1", {"wording": "latin"}, "unknown wording"),
        ("niah_single_1", {"chat_template": "latin"}, "unknown chat template"),
        ("fwe", {"alpha": 1.0}, "alpha=1.0"),
        ("fwe", {"alpha": float("nan")}, "alpha=nan"),
        ("fwe", {"alpha": 1000}, "alpha=1000; it must be above 1 and at most 50"),
        ("fwe", {"alpha": 30}, "far more than 1024 tokens hold; lower alpha"),
        ("vt", {"num_hops": "two"}, "num_hops='two'; use a whole number"),
        ("vt", {"depth": None}, "an option has a value of another kind"),
        ("vt", {"first": -1}, "first=-1; none may be negative"),
        ("vt", {"max_answer_tokens": 0}, "max_answer_tokens=0"),
        ("vt", {"begin_answer": "no"}, "begin_answer='no'"),
        ("cwe", {"common_repeats": 1, "uncommon_repeats": 1}, "must be larger"),
        ("qa_1", {"hops": 3}, "hops=3"),
    ],
)
def test_wrong_options_are_named(name, options, message):
    with pytest.raises(UserError, match=re.escape(message)):
        build(name, 1024, 1, **options)


def test_difficulty_options_change_the_sample():
    (sample,) = build("niah_multikey_1", 2048, 1, num_keys=6, num_queries=2)
    assert len(sample.outputs) == 2
    assert len(re.findall("A locker number of", sample.context)) == 6
    assert sample.metadata["options"] == {"num_keys": 6, "num_queries": 2}


@pytest.mark.parametrize("name", NAMES)
def test_the_answer_can_be_left_to_begin_by_itself(name):
    length = SHORTEST.get(name, 700)
    (begun,) = build(name, length, 1)
    (open_,) = build(name, length, 1, begin_answer=False)
    assert begun.answer_prefix
    assert open_.answer_prefix == ""
    assert (open_.question, open_.outputs) == (begun.question, begun.outputs)
    assert 0.97 * length <= open_.length <= length


def test_samples_say_where_their_texts_come_from(tmp_path):
    (tmp_path / "prose.txt").write_text("A first thought. A second one. " * 40)
    (tmp_path / "words.txt").write_text("\n".join(f"word{n}" for n in range(40)))
    (own,) = build("niah_single_2", 700, 1)
    (given,) = build(
        "niah_single_2",
        700,
        1,
        essay_path=str(tmp_path / "prose.txt"),
        words_path=str(tmp_path / "words.txt"),
    )
    assert own.metadata["data"] == "built-in"
    assert "words" not in own.metadata
    assert re.fullmatch(r"file:prose\.txt:[0-9a-f]{16}", given.metadata["data"])
    assert re.fullmatch(r"file:words\.txt:[0-9a-f]{16}", given.metadata["words"])


@pytest.mark.parametrize("name", ["qa_1", "qa_2"])
def test_questions_cannot_be_answered_without_their_documents(name):
    answers = Counter()
    samples = build(name, 1024, 60)
    for sample in samples:
        answers.update({answer.lower() for answer in sample.outputs})
        instruction = sample.context.split("\n", 1)[0]
        blind = f"{instruction} {sample.question} {sample.answer_prefix}"
        assert tasks.score(blind, sample)["official"] == 0
    # nor by always giving the same answer
    assert answers.most_common(1)[0][1] <= 3


def test_wording_of_the_tokenizer_is_used():
    from catekv.tasks.wording.tokenizer import build_tokenizer

    tokenizer = build_tokenizer()
    (sample,) = tasks.build("ruler/niah_multiquery", tokenizer, 512, 1)
    assert sample.wording.startswith("small")
    ids = encode(sample, tokenizer).ids
    assert tokenizer.unk_token_id not in ids
    assert ids.count(tokenizer.bos_token_id) == 1
    with pytest.raises(UserError, match="cannot express ruler/qa_1"):
        tasks.build("ruler/qa_1", tokenizer, 512, 1)


def test_facts_run_out_into_filler_lines():
    from catekv.tasks.wording.english import EnglishWording

    class FewNames(EnglishWording):
        def capacity(self, kind):
            return 26**2 if kind == "variables" else None

        def variables(self, count, random, letters=5):
            return super().variables(count, random, letters=2)

    (sample,) = build("vt_dense", 16384, 1, wording=FewNames())
    assert sample.metadata["other_statements"] < 26**2
    assert sample.metadata["filler_lines"] > 10
    assert sample.length >= 0.97 * 16384


@pytest.mark.slow
@pytest.mark.parametrize("name", ["niah_multivalue", "qa_1"])
def test_hundred_samples_of_32k_in_a_minute(name):
    tokenizer = ruler_tokenizers.byte_level()
    start = time.process_time()
    build(name, 32768, 100, tokenizer)
    assert time.process_time() - start < 60


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_hundred_samples_of_the_longest_published_length_in_two_minutes(name):
    tokenizer = ruler_tokenizers.byte_level()
    start = time.process_time()
    samples = build(name, 131072, 8, tokenizer)
    assert time.process_time() - start < 8 * 120 / 100
    for sample in samples:
        assert 0.97 * 131072 <= sample.length <= 131072
        assert tasks.score(oracle(sample), sample)["strict"] == 1
