"""Both flavours of ROUGE and the stemmer, against the libraries that published scores come from."""

from __future__ import annotations

import copy
import hashlib
import json
import pickle
import time
import zipfile
from random import Random

import pytest

from catekv.errors import UserError
from catekv.tasks import metrics
from catekv.tasks.metrics.rouge import stem
from catekv.tasks.metrics.subsequence import common_length, common_pairs

# prediction, reference, F of rouge_score 0.1.2 with stemmer (1, 2, L, Lsum), and precision, recall
# and F of rouge-l in rouge 1.0.1; computed with these libraries
PAIRS = [
    (
        "The mill was sold. Its owner moved to the coast and opened a bakery.",
        "The owner sold the mill. He opened a bakery on the coast.",
        (0.692307692, 0.333333333, 0.461538462, 0.461538462),
        (0.5, 0.636363636, 0.559999995),
    ),
    (
        "a b c d e f g",
        "g f e d c b a",
        (1.0, 0.0, 0.142857143, 0.142857143),
        (0.142857143, 0.142857143, 0.142857138),
    ),
    (
        "one two three\nfour five six\nseven",
        "four five\none two seven three",
        (0.923076923, 0.363636364, 0.461538462, 0.923076923),
        (0.428571429, 0.5, 0.461538457),
    ),
    (
        "The runners were running quickly, quickly.",
        "A runner runs quick. Quickly running!",
        (0.5, 0.0, 0.5, 0.5),
        (0.0, 0.0, 0.0),
    ),
    ("x . y . . z", "x y z .", (1.0, 1.0, 1.0, 1.0), (0.75, 1.0, 0.857142852)),
    (
        "No. 5 is alive.\nYes, it is.",
        "It is alive: no. 5",
        (0.833333333, 0.6, 0.333333333, 0.5),
        (0.333333333, 0.4, 0.363636359),
    ),
    (
        "river river river bank",
        "river bank bank bank",
        (0.5, 0.333333333, 0.5, 0.5),
        (1.0, 1.0, 0.999999995),
    ),
]


@pytest.mark.parametrize(("prediction", "reference", "google", "pltrdy"), PAIRS)
def test_values_of_both_libraries(prediction, reference, google, pltrdy):
    found = metrics.rouge_google(prediction, reference, stemmer=True)
    assert tuple(found.values()) == pytest.approx(google, abs=1e-9)
    score = metrics.rouge_l_pltrdy(prediction, reference)
    assert (score.precision, score.recall, score.f) == pytest.approx(pltrdy, abs=1e-9)


def test_worked_value_of_pltrdy():
    score = metrics.rouge_l_pltrdy(
        "The cat sat on the mat. It was happy.", "The cat is on the mat. The dog was happy."
    )
    assert score == pytest.approx(0.7777777727777778, abs=1e-12)


def test_published_values(golden):
    for case in golden("benchmarks", "rouge"):
        prediction, reference = case["inputs"]["hyp"], case["inputs"]["ref"]
        expected = case["expected"]
        for stemmer, name in ((False, "rouge_score"), (True, "rouge_score_stem")):
            found = metrics.rouge_google(prediction, reference, stemmer=stemmer)
            for kind, parts in expected[name].items():
                assert found[kind].parts() == pytest.approx(parts, abs=1e-9), (case["id"], kind)
        scores = metrics.rouge_pltrdy(prediction, reference)
        wanted = expected.get("pltrdy_rouge", {})
        for kind, score in scores.items():
            # where the original raises, ours is zero
            parts = wanted.get(kind, {"p": 0, "r": 0, "f": 0})
            assert score.parts() == pytest.approx(parts, abs=1e-9), (case["id"], kind)


def test_prefix_baselines_on_xsum(golden, published_files):
    file = published_files / "summarization" / "xsum_qhitter.jsonl"
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    for case in golden("benchmarks", "xsum_prefix"):
        row = rows[case["inputs"]["row"]]
        prediction = row["article"].rsplit("Article:", 1)[1].strip()[:300]
        found = metrics.rouge_google(prediction, row["summary_gt"], stemmer=True)
        assert dict(found) == pytest.approx(case["expected"]["scores"], abs=1e-6)
        score = metrics.rouge_l_pltrdy(prediction, row["summary_gt"])
        assert score == pytest.approx(case["expected"]["pltrdy_rouge_l_f"], abs=1e-6)


@pytest.mark.parametrize("text", ["", "   ", "...", "\n\n"])
def test_nothing_to_count_is_zero_and_never_raises(text):
    for prediction, reference in ((text, "a. b"), ("a. b", text), (text, "")):
        assert metrics.rouge_l_pltrdy(prediction, reference).parts() == {"p": 0, "r": 0, "f": 0}
        assert set(metrics.rouge_google(prediction, reference).values()) == {0.0}
    assert metrics.rouge_l_pltrdy("a", []) == 0
    assert set(metrics.rouge_google("a", []).values()) == {0.0}


def test_bounds_identity_and_the_best_reference():
    random = Random(5)
    words = ["the", "mills", "milling", "Mill.", "a", "b.", "c\n", "of", "1900"]

    def text() -> str:
        return " ".join(random.choices(words, k=random.randint(1, 25)))

    for _ in range(200):
        prediction, first, second = text(), text(), text()
        for stemmer in (False, True):
            both = metrics.rouge_google(prediction, [first, second], stemmer=stemmer)
            single = [
                metrics.rouge_google(prediction, [r], stemmer=stemmer) for r in (first, second)
            ]
            for kind, value in both.items():
                assert 0 <= value <= 1
                assert value == max(scores[kind] for scores in single)
        score = metrics.rouge_l_pltrdy(prediction, [first, second])
        assert 0 <= score <= 1
        assert score == max(metrics.rouge_l_pltrdy(prediction, r) for r in (first, second))
        assert metrics.rouge_l_pltrdy(first, first) == pytest.approx(1, abs=1e-8)
        same = metrics.rouge_google(first, first, kinds=("rouge1", "rougeL", "rougeLsum"))
        assert set(same.values()) == {1.0}


def test_a_score_is_a_number_that_keeps_its_parts():
    score = metrics.rouge_google("a b c", "a b", ("rouge1",))["rouge1"]
    assert score == pytest.approx(0.8)
    assert json.dumps(score) == repr(score.f)
    for other in (copy.deepcopy(score), pickle.loads(pickle.dumps(score))):
        assert other.parts() == {"p": 2 / 3, "r": 1.0, "f": score.f}


def test_unknown_kinds_are_refused():
    with pytest.raises(UserError, match=r"rouge3.*valid: rouge1, rouge2"):
        metrics.rouge_google("a", "a", ("rouge3",))
    with pytest.raises(UserError, match=r"rougeL.*valid: rouge-1"):
        metrics.rouge_pltrdy("a", "a", ("rougeL",))


def test_long_texts_without_full_stops_are_fast_and_do_not_recurse():
    random = Random(11)
    vocabulary = [f"w{i}" for i in range(800)]
    texts = [" ".join(random.choices(vocabulary, k=5000)) for _ in range(2)]
    start = time.perf_counter()
    score = metrics.rouge_l_pltrdy(*texts)
    assert time.perf_counter() - start < 2
    assert 0.2 < score < 0.5
    assert metrics.rouge_l_pltrdy(texts[0], texts[0]) == pytest.approx(1, abs=1e-8)


def _table_pairs(first: list[str], second: list[str]) -> list[tuple[int, int]]:
    """The walk back over the whole table, written out."""
    table = [[0] * (len(second) + 1) for _ in range(len(first) + 1)]
    for i, word in enumerate(first, 1):
        for j, other in enumerate(second, 1):
            above, left = table[i - 1][j], table[i][j - 1]
            table[i][j] = table[i - 1][j - 1] + 1 if word == other else max(above, left)
    i, j, pairs = len(first), len(second), []
    while i and j:
        if first[i - 1] == second[j - 1]:
            i, j = i - 1, j - 1
            pairs.append((i, j))
        elif table[i][j - 1] > table[i - 1][j]:
            j -= 1
        else:
            i -= 1
    return pairs[::-1]


def test_common_subsequences_equal_the_table_with_its_ties():
    random = Random(3)
    for _ in range(300):
        letters = "abcdefgh"[: random.randint(1, 8)]
        first, second = (random.choices(letters, k=random.randint(0, 20)) for _ in range(2))
        expected = _table_pairs(first, second)
        assert common_pairs(first, second) == expected
        assert common_length(first, second) == len(expected)


# computed with NLTK's default variant
STEMS = {
    "ties": "tie",
    "ponies": "poni",
    "dried": "dri",
    "agreed": "agre",
    "feed": "feed",
    "sized": "size",
    "hopping": "hop",
    "hissing": "hiss",
    "filing": "file",
    "happy": "happi",
    "enjoyed": "enjoy",
    "by": "by",
    "skies": "sky",
    "innings": "inning",
    "proceed": "proceed",
    "relational": "relat",
    "radicalli": "radic",
    "vietnamization": "vietnam",
    "geology": "geolog",
    "theologically": "theolog",
    "triplicate": "triplic",
    "goodness": "good",
    "adoption": "adopt",
    "replacement": "replac",
    "cease": "ceas",
    "rate": "rate",
    "controll": "control",
    "roll": "roll",
}


def test_stems():
    assert {word: stem(word) for word in STEMS} == STEMS


def test_stems_of_a_whole_dictionary_equal_those_of_nltk(published_files):
    with zipfile.ZipFile(published_files / "wordlists" / "nltk_words.zip") as archive:
        words = sorted(set(archive.read("words/en").decode().lower().split()))[::5]
    digest = hashlib.sha256("\n".join(f"{word} {stem(word)}" for word in words).encode())
    assert len(words) == 46_875
    assert digest.hexdigest() == "b9eb5c9e36a89f486dccb51478ff0d205757d7e2eda8e00b0b0478c878fe945f"
