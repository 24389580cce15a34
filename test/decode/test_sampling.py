"""Which tokens may be drawn, how often they are, and that a seed says which."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from catekv.decode.sampling import Greedy, Sampler, Sampling
from catekv.errors import UserError


def random_logits(batch: int = 4, vocabulary: int = 50, seed: int = 0) -> Tensor:
    return 3 * torch.randn(batch, vocabulary, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5])
@pytest.mark.parametrize("top_k", [None, 1, 7, 50, 500])
@pytest.mark.parametrize("top_p", [None, 0.05, 0.6, 0.95, 1.0])
def test_only_likely_tokens_are_left_and_all_that_are_equally_likely(
    temperature: float, top_k: int | None, top_p: float | None
):
    logits = random_logits()
    # equal logits at the border of top-k
    logits[:, 10:14] = logits[:, 10:11]
    found = Sampling(temperature, top_k, top_p).filter(logits)
    scores = logits / temperature
    if top_k is not None:
        least = scores.sort(descending=True).values[:, min(top_k, 50) - 1, None]
        scores = scores.where(scores >= least, -torch.inf)
    if top_p is not None:
        # from the least likely token on: those within the mass that may be missing go
        ordered, order = scores.sort(dim=-1)
        missing = ordered.softmax(dim=-1).cumsum(dim=-1) <= 1 - top_p
        missing[:, -1] = False
        scores = scores.masked_fill(missing.scatter(1, order, missing), -torch.inf)
    assert torch.equal(found, scores)


def test_frequencies_are_the_probabilities():
    logits = random_logits(1, 6)
    sampling = Sampling(temperature=1.5, top_k=4, seed=3)
    rows, most = 200, 100
    draws = rows * most
    sampler = Sampler(sampling, range(rows), most, torch.device("cpu"))
    counts = torch.zeros(6)
    for index in range(most):
        counts += sampler(logits.expand(rows, -1), index)[:, 0].bincount(minlength=6)
    expected = sampling.filter(logits).softmax(dim=-1)[0]
    assert torch.equal(counts == 0, expected == 0)
    # five standard deviations of a binomial share
    allowed = 5 * (expected * (1 - expected) / draws).sqrt()
    assert bool(((counts / draws - expected).abs() <= allowed + 1e-9).all())


def drawn(batch: int, most: int, seed: int | None = 11) -> Tensor:
    sampler = Sampler(Sampling(seed=seed), range(batch), most, torch.device("cpu"))
    logits = random_logits(1).expand(batch, -1)
    return torch.cat([sampler(logits, index) for index in range(most)], dim=1)


def test_a_sequence_draws_the_same_whatever_stands_beside_it():
    """Batch size and allowance do not matter; sequences and seeds differ from each other."""
    alone = drawn(1, 40)
    assert torch.equal(drawn(3, 40)[:1], alone)
    assert torch.equal(drawn(1, 60)[:, :40], alone)
    assert torch.equal(drawn(1, 40), alone)
    assert len({tuple(row) for row in drawn(3, 40).tolist()}) == 3
    assert not torch.equal(drawn(1, 40, seed=12), alone)


def test_a_sequence_may_have_a_seed_of_its_own():
    def own(seeds, sequences):
        sampler = Sampler(Sampling(seed=seeds), sequences, 9, torch.device("cpu"))
        return [sampler.numbers[row].tolist() for row in range(len(sequences))]

    first, second = own((5, 7), range(2))
    assert [second, first, first] == own((7, 5, 5), range(3))
    assert own((5, 7), [1]) == [second]
    with pytest.raises(UserError, match="2 seeds are too few for sequence 2"):
        own((5, 7), range(3))


def test_without_a_seed_torch_decides():
    torch.manual_seed(4)
    first = drawn(2, 20, seed=None)
    other = drawn(2, 20, seed=None)
    torch.manual_seed(4)
    assert torch.equal(drawn(2, 20, seed=None), first)
    assert not torch.equal(other, first)


def test_extreme_random_numbers_never_choose_an_impossible_token():
    logits = torch.full((2, 8), -torch.inf)
    logits[:, 2] = logits[:, 5] = 0.0
    sampler = Sampler(Sampling(seed=0), range(2), 1, torch.device("cpu"))
    sampler.numbers = torch.tensor([[0.0], [1.0]], dtype=torch.float64)
    assert sampler(logits, 0).tolist() == [[2], [5]]


def test_half_precision_is_drawn_from_in_float32():
    logits = random_logits().bfloat16()
    assert Sampling(temperature=0.7).filter(logits).dtype == torch.float32


def test_greedy_takes_the_likeliest():
    logits = random_logits()
    assert torch.equal(Greedy()(logits, 0)[:, 0], logits.argmax(dim=-1))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0.0}, "temperature 0.0 must be above 0"),
        ({"temperature": 1e-320}, "at least 1e-06"),
        ({"temperature": -1.0}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"temperature": float("inf")}, "temperature"),
        ({"top_k": 0}, "top_k 0 must be at least 1"),
        ({"top_p": 0.0}, "top_p 0.0 must be above 0"),
        ({"top_p": 1.01}, "top_p 1.01"),
        ({"seed": -1}, "seed -1"),
        ({"seed": 1 << 63}, "seed"),
    ],
)
def test_options_outside_of_their_range(options: dict[str, float], message: str):
    with pytest.raises(UserError, match=message):
        Sampling(**options)  # type: ignore[arg-type]
