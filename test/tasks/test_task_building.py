"""``tasks.build`` and ``tasks.generate``: the same samples, in a list or one by one."""

from __future__ import annotations

import inspect

import pytest
import ruler_tokenizers

from catekv import tasks
from catekv.errors import UserError


def test_both_take_the_same_arguments_and_make_the_same_samples():
    tokenizer = ruler_tokenizers.byte_level()
    asked = {"length": 500, "count": 2, "seed": 5, "first": 1, "num_hops": 2}
    samples = tasks.build("ruler/vt", tokenizer, **asked)
    assert isinstance(samples, list)
    assert [sample.index for sample in samples] == [1, 2]
    assert samples == list(tasks.generate("ruler/vt", tokenizer, **asked))
    names = list(inspect.signature(tasks.build).parameters)
    assert names == list(inspect.signature(tasks.generate).parameters)
    assert names[:5] == ["name", "tokenizer", "length", "count", "seed"]
    assert tasks.build.__name__ == "build"


def test_a_list_raises_at_once_and_single_samples_when_they_are_taken():
    with pytest.raises(UserError, match="count=-1"):
        tasks.build("ruler/vt", None, 500, -1)
    made = tasks.generate("ruler/vt", None, 500, -1)
    with pytest.raises(UserError, match="count=-1"):
        next(made)
