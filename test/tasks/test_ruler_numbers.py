"""RULER's averages over tasks and lengths, and its scores as other harnesses compute them."""

from __future__ import annotations

import pytest

from catekv.tasks.core.sample import Sample
from catekv.tasks.families.ruler.averages import effective_length, mean_of_tasks, weighted_averages
from catekv.tasks.families.ruler.compat import compat_scores


def sample(metric, *outputs):
    return Sample("ruler/vt", 0, "", "", "", outputs, 32, 0, 0, metric)


def test_effective_length_is_the_longest_at_the_threshold():
    assert effective_length({4096: 96.0, 8192: 85.6, 16384: 85.5}) == 8192
    assert effective_length({4096: 80.0, 8192: 90.0}) == 8192
    assert effective_length({4096: 80.0}) is None
    assert effective_length({4096: 80.0}, threshold=75) == 4096


def test_weighted_averages_favour_long_or_short_lengths():
    # weights 1, 2, 3 and 3, 2, 1 over their sum 6
    assert weighted_averages([90.0, 60.0, 30.0]) == pytest.approx((50.0, 70.0))
    assert weighted_averages([42.0]) == (42.0, 42.0)
    with pytest.raises(ValueError, match="at least one length"):
        weighted_averages([])


def test_one_length_is_the_plain_mean_of_its_tasks():
    assert mean_of_tasks({"vt": 100.0, "cwe": 50.0, "qa_1": 30.0}) == 60.0
    with pytest.raises(ValueError, match="at least one task"):
        mean_of_tasks({})


def test_other_harnesses_deviate_where_they_are_known_to():
    question = sample("part", "Paris", "the capital")
    assert compat_scores("Paris", question)["lm_eval"] == 0.5
    assert compat_scores("", question) == {"lm_eval": 0.0, "kvpress": 0.0, "catekv": 1.0}
    names = sample("all", "ABCDE", "FGHIJ")
    assert compat_scores("ABC\nDE and FGHIJ", names) == {"lm_eval": 0.5, "kvpress": 1.0}
