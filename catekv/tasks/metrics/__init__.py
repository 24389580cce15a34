"""Scores of one prediction, all in [0, 1]; the caller averages and multiplies by 100.

One module per benchmark holds its rules by task: :mod:`longbench` (tables in
:mod:`longbench_tables`), :mod:`longbench_v2`, :mod:`infinitebench`, :mod:`zeroscrolls`,
:mod:`summaries`. The scores that they share can be called from here. :mod:`compat` holds the
deviating scores of other harnesses.
"""

from __future__ import annotations

from catekv.tasks.metrics import (
    compat,
    infinitebench,
    longbench,
    longbench_tables,
    longbench_v2,
    summaries,
    zeroscrolls,
)
from catekv.tasks.metrics.chinese import character_f1_zh, qa_f1_zh, rouge_l_zh
from catekv.tasks.metrics.edit import code_line, edit_similarity, indel_ratio, text_ratio
from catekv.tasks.metrics.longbench import classification, count_score, retrieval_score
from catekv.tasks.metrics.rouge import (
    RougeScore,
    rouge_google,
    rouge_l_pltrdy,
    rouge_pltrdy,
)
from catekv.tasks.metrics.substring import (
    answer_shaped,
    clean,
    clean_catekv,
    multi_number,
    multi_words,
    needle_score,
    set_f1,
    strict_match_all,
    strict_match_part,
    string_match_all,
    string_match_part,
)
from catekv.tasks.metrics.words import keyword_recall, normalise_answer, qa_f1

__all__ = [
    "RougeScore",
    "answer_shaped",
    "character_f1_zh",
    "classification",
    "clean",
    "clean_catekv",
    "code_line",
    "compat",
    "count_score",
    "edit_similarity",
    "indel_ratio",
    "infinitebench",
    "keyword_recall",
    "longbench",
    "longbench_tables",
    "longbench_v2",
    "multi_number",
    "multi_words",
    "needle_score",
    "normalise_answer",
    "qa_f1",
    "qa_f1_zh",
    "retrieval_score",
    "rouge_google",
    "rouge_l_pltrdy",
    "rouge_l_zh",
    "rouge_pltrdy",
    "set_f1",
    "strict_match_all",
    "strict_match_part",
    "string_match_all",
    "string_match_part",
    "summaries",
    "text_ratio",
    "zeroscrolls",
]
