"""Generated LongBench samples: they fit, they are solvable, they are labelled, they repeat."""

from __future__ import annotations

from dataclasses import replace

import pytest
from longbench_rows import embedded_tokenizer, small_samples
from ruler_tokenizers import chat

from catekv import tasks
from catekv.errors import UserError
from catekv.tasks.core.prompt import encode
from catekv.tasks.families.longbench.table import FULL_NAMES, SECOND, TASKS, facts
from catekv.tasks.metrics.longbench_tables import EVEN, bucket
from catekv.tasks.wording import vocabulary

#: ROUGE-L divides by a sum with 1e-8 added to it, so that equal texts give a little less than 1
ROUGE = 1e-8


@pytest.fixture(autouse=True)
def segmenter():
    pytest.importorskip("jieba", reason="Chinese scores need jieba: pip install 'catekv[zh]'")


def test_the_family_has_21_tasks_the_13_of_e_and_v2():
    assert len(TASKS) == 21
    names = [name for name in tasks.available() if name.startswith("longbench")]
    assert names == list(FULL_NAMES)
    assert len(names) == 21 + 13 + 1
    assert {name.removeprefix("longbench_e/") for name in names if "_e/" in name} == set(EVEN)


def test_answers_are_allowed_the_published_numbers_of_tokens():
    published = {
        128: {"narrativeqa", "qasper", "dureader", "samsum"},
        64: {"multifieldqa_en", "multifieldqa_zh", "trec", "lsht", "lcc", "repobench-p"},
        512: {"gov_report", "qmsum", "multi_news", "vcsum"},
        32: {"hotpotqa", "2wikimqa", "musique", "triviaqa", "passage_count"}
        | {"passage_retrieval_en", "passage_retrieval_zh"},
    }
    for tokens, names in published.items():
        assert {name for name in TASKS if TASKS[name].new_tokens == tokens} == names
        assert all(tasks.max_new_tokens(f"longbench/{name}") == tokens for name in names)


def test_few_shot_and_code_prompts_have_no_chat_template():
    plain = {name for name in TASKS if not TASKS[name].chat}
    assert plain == {"trec", "triviaqa", "samsum", "lsht", "lcc", "repobench-p"}
    (sample,) = tasks.build("longbench/trec", chat(), 600, 1, source="built-in")
    ids = encode(sample, chat()).ids
    assert chat().convert_tokens_to_ids("<|user|>") not in ids
    (sample,) = tasks.build(
        "longbench/trec", chat(), 600, 1, source="built-in", chat_template="phi3"
    )
    assert len(encode(sample, chat(), "phi3")) + sample.max_new_tokens == sample.length
    assert chat().convert_tokens_to_ids("<|user|>") not in encode(sample, chat(), "phi3").ids
    (sample,) = tasks.build("longbench/hotpotqa", chat(), 2000, 1, source="built-in")
    assert chat().convert_tokens_to_ids("<|user|>") in encode(sample, chat()).ids


def test_samsum_stops_at_a_newline_after_at_least_one_token():
    for name in TASKS:
        (sample,) = small_samples(f"longbench/{name}", count=1)
        expected = (("\n",), 1) if name == "samsum" else ((), 0)
        assert (sample.stop, sample.min_new_tokens) == expected


@pytest.mark.parametrize("length", [512, 1024])
@pytest.mark.parametrize("task", FULL_NAMES)
def test_every_task_fits_the_embedded_model_and_can_be_solved(task, length):
    known = set(vocabulary.words())
    for sample in small_samples(task, length):
        whole = sample.context + sample.question + sample.answer_prefix
        assert set(whole.split()) <= known
        tokens = len(encode(sample, embedded_tokenizer()))
        assert tokens + sample.max_new_tokens == sample.length
        assert 0.9 * length <= sample.length <= length
        assert sample.metadata["data"] == "built-in"
        assert sample.metadata["cut_tokens"] == 0
        perfect = tasks.score(sample.outputs[0], sample)
        assert perfect["official"] == pytest.approx(1, abs=ROUGE)
        assert perfect["strict"] == pytest.approx(1, abs=ROUGE)
        nothing = tasks.score("", sample)
        assert (nothing["official"], nothing["strict"]) == (0, 0)


@pytest.mark.parametrize("task", [name for name in FULL_NAMES if "_e/" not in name])
def test_every_task_is_generated_for_any_tokenizer_in_its_language(task):
    (sample,) = tasks.build(task, chat(), 1500, 1, source="built-in")
    assert sample.length <= 1500
    assert sample.wording == "longbench-1"
    if task != SECOND:
        chinese = any("\u4e00" <= sign <= "\u9fff" for sign in sample.context)
        assert chinese == (facts(task).language == "zh")
    assert tasks.score(sample.outputs[0], sample)["official"] == pytest.approx(1, abs=ROUGE)
    assert tasks.score("", sample)["official"] == 0
    other = tasks.score("something else entirely", sample)["official"]
    assert other < 0.5


@pytest.mark.parametrize("task", FULL_NAMES)
def test_scores_follow_from_outputs_and_scoring_alone(task):
    for sample in small_samples(task):
        bare = replace(sample, context="", question="", answer_prefix="", metadata={})
        for answer in (sample.outputs[0], "47 03 88 .", ""):
            assert tasks.score(answer, bare) == tasks.score(answer, sample)


@pytest.mark.parametrize("task", ["longbench/passage_count", "longbench/samsum", "longbench_v2"])
def test_a_sample_depends_on_its_index_and_not_on_the_others(task):
    five = small_samples(task, count=5)
    assert small_samples(task, count=2, first=3) == five[3:]
    assert len({sample.context for sample in five}) == 5
    assert small_samples(task, count=1, seed=7)[0].context != five[0].context


def test_samples_of_e_say_their_bucket():
    for sample in small_samples("longbench_e/hotpotqa"):
        assert sample.metadata["bucket"] == bucket(sample.metadata["length"]) == "0-4k"


def test_the_question_of_a_generated_row_needs_its_context():
    (sample,) = tasks.build("longbench/passage_retrieval_en", chat(), 2000, 1, source="built-in")
    number = int(sample.outputs[0].split()[1])
    paragraphs = sample.context.split("\n\n")[1:]
    named = sample.question.split("Summary: ")[1].split(" ", 3)[:2]
    about = [p for p in paragraphs if any(" ".join(named) in line for line in p.split("\n"))]
    assert [p.startswith(f"Paragraph {number}: ") for p in about] == [True]


def test_copies_are_counted():
    for sample in tasks.build("longbench/passage_count", chat(), 2500, 3, source="built-in"):
        body = sample.context.split("\n\n", 1)[1]
        texts = [line.split(": ", 1)[1] for line in body.split("\n\n")]
        assert sample.outputs == (str(len(set(texts))),)


def test_the_embedded_model_solves_what_it_was_trained_for():
    import catekv
    from catekv.models import embedded

    model = catekv.CateKVModel.from_pretrained(embedded.path(), method="full", device="cpu")
    for task in ("longbench/qasper", "longbench/hotpotqa", "longbench/lcc", "longbench_v2"):
        (sample,) = small_samples(task, count=1)
        prompt = encode(sample, model.tokenizer)
        context = model.prefill(prompt.context_ids)
        answer = model.generate(
            prompt.question_ids, context=context, max_new_tokens=sample.max_new_tokens
        )
        assert tasks.score(answer, sample)["official"] == 1


def test_generated_v2_rows_are_not_filtered():
    with pytest.raises(UserError, match="difficulty cannot choose among them"):
        small_samples("longbench_v2", difficulty="hard")


def test_a_length_without_room_for_a_prompt_is_refused():
    with pytest.raises(UserError, match="longbench/gov_report needs a length of at least"):
        tasks.build("longbench/gov_report", chat(), 520, 1, source="built-in")
