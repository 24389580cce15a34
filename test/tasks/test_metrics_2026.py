"""Scores of the benchmarks of 2025 and 2026 against reference numbers."""

from __future__ import annotations

from typing import Any

import pytest

from catekv.errors import UserError
from catekv.tasks.metrics import boxed, graphwalks, lines, mrcr, repoqa, scbench


def close(value: float, expected: Any) -> bool:
    return bool(value == pytest.approx(expected, abs=1e-9, rel=1e-9))


def test_scbench_turns(golden: Any) -> None:
    for case in golden("benchmarks_2026", "scbench_metric"):
        given = case["inputs"]
        value = scbench.score(
            given["task"], given["pred"], given["label"], given.get("options", ())
        )
        assert close(value, case["expected"]["ours"]), case["id"]
        strict = scbench.strict(
            given["task"], given["pred"], given["label"], given.get("options", ())
        )
        assert strict <= value


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("B", "B"),
        ("(C) a train", "C"),
        ("D. a bike", "D"),
        ("Because it is: the answer is A", "A"),
        ("BC", None),
        ("Dogs bark", None),
        ("The answer is a train", None),
        ("THE ANSWER IS: B", "B"),
        ("I take B then", "B"),
        ("a train", "C"),
        ("first the answer is A, no, the answer is D.", "D"),
        ("", None),
    ],
)
def test_choices(text: str, letter: str | None) -> None:
    assert scbench.chosen_letter(text, ["a car", "the ship", "a train", "a bike"]) == letter


def test_an_unknown_task_is_refused() -> None:
    with pytest.raises(UserError, match="unknown SCBench task 'scbench_x'"):
        scbench.score("scbench_x", "", "")


def test_repoqa(golden: Any) -> None:
    for case in golden("benchmarks_2026", "repoqa"):
        given, expected = case["inputs"], case["expected"]
        match = repoqa.best_match(given["pred"], given["functions"], given["target"])
        assert (match.best, match.passed) == (expected["best"], expected["passed"])
        assert close(match.bleu, expected["bleu"])
    assert repoqa.best_match("", {"a": "x y", "b": ""}, "a") == ("a", 0.0, False)


def test_graphwalks(golden: Any) -> None:
    for case in golden("benchmarks_2026", "graphwalks_score"):
        given, expected = case["inputs"], case["expected"]
        walk = graphwalks.rate(given["response"], given["answer_nodes"])
        for name in ("parse_failed", "exact"):
            assert getattr(walk, name) == expected[name], case["id"]
        assert list(walk.nodes) == expected["nodes"]
        for name in ("precision", "recall", "f1"):
            assert close(getattr(walk, name), expected[name]), case["id"]


def test_mrcr(golden: Any) -> None:
    for case in golden("benchmarks_2026", "mrcr_score"):
        given, expected = case["inputs"], case["expected"]
        rated = mrcr.rate(given["response"], given["answer"], given["prefix"])
        assert rated.prefix_ok == expected["prefix_ok"]
        assert close(rated.ratio, expected["ours"]), case["id"]
    texts = ["the red hen sat", "a blue fox ran"]
    assert mrcr.nearest("k9Qa blue fox ran off", "k9Q", texts) == 1
    assert mrcr.nearest("", "k9Q", texts) is None


def test_boxes(golden: Any) -> None:
    for case in golden("benchmarks_2026", "boxed"):
        assert boxed.boxed(case["inputs"]["response"]) == case["expected"]["text"], case["id"]
    assert boxed.boxed(r"\fbox {a} \boxed{\{1, 2\}}") == r"\{1, 2\}"


def test_answers_of_mathematics(golden: Any) -> None:
    for case in golden("benchmarks_2026", "math_answer"):
        given, expected = case["inputs"], case["expected"]
        answer = boxed.boxed(given["response"])
        assert answer == expected["extracted"], case["id"]
        equal_texts = answer is not None and boxed.normalised(answer) == given["gold"]
        if given["task"] == "aime" or equal_texts or not expected["ours"]:
            assert boxed.right(given["task"], given["gold"], answer) == expected["ours"], case["id"]


def test_equal_terms_by_math_verify(golden: Any) -> None:
    pytest.importorskip("math_verify", reason="comparing terms needs the extra `math`")
    for case in golden("benchmarks_2026", "math_answer"):
        given = case["inputs"]
        answer = boxed.boxed(given["response"])
        assert boxed.right(given["task"], given["gold"], answer) == case["expected"]["ours"]
    assert boxed.right("math", "5", "x=5")


@pytest.mark.parametrize(
    ("answer", "gold", "right"),
    [
        ("073", "73", True),
        (r"90^\circ", "90", True),
        ("$25$", "025", True),
        ("1000", "1000", False),
        ("73.0", "73", False),
    ],
)
def test_integers_of_aime(answer: str, gold: str, right: bool) -> None:
    assert boxed.right("aime", gold, answer) == right


@pytest.mark.parametrize(
    ("left", "other"),
    [
        (r"\dfrac{1}{2}", r"\frac{1}{2}"),
        (r"\left( 1,\ 2 \right)", "(1,2)"),
        ("1,024", "1024"),
        (r"12\text{ cm}", "12"),
        (r"$45^{\circ}$", "45"),
    ],
)
def test_texts_that_are_written_differently(left: str, other: str) -> None:
    assert boxed.normalised(left) == boxed.normalised(other)


def test_shares_over_samples_and_problems(golden: Any) -> None:
    for case in golden("benchmarks_2026", "pass_at_1"):
        passed = boxed.pass_at_1(**case["inputs"])
        assert passed._asdict() == pytest.approx(case["expected"])


def test_lines(golden: Any) -> None:
    for case in golden("benchmarks_2026", "prefix_exact"):
        rated = lines.rate(**case["inputs"])
        assert (rated.prefix, rated.exact) == (
            case["expected"]["prefix"], case["expected"]["exact"]
        )  # fmt: skip
    assert lines.rate("a\nb\nc", ["a", "b"]) == (1.0, False)
    assert lines.rate("a\n\nb", ["a", "", "b"]) == (1.0, True)
