"""SCBench, GraphWalks, MRCR and reasoning: prompts at any length, official rows, scores."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import ruler_tokenizers

from catekv import tasks
from catekv.errors import UserError
from catekv.tasks.families.graphwalks.graph import Graph, node_name
from catekv.tasks.families.scbench.options import input_limit, kept_positions
from catekv.tasks.metrics import boxed
from catekv.tasks.registry import find
from catekv.tasks.rows import sources

DRAWN = [
    "graphwalks/bfs", "graphwalks/parents", "mrcr/2_needles", "mrcr/4_needles", "scbench/kv",
    "scbench/vt", "scbench/prefix_suffix", "scbench/mf", "scbench/many_shot",
    "reasoning/copy_long", "reasoning/reverse", "reasoning/sort", "reasoning/add_chain",
    "reasoning/state_track", "reasoning/recall_own", "reasoning/addition_digits",
    "scbench/qa_eng", "scbench/choice_eng", "scbench/repoqa", "scbench/repoqa_and_kv",
    "scbench/summary", "scbench/summary_with_needles",
]  # fmt: skip
LENGTH = 2048


@pytest.fixture(scope="module")
def bpe() -> Any:
    return ruler_tokenizers.byte_level()


def build(task: str, tokenizer: Any, count: int = 2, **options: Any) -> list[Any]:
    if task.startswith("mrcr"):
        options.setdefault("short", True)
    if task.startswith("scbench") and find(task).natural:
        options.setdefault("source", "built-in")
    return tasks.build(task, tokenizer, LENGTH, count, chat_template="base", **options)


@pytest.mark.parametrize("task", DRAWN)
def test_samples_fill_the_length_and_their_answer_is_right(task: str, bpe: Any) -> None:
    for sample in build(task, bpe):
        # turns of a mixed session have allowances of two sizes, and share the text of the longer
        if sample.metadata.get("turn") != 2 or "_and_" not in task.replace("_with_", "_and_"):
            assert sample.length >= 0.95 * LENGTH
        assert sample.length <= LENGTH
        answer = "\n".join(sample.outputs)
        if task.startswith("graphwalks"):
            answer = f"Final Answer: [{', '.join(sample.outputs)}]"
        elif task == "scbench/vt":
            answer = " ".join(sample.outputs)
        scores = find(task).score(answer, sample)
        assert scores["official"] == 1
        assert scores["strict"] == 1
        assert find(task).score("nothing of it", sample)["official"] < 0.2


@pytest.mark.parametrize("task", DRAWN)
def test_a_sample_does_not_depend_on_the_others(task: str, bpe: Any) -> None:
    second = build(task, bpe, 2)[1]
    (alone,) = build(task, bpe, 1, first=1)
    assert alone == second


def test_the_published_answers_of_graphs(golden: Any) -> None:
    for case in golden("benchmarks_2026", "graphwalks_answer"):
        given = case["inputs"]
        graph = Graph(given["edges"])
        answer = graph.answer(given["operation"], given["node"], given.get("depth", 1))
        assert answer == case["expected"]["nodes"], case["id"]
    for case in golden("benchmarks_2026", "graphwalks_name"):
        assert node_name(case["inputs"]["number"]) == case["expected"]["name"]


def test_the_start_is_no_answer_at_any_depth() -> None:
    graph = Graph([("a", "b"), ("b", "a"), ("b", "b"), ("b", "c")])
    assert [graph.answer("bfs", "a", depth) for depth in range(4)] == [[], ["b"], ["c"], []]
    assert graph.answer("parents", "b") == ["a"]


def test_drawn_graphs_have_the_published_form(bpe: Any) -> None:
    for sample in build("graphwalks/bfs", bpe, 3, largest=5, depth=2):
        lines = sample.context.split("The graph:\n")[1].strip().splitlines()
        edges = [tuple(line.split(" -> ")) for line in lines]
        assert len(set(edges)) == len(edges) == sample.metadata["edges"]
        assert all(start != end for start, end in edges)
        leaving = Graph(edges).leaving.values()
        assert max(map(len, leaving)) <= 4
        node = sample.question.split()[4]
        answer = Graph(edges).answer("bfs", node, sample.metadata["depth"])
        assert tuple(answer) == sample.outputs
        assert len(answer) <= 5


def test_published_limits_and_truncation(golden: Any) -> None:
    for case in golden("benchmarks_2026", "scbench_limit"):
        given = case["inputs"]
        limit = input_limit(given["task"], given["turns"], given["mode"], given["max_seq"])
        assert limit == case["expected"]["limit"], case["id"]
    for case in golden("benchmarks_2026", "scbench_truncate"):
        assert kept_positions(**case["inputs"]) == case["expected"]["kept"]


def test_turns_of_a_session_share_their_context(bpe: Any) -> None:
    samples = build("scbench/kv", bpe, 4, turns=3)
    assert [sample.metadata["turn"] for sample in samples] == [1, 2, 3, 1]
    first, second, third, other = samples
    assert first.context == second.context == third.context != other.context
    assert first.group == second.group == third.group != other.group
    assert len({sample.outputs for sample in samples}) == 4
    assert all(sample.outputs[0] in sample.context for sample in samples)


def test_turns_repeat_what_was_asked_before_with_right_answers(bpe: Any) -> None:
    alone = build("scbench/kv", bpe, 3, turns=3)
    turns = build("scbench/kv", bpe, 3, turns=3, mode="multi_turn")
    assert turns[0].context == turns[2].context
    assert all(answer in turns[2].question for sample in turns[:2] for answer in sample.outputs)
    assert turns[2].outputs[0] not in turns[2].question
    assert turns[0].question == alone[0].question
    assert max(sample.length for sample in turns) <= LENGTH
    with pytest.raises(UserError, match="mode='x'; use one of multi_request, multi_turn"):
        build("scbench/kv", bpe, mode="x")


def test_described_functions_share_no_word_with_their_description(bpe: Any) -> None:
    samples = build("scbench/repoqa_and_kv", bpe, 5)
    assert [sample.scoring["rule"] for sample in samples] == ["repoqa", "kv"] * 2 + ["repoqa"]
    for sample in samples[::2]:
        source, functions = sample.outputs[0], sample.scoring["functions"]
        assert source in sample.context
        assert source == functions[sample.scoring["label"]]
        assert list(functions.values()).count(source) == 1
        compile(sample.context.split("JSON data:")[0], "drawn", "exec")
        description = sample.question.split("Description: ")[1].split("\n")[0]
        words = set(re.findall(r"[a-z]+", description.lower()))
        assert not words & set(re.findall(r"[a-z]+", source))
        other = next(text for name, text in functions.items() if name != sample.scoring["label"])
        assert find(sample.task).score(other, sample)["official"] == 0


def test_summaries_and_needles_take_turns_over_one_text(bpe: Any) -> None:
    samples = build("scbench/summary_with_needles", bpe, 5)
    assert len({sample.context for sample in samples}) == 1
    assert [sample.scoring["rule"] for sample in samples] == [
        "summary", "needle", "summary", "needle", "summary"
    ]  # fmt: skip
    assert [sample.max_new_tokens for sample in samples] == [800, 15, 800, 15, 800]
    for number, sample in enumerate(samples):
        label, others = sample.scoring["label"], samples[:number] + samples[number + 1 :]
        assert find(sample.task).score(label, sample)["official"] == 1
        wrong = [find(sample.task).score(other.scoring["label"], sample) for other in others]
        assert all(scores["official"] < 0.7 for scores in wrong)
    for sample in samples[1::2]:
        assert sample.context.count(sample.outputs[0]) == 1
        assert find(sample.task).score("12" + sample.outputs[0], sample)["official"] == 0
    alone = build("scbench/summary", bpe, 2)
    assert alone[0].context.count("Article ") == 5


def test_no_question_about_a_story_is_answered_by_anothers_paragraph(bpe: Any) -> None:
    samples = build("scbench/choice_eng", bpe, 5)
    assert len({sample.context for sample in samples}) == 1
    for sample in samples:
        right, letter = sample.scoring["label"]
        assert sample.outputs == (letter,)
        assert sample.scoring["options"]["ABCD".index(letter)] == right
        assert sum(right.lower() in part.lower() for part in sample.context.split("\n\n")) == 1


def test_the_embedded_model_speaks_some_of_them() -> None:
    from catekv.tasks.wording.tokenizer import build_tokenizer

    tokenizer = build_tokenizer()
    spoken = [task for task in DRAWN if find(task).small]
    assert len(spoken) >= 8
    for task in spoken:
        for sample in tasks.build(task, tokenizer, 256, 3):
            text = sample.context + sample.question + sample.answer_prefix
            assert tokenizer.unk_token_id not in tokenizer(text)["input_ids"]
            # what is told after the right answer is no part of it, but one line too many
            right = " ".join(sample.outputs) + ("" if sample.outputs[0].endswith(".") else " .")
            scores = find(task).score(right, sample)
            assert (scores["official"], scores["strict"]) == (1, 1)
            other = find(task).score("note fefib 11 22 33 .", sample)
            assert other["official"] < 0.8
            assert other["strict"] == 0
    with pytest.raises(UserError, match="cannot express graphwalks/parents; name a model"):
        tasks.build("graphwalks/parents", tokenizer, 256, 1)


def test_the_embedded_models_forms_ask_what_the_tasks_ask() -> None:
    from catekv.tasks.wording.tokenizer import build_tokenizer

    tokenizer = build_tokenizer()
    (copied,) = tasks.build("reasoning/copy_long", tokenizer, 256, 1)
    (turned,) = tasks.build("reasoning/reverse", tokenizer, 256, 1)
    for sample, order in ((copied, 1), (turned, -1)):
        (answer,) = sample.outputs
        lines = f"{sample.answer_prefix} {answer}".strip().split(" .")[:-1]
        places = [sample.context.index(line.strip()) for line in lines]
        assert places == sorted(places)[::order]
        # the lines that lead the answer rightly count
        begun = answer.split(" .")[0] + " ."
        assert find(sample.task).score(begun, sample) == {"official": 0.25, "strict": 0}
    for sample in tasks.build("graphwalks/bfs", tokenizer, 400, 4, depth=3):
        edges = re.findall(r"pass (\d\d \d\d \d\d|\w+) (\w+) \.", sample.context)
        start = sample.question.removeprefix("trace ").removesuffix(" ?")
        graph = Graph(edges)
        assert any(graph.answer("bfs", start, d) == sample.scoring["nodes"] for d in (1, 2, 3))
        assert graph.at_depth(sample.scoring["nodes"][0], 1) == set()
    for sample in tasks.build("mrcr/4_needles", tokenizer, 300, 4):
        texts, place = sample.scoring["texts"], sample.scoring["instance"]
        assert sorted(texts, key=sample.context.index) == texts
        assert texts[place] == sample.outputs[0]
        assert [text in sample.answer_prefix for text in texts] == [n < place for n in range(4)]
        wrong = find(sample.task).score(texts[place - 1] + " .", sample)
        assert (wrong["instance"], wrong["strict"]) == (0, 0)


def write(path: Path, *rows: dict[str, Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_rows_of_scbench(tmp_path: Path) -> None:
    turns = [{"input": "k1", "answer": "v1"}, {"input": "k2", "answer": "v2"}]
    path = write(tmp_path / "scbench_kv.jsonl", {"id": 0, "context": "{...}", "multi_turns": turns})
    samples = tasks.read(path)
    assert [sample.task for sample in samples] == ["scbench/kv"] * 2
    assert samples[1].outputs == ("v2",)
    assert samples[0].group == samples[1].group
    choice = {
        "context": "A story.",
        "multi_turns": [{"input": "Who?", "options": ["a", "b", "c", "d"], "answer": "c"}],
    }
    (sample,) = tasks.read(write(tmp_path / "scbench_choice_eng.jsonl", choice))
    assert find(sample.task).score("The answer is C", sample)["official"] == 1
    numbers = {"context": [3, 1], "multi_turns": [{"input": "Largest?", "answer": 3}]}
    (sample,) = tasks.read(write(tmp_path / "scbench_mf.jsonl", numbers))
    assert "[3, 1]" in sample.context
    assert find(sample.task).score("3", sample)["official"] == 1
    code = {
        "context": "code", "lang": "python", "repo": {"f": "def f(a, b):\n    return a + b"},
        "multi_turns": [
            {"input": "Does nothing.", "name": "f", "answer": "def f(): pass",
             "task": "scbench_repoqa"},
            {"input": "key", "answer": "value", "task": "scbench_kv"},
        ],
    }  # fmt: skip
    first, second = tasks.read(write(tmp_path / "scbench_repoqa_and_kv.jsonl", code))
    assert find(first.task).score("def f(a, b):\n    return a + b", first)["official"] == 1
    assert (first.max_new_tokens, second.max_new_tokens) == (1024, 80)
    short = {"context": "text", "question": ["a?", "b?"], "answers": ["x", "y"]}
    assert len(tasks.read(write(tmp_path / "short" / "scbench_qa_eng.jsonl", short))) == 2


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"context": "", "multi_turns": [{"input": "a", "answer": "b"}]}, "context is no text"),
        ({"context": "x", "multi_turns": []}, "no list multi_turns"),
        ({"context": "x", "multi_turns": [{"input": "a"}]}, "turn 1 has no answer"),
        ({"context": "x", "multi_turns": [{"answer": "a"}]}, "turn 1 has no input"),
        (
            {"context": [{"type": "image"}], "multi_turns": [{"input": "a", "answer": "b"}]},
            "context is no text",
        ),
        (
            {"context": "x", "multi_turns": [{"input": [{"type": "image"}], "answer": "b"}]},
            "turn 1 has no input",
        ),
        *(
            ({"context": "x", "multi_turns": [{"input": "a", "answer": answer}]}, "no answer")
            for answer in ("", " ", [], ["", "b"], {"b": 1}, float("nan"))
        ),
    ],
)
def test_rows_that_nothing_can_be_scored_against(
    tmp_path: Path, row: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        tasks.read(write(tmp_path / "scbench_kv.jsonl", row))


def test_rows_of_graphwalks(tmp_path: Path) -> None:
    row = {
        "prompt": "Rules.\nThe graph:\na -> b\nc -> b\nb -> b\n\nOperation:\nParents of node b",
        "answer_nodes": ["a", "b", "c"], "problem_type": "parents",
    }  # fmt: skip
    (sample,) = tasks.read(write(tmp_path / "graphwalks.jsonl", row))
    assert sample.task == "graphwalks/parents"
    assert sample.outputs == ("a", "c")  # an edge to itself makes no parent
    assert sample.question.strip().startswith("Operation:")
    older = {"prompt": "x\n\nBFS", "answer": [], "problem_type": "bfs"}
    (sample,) = tasks.read(write(tmp_path / "older.jsonl", older))
    assert find(sample.task).score("Final Answer: []", sample)["official"] == 1
    for name, value in (("prompt", [{"type": "image"}]), ("answer_nodes", None)):
        with pytest.raises(UserError, match=rf"line 1: {name} "):
            tasks.read(write(tmp_path / "torn.jsonl", {**row, name: value}))


def test_rows_of_mrcr(tmp_path: Path) -> None:
    ask = {"role": "user", "content": "Write a poem about owls."}
    poems = [{"role": "assistant", "content": text} for text in ("red owls", "blue owls")]
    messages = [ask, poems[0], ask, poems[1], {"role": "user", "content": "Prepend xY the second."}]
    row = {
        "prompt": json.dumps(messages), "answer": "xYblue owls", "n_needles": 2,
        "random_string_to_prepend": "xY", "desired_msg_index": 2,
    }  # fmt: skip
    (sample,) = tasks.read(write(tmp_path / "mrcr.jsonl", row))
    assert sample.task == "mrcr/2_needles"
    scores = find(sample.task).score("xYred owls", sample)
    assert (scores["instance"], scores["prefix_ok"], scores["strict"]) == (0, 1, 0)
    assert find(sample.task).score("xYblue owls", sample)["official"] == 1
    nothing = write(tmp_path / "nothing.jsonl", {**row, "answer": "xY"})
    with pytest.raises(UserError, match="line 1: the row has no answer to score against"):
        tasks.read(nothing)
    image = {"role": "user", "content": [{"type": "image_url", "image_url": "data:,"}]}
    picture = write(tmp_path / "picture.jsonl", {**row, "prompt": json.dumps([image, ask])})
    with pytest.raises(UserError, match="line 1: a message of prompt has no text as its content"):
        tasks.read(picture)
    with pytest.raises(UserError, match="prompt is no list of messages"):
        tasks.read(write(tmp_path / "torn.jsonl", {**row, "prompt": "[]"}), task="mrcr/2_needles")


def test_rows_of_problems(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("math_verify", reason="comparing terms needs the extra `math`")
    path = write(tmp_path / "aime24.jsonl", {"problem": "1+1?", "answer": "002", "id": 60})
    (sample,) = tasks.read(path)
    assert sample.task == "reasoning/aime24"
    assert find(sample.task).score(r"so \boxed{2}", sample)["official"] == 1
    unanswered = find(sample.task).score("2", sample)
    assert (unanswered["official"], unanswered["answered"]) == (0, 0)
    strange = find(sample.task).score(r"\boxed{two}", sample)
    assert (strange["official"], strange["answered"], strange["unreadable"]) == (0, 1, 1)
    with pytest.raises(UserError, match="no whole number from 0 to 999"):
        tasks.read(write(tmp_path / "aime25.jsonl", {"problem": "?", "answer": "x"}))
    math = write(tmp_path / "math500.jsonl", {"problem": "?", "answer": r"\frac12", "level": 2})
    (sample,) = tasks.read(math)
    assert sample.metadata["level"] == 2
    assert find(sample.task).score(r"\boxed{0.5}", sample)["official"] == 1
    for answer in (r"\frac{1}", "???", r"\sqrt["):
        scores = find(sample.task).score(rf"\boxed{{{answer}}}", sample)
        assert (scores["official"], scores["unreadable"]) == (0, 1)
    monkeypatch.setattr(boxed, "comparison", lambda: boxed.BY_TEXT)
    scores = find(sample.task).score(r"\boxed{\dfrac12}", sample)
    assert (scores["official"], scores["unreadable"], scores["by_text"]) == (1, 0, 1)


def test_missing_files_say_where_to_get_them(bpe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "hub_answers", lambda: False)
    monkeypatch.delenv("CATEKV_DATA", raising=False)
    for task, name in (("reasoning/math500", "MATH-500"), ("scbench/repoqa", "microsoft/SCBench")):
        with pytest.raises(UserError, match=rf"download .*{name}.*path=FILE"):
            tasks.build(task, bpe, 0, 1)
    with pytest.raises(UserError, match="is always generated"):
        tasks.build("reasoning/sort", bpe, 512, 1, source="hub")
