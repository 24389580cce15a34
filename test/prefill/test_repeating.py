"""Prompts that a model repeats behind themselves; what layers note is tested with the methods."""

from __future__ import annotations

import pytest
import ruler_tokenizers
import torch
from scenarios import random_ids
from tiny_models import tiny_model

from catekv import CateKVModel, methods
from catekv.cache.cache import RaggedCache
from catekv.decode.repeat_wording import repeat_wording
from catekv.errors import UserError
from catekv.methods import Needs
from catekv.methods.formulas.repeat import Repeat
from catekv.prefill import layerwise
from catekv.prefill.repeating import Part, Wording, parts_of

WORDING = Wording((90, 91), (92,), (1, 2, 3), (94, 95))


def test_a_prompt_is_repeated_in_chunks_with_words_around() -> None:
    way, plain = Repeat(chunk=10, sinks=2), tuple(range(20, 45))
    system, parts = parts_of(plain, way, WORDING)
    assert system == 2
    assert parts == [
        Part(2, 12, (90, 91, *plain[2:12])),
        Part(12, 22, (92, *plain[4:12], *plain[12:22])),
        Part(22, 25, (92, *plain[14:22], *plain[22:])),
    ]
    assert parts_of(plain, way, Wording()) == (
        2,
        [Part(p.start, p.stop, plain[p.start : p.stop]) for p in parts],
    )
    # what a template writes before the text is not repeated; its last token may be another one
    for opening in ((1, 2, 3), (1, 2, 7)):
        system, parts = parts_of((*opening, 8, 9), way, WORDING)
        assert (system, parts[0].ids[2:4]) == (
            opening.index(opening[-1]) + (opening[2] == 3),
            (94, 95),
        )
    assert parts_of((5,), way, WORDING) == (1, [])
    assert max(len(part.ids) for part in parts_of(plain, way, WORDING)[1]) <= WORDING.longest(
        25, way
    )


def test_words_come_from_the_tokenizer_and_its_template() -> None:
    tokenizer = ruler_tokenizers.chat()
    wording = repeat_wording(tokenizer)
    assert "once more" in tokenizer.decode(wording.first)
    assert wording.opening
    assert wording.end
    assert repeat_wording(None) == Wording()


@pytest.mark.parametrize("family", ["gemma3", "llama"])
def test_rows_of_a_batch_are_repeated_as_alone_and_nothing_stays(family: str) -> None:
    """In models with sliding windows too, in chunks of a layer and at once."""
    model = CateKVModel(tiny_model(family))
    texts = random_ids(3, 60, seed=3).tolist()
    prompts = [texts[0][:41], texts[1], texts[2][:22]]
    way = Repeat(chunk=16, sinks=2, plus=True)
    needs = Needs(window=4, output_projection=True, repeats=(way,))

    def observed(prompt, chunk_size=None):
        return model.observe(prompt, needs=needs, chunk_size=chunk_size)

    together = observed(prompts)
    plain = model.observe(prompts, needs=Needs(window=4))
    for index in (layer.index for layer in together.cache.ragged_layers):
        whole = together.observed(index)
        assert torch.equal(whole.keys, plain.observed(index).keys)
        assert torch.equal(whole.queries, plain.observed(index).queries)
        for b, prompt in enumerate(prompts):
            for chunk_size in (None, 11):
                alone = observed([prompt], chunk_size).observed(index).repeat_scores[way]
                torch.testing.assert_close(
                    whole.repeat_scores[way][b : b + 1, :, -len(prompt) :],
                    alone,
                    rtol=1e-4,
                    atol=1e-5,
                )
    method = methods.create("kvzip", budget=10, chunk=16, sinks=2, plus=True)
    direct = model.prefill(prompts, method=method)
    later = together.compress(method)
    assert all(map(torch.equal, direct.lengths(), later.lengths()))
    question = [[5, 6]] * 3
    rows = model.generate_ids(question, direct, 5, []).rows
    assert rows == model.generate_ids(question, later, 5, []).rows


def test_ways_that_repeat_the_same_share_a_forward(monkeypatch: pytest.MonkeyPatch) -> None:
    model = CateKVModel(tiny_model("llama"))
    texts = random_ids(2, 40, seed=5).tolist()
    prompts = [texts[0], texts[1][:23]]
    ways = [Repeat(16, 2, plus=True), Repeat(16, 2), Repeat(16, 3), Repeat(40, 2, plus=True)]
    fed = []
    feed = layerwise.feed

    def counting(model, ids, cache, mask=None):
        fed.append(ids.shape[1])
        return feed(model, ids, cache, mask)

    monkeypatch.setattr(layerwise, "feed", counting)

    def observed(*ways: Repeat) -> list[dict[Repeat, torch.Tensor]]:
        needs = Needs(window=4, output_projection=True, repeats=ways)
        found = model.observe(prompts, needs=needs)
        return [found.observed(layer.index).repeat_scores for layer in found.cache.ragged_layers]

    together = observed(*ways)
    # three parts of 38 tokens, three of 37, one of 38
    assert fed == [16, 16, 6, 16, 16, 5, 38]
    for way in ways:
        for whole, alone in zip(together, observed(way), strict=True):
            assert torch.equal(whole[way], alone[way])


def test_a_prompt_without_room_for_its_repetition_is_refused() -> None:
    model = CateKVModel(tiny_model("llama", max_position_embeddings=64))
    with pytest.raises(UserError, match="40 tokens leaves no room for its repetition of up to 40"):
        model.prefill(random_ids(1, 40, seed=0), method="kvzip")
    model.prefill(random_ids(1, 40, seed=0), method=methods.create("kvzip", chunk=24))


def test_a_cache_that_is_fed_by_others_has_nobody_to_repeat_its_prompt() -> None:
    model = tiny_model("llama")
    cache = RaggedCache(model.config, methods.create("kvzip"), 20)
    ids = random_ids(1, 20, seed=0)
    with torch.no_grad():
        model(ids, past_key_values=cache, use_cache=True)
    with pytest.raises(UserError, match="the model repeating its prompt"):
        cache.compress()
    cache = RaggedCache(model.config, methods.create("kvzip", budget=10), 20)
    layerwise.prefill(model, ids, cache)
    assert sum(int(lengths.sum()) for lengths in cache.lengths()) == 3 * 4 * 10
