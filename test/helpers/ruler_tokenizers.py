"""Tokenizers of every kind the RULER builders must serve, trained here in a second."""

from __future__ import annotations

from functools import cache
from random import Random
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from catekv.tasks.drawing import words
from catekv.tasks.drawing.essay import essay

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<|user|>{{ message['content'] }}<|end|>"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SPECIAL = ["<s>", "</s>", "<unk>", "<|user|>", "<|assistant|>", "<|end|>"]


def _corpus(sentences: int = 1500) -> list[str]:
    random = Random(7)
    source = essay(random)
    numbers = [f"{random.randint(0, 10**7)} {random.getrandbits(64):x}" for _ in range(200)]
    names = [f"{words.key(random)} {words.common_word(random)}" for _ in range(sentences // 2)]
    return [next(source) for _ in range(sentences)] + numbers + names


def _fast(core: Tokenizer, **options: Any) -> Any:
    return PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<s>", eos_token="</s>", unk_token="<unk>", **options
    )


def _adds_bos(core: Tokenizer) -> None:
    core.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", core.token_to_id("<s>"))]
    )


@cache
def byte_level() -> Any:
    """Byte-level BPE that puts BOS in front, without a chat template (like a base Llama-3)."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=4000,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(_corpus(), trainer)
    _adds_bos(core)
    return _fast(core)


@cache
def chat() -> Any:
    """The same with a chat template that writes BOS itself; plain text gets it too."""
    return _fast(byte_level().backend_tokenizer, chat_template=CHAT_TEMPLATE)


@cache
def sentencepiece_like() -> Any:
    """Unigram over meta-space pieces, which puts a space before every text; never adds BOS."""
    core = Tokenizer(models.Unigram())
    core.pre_tokenizer = pre_tokenizers.Metaspace()
    core.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=1200,
        special_tokens=SPECIAL,
        unk_token="<unk>",
        initial_alphabet=list("0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ=-.'"),
        show_progress=False,
    )
    core.train_from_iterator(_corpus(400), trainer)
    return _fast(core)


@cache
def word_level() -> Any:
    """One token a word or sign; every word outside its list is ``<unk>``."""
    core = Tokenizer(models.WordLevel(unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.WordLevelTrainer(special_tokens=SPECIAL, show_progress=False)
    core.train_from_iterator(_corpus(200), trainer)
    _adds_bos(core)
    return _fast(core)


ALL = {
    "byte_level": byte_level,
    "chat": chat,
    "sentencepiece_like": sentencepiece_like,
    "word_level": word_level,
}
