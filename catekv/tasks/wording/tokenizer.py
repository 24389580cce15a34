"""The word-level tokenizer of the embedded model, as a plain ``PreTrainedTokenizerFast``."""

from __future__ import annotations

from typing import Any

from catekv.tasks.wording import vocabulary


def build_tokenizer() -> Any:
    """Tokenizer over :func:`vocabulary.words`: white space separates, BOS is put in front once.

    Its ``init_kwargs`` carry ``catekv_wording: "small"``, which makes the RULER builders write
    their texts in this vocabulary. Unknown words become ``<unk>``.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    unknown, begin, end, padding = vocabulary.SPECIAL_TOKENS
    core = Tokenizer(models.WordLevel(vocabulary.index(), unk_token=unknown))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    core.post_processor = processors.TemplateProcessing(
        single=f"{begin} $A",
        pair=f"{begin} $A $B",
        special_tokens=[(begin, vocabulary.BEGIN)],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        unk_token=unknown,
        bos_token=begin,
        eos_token=end,
        pad_token=padding,
        padding_side="left",
        model_max_length=8192,
        clean_up_tokenization_spaces=False,
        catekv_wording="small",
    )
