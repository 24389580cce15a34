"""Scores of Chinese answers, which have to be segmented into words first (package ``jieba``)."""

from __future__ import annotations

import string
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from importlib.metadata import version

from catekv.errors import UserError
from catekv.tasks.metrics.rouge import RougeScore, rouge_l_pltrdy
from catekv.tasks.metrics.words import as_list, overlap_f1

#: what LongBench and InfiniteBench delete; three of the opening brackets are missing there
_SIGNS = (
    "！？｡。＂＃＄％＆＇（）＊＋，－／：；＜＝＞＠［＼］＾＿｀｛｜｝～｟｠｢｣､、〃》「」『』【】"  # noqa: RUF001
    "〔〕〖〗〘〙〚〛〜〝〞〟〰〾〿–—‘’‛“”„‟…‧﹏."  # noqa: RUF001
)
_DELETED = str.maketrans("", "", string.punctuation + _SIGNS)


@cache
def _segmenter() -> Callable[[str], Iterable[str]]:
    try:
        import jieba
    except ImportError as error:
        raise UserError(
            "Chinese scores need the package jieba; install it with: pip install 'catekv[zh]'"
        ) from error
    import logging

    # else it reports on stderr that it reads its dictionary
    jieba.setLogLevel(logging.WARNING)
    # an instance of our own: words that a program adds to the shared one must not change scores
    segments: Callable[[str], Iterable[str]] = jieba.Tokenizer().cut
    return segments


def segmenter_name() -> str:
    """What segments, with its version, for the record of a result."""
    return f"jieba {version('jieba')}"


def segment(text: str) -> list[str]:
    """Words of a Chinese text.

    Raises:
        UserError: jieba is not installed; the message names the extra that brings it.
    """
    return list(_segmenter()(text))


def normalise_chinese(text: str) -> str:
    """Lower-case, without ASCII and Chinese punctuation and without white space."""
    return "".join(text.lower().translate(_DELETED).split())


def qa_f1_zh(prediction: str, references: str | Sequence[str]) -> float:
    """LongBench's F1 of Chinese answers: multiset overlap of normalised words; best reference."""

    def words(text: str) -> list[str]:
        return [word for word in map(normalise_chinese, segment(text)) if word]

    found = words(prediction)
    return max((overlap_f1(found, words(wanted)) for wanted in as_list(references)), default=0.0)


def character_f1_zh(prediction: str, references: str | Sequence[str]) -> float:
    """InfiniteBench's F1 of Chinese answers: over single characters, no segmentation."""
    found = normalise_chinese(prediction)
    scores = (overlap_f1(found, normalise_chinese(wanted)) for wanted in as_list(references))
    return max(scores, default=0.0)


def rouge_l_zh(prediction: str, references: str | Sequence[str]) -> RougeScore:
    """LongBench's ROUGE-L of Chinese summaries: words joined by spaces, then ``rouge_l_pltrdy``."""
    joined = [" ".join(segment(wanted)) for wanted in as_list(references)]
    return rouge_l_pltrdy(" ".join(segment(prediction)), joined)
