"""Text of an answer token by token: whole characters, stop strings, nothing twice."""

from __future__ import annotations

from typing import Any

import pytest

from catekv.decode.text import INCOMPLETE, WINDOW, TextStream, stop_strings
from catekv.errors import UserError
from catekv.tasks.wording.tokenizer import build_tokenizer


@pytest.fixture(scope="module")
def bytes_tokenizer() -> Any:
    """One token per byte, as byte-level tokenizers fall back to for rare characters."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {character: index for index, character in enumerate([*alphabet, "<end>"])}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>")


@pytest.fixture(scope="module")
def pieces_tokenizer() -> Any:
    """Words with a space mark before them; decoding takes the first one away, as Llama 2's does."""
    from tokenizers import Tokenizer, decoders, models

    words = ["\u2581a", "\u2581the", "b", "\u2581", "END", "EN", "D", "\u2581.", "x"]
    vocabulary = {word: index for index, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="x"))
    tokenizer.decoder = decoders.Metaspace()
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="x")


def run(tokenizer: Any, tokens: list[int], stop: tuple[str, ...] = ()) -> tuple[list[str], Any]:
    stream = TextStream(tokenizer, stop)
    pieces = []
    for token in tokens:
        pieces.append(stream.add(token))
        if stream.stopped:
            break
    pieces.append(stream.finish())
    return pieces, stream


TEXTS = ["plain words, and more.", "grüße 你好 🎉🎉 end", " spaces  around  ", "é" * 50, ""]


@pytest.mark.parametrize("text", TEXTS)
def test_pieces_join_to_the_text_and_hold_whole_characters(bytes_tokenizer: Any, text: str):
    tokens = bytes_tokenizer(text)["input_ids"]
    pieces, stream = run(bytes_tokenizer, tokens)
    assert "".join(pieces) == stream.text == text
    assert not any(INCOMPLETE in piece for piece in pieces)
    assert len(tokens) == len(text.encode())


def test_a_character_appears_with_its_last_byte(bytes_tokenizer: Any):
    pieces, _ = run(bytes_tokenizer, bytes_tokenizer("a🎉b")["input_ids"])
    assert pieces == ["a", "", "", "", "🎉", "b", ""]


def test_an_incomplete_character_at_the_end_is_shown_as_it_is_decoded(bytes_tokenizer: Any):
    tokens = bytes_tokenizer("a🎉")["input_ids"][:-1]
    pieces, stream = run(bytes_tokenizer, tokens)
    assert "".join(pieces) == stream.text == bytes_tokenizer.decode(tokens)
    assert pieces[:-1] == ["a", "", "", ""]


def test_long_answers_are_not_decoded_again_and_again(bytes_tokenizer: Any):
    """Each call decodes a bounded number of tokens, and the text is still the whole one."""
    tokens = bytes_tokenizer("häß " * 200)["input_ids"]
    longest = 0

    class Counting:
        def decode(self, tokens: list[int], **options: Any) -> str:
            nonlocal longest
            longest = max(longest, len(tokens))
            return bytes_tokenizer.decode(tokens, **options)

    pieces, stream = run(Counting(), tokens)
    assert "".join(pieces) == stream.text == "häß " * 200
    assert longest <= 2 * (WINDOW + 4)


def test_spaces_between_words_survive_the_window(pieces_tokenizer: Any):
    tokens = [0, 1, 2, 3, 0] * 30
    pieces, stream = run(pieces_tokenizer, tokens)
    expected = pieces_tokenizer.decode(tokens)
    assert expected.startswith("a the")
    assert "".join(pieces) == stream.text == expected


def test_the_embedded_models_tokenizer():
    tokenizer = build_tokenizer()
    tokens = list(range(20, 120))
    pieces, stream = run(tokenizer, tokens)
    assert "".join(pieces) == stream.text == tokenizer.decode(tokens, skip_special_tokens=True)


def test_special_tokens_are_left_out(bytes_tokenizer: Any):
    end = bytes_tokenizer.eos_token_id
    tokens = [*bytes_tokenizer("ab")["input_ids"], end, *bytes_tokenizer("c")["input_ids"]]
    assert run(bytes_tokenizer, tokens)[1].text == "abc"


@pytest.mark.parametrize(
    ("text", "stop", "expected"),
    [
        ("one END two", ("END",), "one "),
        ("one END two", ("two", "END"), "one "),
        ("one END two", (" EN",), "one"),
        ("ENEND", ("END",), "EN"),
        ("EEND", ("END", "EE"), ""),
        ("one two", ("three",), "one two"),
        ("one EN", ("END",), "one EN"),
        ("你好。再见", ("。",), "你好"),
        ("END", ("END",), ""),
    ],
)
def test_text_ends_before_a_stop_string(
    bytes_tokenizer: Any, text: str, stop: tuple[str, ...], expected: str
):
    """Here every stop string straddles tokens; no part of one is ever shown."""
    pieces, stream = run(bytes_tokenizer, bytes_tokenizer(text)["input_ids"], stop)
    assert "".join(pieces) == stream.text == expected
    assert stream.stopped == (expected != text)
    assert stream.tokens_before_stop() == bytes_tokenizer(expected)["input_ids"]


def test_a_stop_string_inside_a_token_and_across_two(pieces_tokenizer: Any):
    _, whole = run(pieces_tokenizer, [0, 1, 4, 0], ("END",))
    _, across = run(pieces_tokenizer, [0, 1, 5, 6, 0], ("END",))
    assert whole.text == across.text == "a the"
    assert whole.tokens_before_stop() == across.tokens_before_stop() == [0, 1]
    _, inside = run(pieces_tokenizer, [0, 1, 0], ("he",))
    assert inside.text == "a t"
    assert inside.tokens_before_stop() == [0], "the token 'the' is not whole in the text"


def test_what_was_shown_is_never_taken_back():
    """A tokenizer that closes up punctuation once it sees it."""

    class ClosingUp:
        words = ("a", " b", " .", " n", "'t")

        def decode(self, tokens: list[int], **_: Any) -> str:
            text = "".join(self.words[token] for token in tokens)
            return text.replace(" .", ".").replace(" n't", "n't")

    pieces, stream = run(ClosingUp(), [0, 1, 3, 4, 2])
    assert "".join(pieces) == stream.text


def test_stop_strings_are_checked():
    assert stop_strings(None) == ()
    assert stop_strings("x") == ("x",)
    assert stop_strings(["x", "y"]) == ("x", "y")
    with pytest.raises(UserError, match="stop string is empty"):
        stop_strings("")
    with pytest.raises(UserError, match="stop string is empty"):
        stop_strings(["a", ""])
