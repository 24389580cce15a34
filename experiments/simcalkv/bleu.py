"""BLEU of a corpus (Papineni et al., 2002) as SimCalKV reports it, by sacrebleu."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence

from catekv.errors import UserError


def require_sacrebleu() -> None:
    """Raise ``UserError`` if BLEU cannot be counted, before anything expensive runs."""
    if importlib.util.find_spec("sacrebleu") is None:
        raise UserError(
            "BLEU needs the package sacrebleu; install it with pip install 'catekv[simcalkv]'"
        )


def corpus_bleu(answers: Sequence[str], references: Sequence[str]) -> float:
    """BLEU in [0, 1] of all answers together: matches and lengths are summed before the division.

    Up to 4-grams of mteval-v13a's words, which the published code measured with, one reference per
    answer. 0 where any order has no match: nothing is smoothed.

    Raises:
        UserError: sacrebleu is not installed.
    """
    require_sacrebleu()
    from sacrebleu.metrics.bleu import BLEU

    if not answers:
        return 0.0
    # force: answers that end in a spaced full stop are code here, no sign of tokenized text
    measure = BLEU(tokenize="13a", smooth_method="none", force=True)
    return measure.corpus_score(answers, [references]).score / 100
