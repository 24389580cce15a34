"""Rows of a file within a length: what a cut may take and what it must leave."""

from __future__ import annotations

import json

import pytest
import ruler_tokenizers

from catekv import tasks
from catekv.errors import UserError
from catekv.tasks.core.prompt import encode
from catekv.tasks.families.infinitebench.prompts import PROMPTS

TOKENIZERS = sorted(ruler_tokenizers.ALL)


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_a_cut_out_of_the_middle_leaves_the_whole_instruction_or_is_refused(kind, tmp_path):
    """Half of what is kept is the beginning: of a short text that is less than the instruction."""
    tokenizer = ruler_tokenizers.ALL[kind]()
    name = "infinitebench/longbook_qa_eng"
    row = {"id": 0, "context": "the harbour is quiet. " * 400, "input": "Who?", "answer": ["Anna"]}
    file = tmp_path / "longbook_qa_eng.jsonl"
    file.write_text(json.dumps(row), encoding="utf-8")
    built, refused = 0, []
    for length in range(60, 260, 9):
        try:
            (sample,) = tasks.build(name, tokenizer, length, 1, path=str(file))
        except UserError as error:
            refused.append(str(error))
            continue
        built += 1
        assert sample.context.startswith(PROMPTS["longbook_qa_eng"].instruction)
        assert sample.metadata["cut_tokens"] > 0
        assert len(encode(sample, tokenizer)) + sample.max_new_tokens == sample.length <= length
    assert built
    assert refused
    assert all("leave no room for the text" in message for message in refused)
