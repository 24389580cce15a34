"""Answers: drawn with a seed, stopped per sequence, streamed, from recorded steps, by threads."""

from __future__ import annotations

import copy
import pickle
import threading
from typing import Any

import pytest
import torch
from scenarios import PROMPT, random_ids, with_attention
from tape import tapes  # noqa: F401
from tiny_checkpoint import save_tiny_checkpoint
from tiny_models import KeepEverything, RandomKeep, tiny_model
from torch import Tensor

from catekv.decode import generation
from catekv.decode.generation import RECORD_AFTER
from catekv.errors import UserError
from catekv.model import CateKVModel

DRAWN = {"temperature": 1.3, "top_k": 60, "top_p": 0.95, "seed": 7}


def wrapped(family: str = "llama", method: Any = None) -> CateKVModel:
    return CateKVModel(with_attention(family, "catekv"), method or RandomKeep(0.5))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> CateKVModel:
    """Random weights, wide awake: they do not say the same word over and over."""
    folder = save_tiny_checkpoint(tmp_path_factory.mktemp("checkpoint"))
    model = CateKVModel.from_pretrained(folder, "streaming_llm", budget=24)
    model.model.generation_config.eos_token_id = None
    return model


@pytest.fixture
def words(checkpoint: CateKVModel) -> str:
    return " ".join(checkpoint.tokenizer.convert_ids_to_tokens(range(20, 60)))


class TravellingMail:
    """Tokens arrive after the next step was started, as on a GPU."""

    travels = True
    waiting = 0

    def __init__(self, batch: int, device: torch.device):
        self.tokens: Tensor | None = None

    def send(self, tokens: Tensor) -> None:
        assert self.tokens is None, "the last tokens were never read"
        self.tokens = tokens

    def receive(self) -> list[int]:
        assert self.tokens is not None
        tokens, self.tokens = self.tokens, None
        return tokens[:, 0].tolist()


# --- drawing ---------------------------------------------------------------------------------


def test_a_seed_decides_what_is_drawn():
    model = wrapped()
    context = model.prefill(random_ids(1, PROMPT, seed=0))
    first = model.generate_ids([5, 6], context, 12, [], **DRAWN).tokens
    assert model.generate_ids([5, 6], context, 12, [], **DRAWN).tokens == first
    assert model.generate_ids([5, 6], context, 12, [], **{**DRAWN, "seed": 8}).tokens != first
    assert model.generate_ids([5, 6], context, 12, []).tokens != first
    shorter = model.generate_ids([5, 6], context, 5, [], **DRAWN).tokens
    assert shorter == first[:5]


def test_a_sequence_draws_the_same_alone_and_in_a_padded_batch():
    model = wrapped()
    rows = [random_ids(1, PROMPT - 7 * i, seed=i)[0].tolist() for i in range(3)]
    questions = [[5, 6, 7, 8], [9], [10, 11]]
    together = model.generate_ids(questions, model.prefill(rows), 8, [], **DRAWN).rows
    alone = model.generate_ids(questions[0], model.prefill(rows[0]), 8, [], **DRAWN).tokens
    assert together[0] == alone
    stop = together[1][2]
    stopped = model.generate_ids(questions, model.prefill(rows), 8, [stop], **DRAWN).rows
    for row, whole in zip(stopped, together, strict=True):
        assert row == (whole[: whole.index(stop)] if stop in whole else whole)


def test_only_the_likeliest_is_greedy():
    model = wrapped()
    context = model.prefill(random_ids(2, PROMPT, seed=0))
    greedy = model.generate_ids([[5], [6]], context, 8, []).rows
    assert model.generate_ids([[5], [6]], context, 8, [], top_k=1, seed=1).rows == greedy
    cold = model.generate_ids([[5], [6]], context, 8, [], temperature=1e-4, seed=1).rows
    assert cold == greedy


# --- stopping --------------------------------------------------------------------------------


def test_each_sequence_stops_at_its_own_stop_string(checkpoint: CateKVModel, words: str):
    context = checkpoint.prefill([words, words[:80]])
    questions = [words[:30], words[40:60]]
    whole = checkpoint.generate(questions, context=context, max_new_tokens=12)
    stop = whole[0].split()[4]
    stopped = checkpoint.generate(questions, context=context, max_new_tokens=12, stop=[stop])
    assert stopped == [text.split(stop)[0] for text in whole]
    assert stopped[0] != whole[0]
    answer = checkpoint.generate_ids(questions, context, 12, stop=stop)
    assert answer.texts == stopped
    for row, text in zip(answer.rows, stopped, strict=True):
        assert checkpoint.tokenizer.decode(row) == text.rstrip()


def test_the_loop_ends_when_all_sequences_have(checkpoint: CateKVModel, words: str):
    context = checkpoint.prefill(words)
    whole = checkpoint.generate_ids(words[:30], context, 12).tokens
    text = checkpoint.tokenizer.decode(whole)
    stop = text.split()[4]
    answer = checkpoint.generate_ids(words[:30], context, 12, stop=stop)
    assert answer.steps == len(text.split(stop)[0].split())
    assert answer.tokens == whole[: answer.steps]


# --- streaming -------------------------------------------------------------------------------


def test_streamed_pieces_are_the_returned_text(checkpoint: CateKVModel, words: str):
    context = checkpoint.prefill(words)
    expected = checkpoint.generate(words[:30], context=context, max_new_tokens=10)
    pieces: list[str] = []
    answer = checkpoint.generate(
        words[:30], context=context, max_new_tokens=10, stream=pieces.append
    )
    assert "".join(pieces) == answer == expected
    assert len(pieces) > 3
    read = list(checkpoint.generate_stream(words[:30], context, 10))
    assert read == pieces
    stop = expected.split()[5]
    cut = list(checkpoint.generate_stream(words[:30], context, 10, stop=stop))
    assert "".join(cut) == expected.split(stop)[0]
    drawn = checkpoint.generate(words[:30], context=context, max_new_tokens=10, **DRAWN)
    assert "".join(checkpoint.generate_stream(words[:30], context, 10, **DRAWN)) == drawn


def test_pieces_come_before_the_answer_is_finished(
    checkpoint: CateKVModel, words: str, monkeypatch: pytest.MonkeyPatch
):
    context = checkpoint.prefill(words)
    forwards = 0

    def counted(*_: Any) -> None:
        nonlocal forwards
        forwards += 1

    hook = checkpoint.model.register_forward_pre_hook(counted)
    stream = checkpoint.generate_stream(words[:30], context, 10)
    assert forwards == 0
    next(stream)
    assert forwards <= 2
    stream.close()
    assert forwards <= 2
    hook.remove()


def test_several_sequences_are_streamed_with_their_number(checkpoint: CateKVModel, words: str):
    context = checkpoint.prefill([words, words[:80]])
    texts = ["", ""]

    def collect(piece: str, row: int) -> None:
        texts[row] += piece

    answers = checkpoint.generate(
        [words[:30], words[40:60]], context=context, max_new_tokens=8, stream=collect
    )
    assert texts == answers
    with pytest.raises(UserError, match="reads one answer"):
        checkpoint.generate_stream([words[:30], words[40:60]], context)


def test_a_prompt_without_a_context_is_streamed_too(checkpoint: CateKVModel, words: str):
    expected = checkpoint.generate(words, max_new_tokens=5)
    assert "".join(checkpoint.generate_stream(words, max_new_tokens=5)) == expected


# --- tokens that arrive one step late ----------------------------------------------------------


@pytest.mark.parametrize("options", [{}, DRAWN], ids=["greedy", "drawn"])
def test_at_most_one_surplus_step_where_tokens_travel(
    options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
):
    model = wrapped()
    context = model.prefill(random_ids(2, PROMPT, seed=0))
    questions = [[5], [6]]
    whole = model.generate_ids(questions, context, 10, [], **options)
    stop = whole.rows[0][3]
    expected = model.generate_ids(questions, context, 10, [stop], **options)
    single = model.prefill(random_ids(2, PROMPT, seed=0)[:1])
    alone = model.generate_ids([5], single, 10, [stop], **options)
    monkeypatch.setattr(generation, "_Mail", TravellingMail)
    assert model.generate_ids(questions, context, 10, [], **options).rows == whole.rows
    assert model.generate_ids(questions, context, 10, [], **options).steps == whole.steps == 9
    assert model.generate_ids(questions, context, 10, [stop], **options).rows == expected.rows
    late = model.generate_ids([5], single, 10, [stop], **options)
    assert late.tokens == alone.tokens
    assert late.steps == alone.steps + 1


# --- recorded steps ----------------------------------------------------------------------------


@pytest.mark.usefixtures("tapes")
@pytest.mark.parametrize("options", [{}, DRAWN], ids=["greedy", "drawn"])
@pytest.mark.parametrize("method", [RandomKeep(0.5), KeepEverything()], ids=["half", "all"])
def test_recorded_steps_answer_as_ordinary_ones(method: Any, options: dict[str, Any]):
    model = wrapped(method=method)
    rows = [random_ids(1, PROMPT - 7 * i, seed=i)[0].tolist() for i in range(3)]
    questions = [[5, 6, 7, 8], [9], [10, 11]]
    context = model.prefill(rows)
    expected = model.generate_ids(questions, context, 9, [], **options)
    assert not expected.captured
    answer = model.generate_ids(questions, context, 9, [], graph="on", **options)
    assert answer.rows == expected.rows
    assert answer.captured
    assert answer.reason is None
    assert answer.capture_seconds > 0
    eager = model.generate_ids(questions, context, 9, [], graph="off", **options)
    assert eager.rows == expected.rows
    assert not eager.captured


@pytest.mark.usefixtures("tapes")
def test_the_step_of_one_answer_serves_the_next():
    model = wrapped()
    context = model.prefill(random_ids(1, PROMPT, seed=0))
    questions = [[5, 6, 7], [9, 10], [11] * 9, [5, 6, 7]]
    expected = [model.generate_ids(question, context, 8, []).tokens for question in questions]
    answers = [model.generate_ids(q, context, 8, [], graph="on") for q in questions]
    assert [answer.tokens for answer in answers] == expected
    assert answers[0].capture_seconds > 0
    # the second fits the room of the first; the third needs more, which serves the fourth
    assert [answer.capture_seconds > 0 for answer in answers] == [True, False, True, False]
    assert context.tokens == PROMPT
    assert not context.cache.ragged_layers[0].tail_length
    context.release()
    assert model.generate_ids([9, 10], context, 8, [], graph="on").capture_seconds > 0


@pytest.mark.usefixtures("tapes")
def test_a_kept_step_obeys_the_next_request():
    """Made by an answer that may do without a recording, asked by one that may not."""
    model = wrapped()
    context = model.prefill(random_ids(1, PROMPT, seed=0))
    model.generate_ids([5, 6], context, 8, [], graph="on")
    session = context.sessions._idle
    assert session is not None
    assert not model.generate_ids([5, 6], context, 8, [], graph="off").captured
    assert context.sessions._idle is session
    # too long for the room: what was recorded does not fit any more
    assert model.generate_ids([7] * 20, context, 8, [], graph="on").captured
    assert context.sessions._idle is session


@pytest.mark.usefixtures("tapes")
def test_padding_of_one_question_is_not_that_of_the_next():
    model = wrapped()
    rows = [random_ids(1, PROMPT - 7 * i, seed=i)[0].tolist() for i in range(2)]
    context = model.prefill(rows)
    questions = [[[5, 6, 7, 8], [9]], [[5], [9, 10, 11, 12]], [[3, 4, 5], [6, 7, 8]]]
    expected = [model.generate_ids(question, context, 8, []).rows for question in questions]
    answers = [model.generate_ids(q, context, 8, [], graph="on").rows for q in questions]
    assert answers == expected


@pytest.mark.usefixtures("tapes")
def test_a_kept_step_is_not_used_for_a_context_that_went_on():
    model = wrapped()
    context = model.prefill(random_ids(1, PROMPT, seed=0))
    model.generate_ids([5, 6], context, 8, [], graph="on")
    with torch.no_grad():
        logits = model.model(torch.tensor([[7]]), past_key_values=context.cache).logits
    context.last_logits = logits[:, -1]
    expected = model.generate_ids([5, 6], context, 8, []).tokens
    assert model.generate_ids([5, 6], context, 8, [], graph="on").tokens == expected


@pytest.mark.usefixtures("tapes")
def test_a_kept_step_is_not_used_with_other_weights():
    """Another model of the same shape, and the same model with weights put elsewhere."""
    model = CateKVModel(tiny_model("llama"), RandomKeep(0.5))
    other = CateKVModel(tiny_model("llama", seed=1), RandomKeep(0.5))
    context = model.prefill(random_ids(1, PROMPT, seed=0))
    # as one that an earlier version saved: other weights are not refused
    context.cache.weights = None
    model.generate_ids([5, 6], context, 8, [], graph="on")
    expected = other.generate_ids([5, 6], context.fork(), 8, []).tokens
    assert other.generate_ids([5, 6], context, 8, [], graph="on").tokens == expected
    model.generate_ids([5, 6], context, 8, [], graph="on")
    for own, foreign in zip(model.model.parameters(), other.model.parameters(), strict=True):
        own.data = foreign.data.clone()
    assert model.generate_ids([5, 6], context, 8, [], graph="on").tokens == expected


@pytest.mark.usefixtures("tapes")
def test_copies_of_a_context_do_not_share_the_kept_step():
    model = wrapped()
    context = model.prefill(random_ids(1, PROMPT, seed=0))
    model.generate_ids([5, 6], context, 8, [], graph="on")
    kept = context.sessions._idle
    assert kept is not None
    assert copy.deepcopy(context).sessions._idle is None
    assert context.fork().sessions._idle is None
    assert pickle.loads(pickle.dumps(context.sessions))._idle is None
    assert context.sessions._idle is kept


@pytest.mark.usefixtures("tapes")
def test_threads_that_ask_one_context_get_their_own_answers():
    model = wrapped()
    context = model.prefill(random_ids(1, PROMPT, seed=0))
    questions = [[5 + i, 6 + 2 * i] for i in range(4)]
    expected = [model.generate_ids(question, context, 6, []).tokens for question in questions]
    model.generate_ids(questions[0], context, 6, [], graph="on")
    answers: dict[int, list[int]] = {}

    def ask(index: int) -> None:
        for _ in range(2):
            answers[index] = model.generate_ids(questions[index], context, 6, [], graph="on").tokens

    threads = [threading.Thread(target=ask, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [answers[index] for index in range(4)] == expected


@pytest.mark.usefixtures("tapes")
def test_a_stream_that_is_not_read_to_its_end_leaves_the_context_usable(
    checkpoint: CateKVModel, words: str
):
    context = checkpoint.prefill(words)
    ids = checkpoint.encode(words[:30], begin=False)[0]
    expected = checkpoint.generate_ids(ids, context, 12).tokens
    checkpoint.generate_ids(ids, context, 12, graph="on")
    stream = checkpoint.generate_stream(words[:30], context, 12)
    next(stream)
    stream.close()
    assert context.sessions._idle is not None
    assert checkpoint.generate_ids(ids, context, 12, graph="on").tokens == expected


@pytest.mark.usefixtures("tapes")
@pytest.mark.parametrize(("allowed", "recorded"), [(2 * RECORD_AFTER, False), (40, True)])
def test_on_a_gpu_short_answers_are_not_worth_a_recording(
    allowed: int, recorded: bool, monkeypatch: pytest.MonkeyPatch
):
    model = wrapped()
    context = model.prefill(random_ids(1, PROMPT, seed=0))
    expected = model.generate_ids([5, 6], context, allowed, []).tokens
    open_ = generation.Session.open

    def as_on_a_gpu(self: Any, model: Any, more: int, mask: Any, graph: str) -> Any:
        return open_(self, model, more, mask, "off" if graph == "auto" else graph)

    monkeypatch.setattr(generation.Session, "open", as_on_a_gpu)
    answer = model.generate_ids([5, 6], context, allowed, [])
    assert answer.tokens == expected
    assert answer.captured == recorded


# --- wrong requests ------------------------------------------------------------------------------


def test_wrong_requests(checkpoint: CateKVModel, words: str):
    model = wrapped()
    context = model.prefill(random_ids(1, PROMPT, seed=0))
    for options, message in (
        ({"temperature": 0.0}, "temperature"),
        ({"top_k": 0}, "top_k"),
        ({"top_p": 1.5}, "top_p"),
        ({"graph": "yes"}, "auto, on, off"),
        ({"stop": "x"}, "without a tokenizer"),
        ({"stream": print}, "without a tokenizer"),
        ({"stop": ""}, "stop string is empty"),
    ):
        with pytest.raises(UserError, match=message):
            model.generate_ids([5], context, 4, **options)
    with pytest.raises(UserError, match="without a tokenizer"):
        model.generate_stream([5], context)
    text = checkpoint.prefill(words)
    for own in ({"seed": 3}, {"stop": "x"}, {"stream": print}):
        with pytest.raises(UserError, match="num_beams"):
            checkpoint.generate(words[:30], context=text, num_beams=2, **own)
    with pytest.raises(UserError, match="temperature"):
        checkpoint.generate_stream(words[:30], text, temperature=0)


def test_transformers_own_sampling_still_takes_the_same_names(checkpoint: CateKVModel, words: str):
    context = checkpoint.prefill(words)
    torch.manual_seed(5)
    several = checkpoint.generate(
        words[:30], context, 6, temperature=1.5, do_sample=True, num_return_sequences=2
    )
    torch.manual_seed(5)
    assert several == checkpoint.generate(
        words[:30], context, 6, temperature=1.5, do_sample=True, num_return_sequences=2
    )
    assert len(several) == 2


def test_arguments_in_the_wrong_order_are_named() -> None:
    model = CateKVModel(tiny_model("llama"), method="full")
    context = model.prefill(list(range(3, 20)))
    for call in (
        lambda: model.generate_ids(context, [5, 6], 3),
        lambda: model.extend([5, 6], context),
    ):
        with pytest.raises(UserError, match="the context is a list; give what prefill"):
            call()
