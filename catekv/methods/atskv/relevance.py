"""Token relevance as ATSKV predicts it: features of a token and the predictors that read them.

Everything is float32 and per layer: all heads of a layer share one relevance. The predictor's input
is ``[h; a; f]``: the hidden state that the layer's attention read, the attention feature and the
handcrafted features (ATSKV, section "token relevance").
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from catekv.errors import UserError
from catekv.methods.options import check_options, method_option

KINDS = ("mlp", "linear")
ATTENTION_FEATURES = ("vector", "scalar")
#: Tokens whose hidden states are turned into float32 at once: 64 MiB at a hidden size of 4096.
BLOCK_TOKENS = 4096
#: Token ids below this are special tokens of every tokenizer that ATSKV was written for.
SPECIAL_TOKENS = 5


@dataclass(frozen=True)
class PredictorConfig:
    """What a predictor expects; stored beside its weights.

    Args:
        hidden_size, query_heads: of the model.
        kind: ``mlp`` (two layers) or ``linear``.
        width: d_r, hidden units of the two-layer form.
        feature_dim: F, handcrafted features per token; a multiple of 4, at least 16.
        attention_feature: ``vector`` (one number per query head) or ``scalar`` (their mean).
        causal_normalised: divide the attention a token received by the number of queries that can
            see it, instead of by the number of tokens (the paper), which favours early tokens.
    """

    hidden_size: int
    query_heads: int
    kind: str = method_option("mlp", words=KINDS)
    width: int = method_option(32, least=1)
    feature_dim: int = method_option(64, least=16)
    attention_feature: str = method_option("vector", words=ATTENTION_FEATURES)
    causal_normalised: bool = True

    def __post_init__(self) -> None:
        check_options("predictor", self)
        if self.feature_dim % 4:
            raise UserError(
                f"feature_dim {self.feature_dim} must be a multiple of 4 and at least 16"
            )

    @property
    def attention_size(self) -> int:
        return self.query_heads if self.attention_feature == "vector" else 1

    @property
    def inputs(self) -> int:
        """d_i: numbers per token that the predictor reads."""
        return self.hidden_size + self.attention_size + self.feature_dim

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def queries_that_see(tokens: int, device: torch.device | None = None) -> Tensor:
    """How many queries of a causal prompt see each key: float32 [tokens]."""
    return torch.arange(tokens, 0, -1, dtype=torch.float32, device=device)


def attention_feature(
    column_sums: Tensor, observers: Tensor | float, kind: str = "vector"
) -> Tensor:
    """Mean attention that every token received.

    Args:
        column_sums: [batch, query_heads, tokens], attention received, summed over the queries.
        observers: what the sums are divided by, broadcast to their shape: the number of tokens
            (the paper) or :func:`queries_that_see`.
        kind: ``vector`` or ``scalar``.

    Returns:
        float32 [batch, tokens, query_heads], or [batch, tokens, 1] for ``scalar``.
    """
    received = (column_sums.float() / observers).transpose(1, 2)
    return received.mean(dim=-1, keepdim=True) if kind == "scalar" else received


def attention_label(column_sums: Tensor) -> Tensor:
    """What a predictor is trained to say: attention received from all heads and queries, divided by
    the prompt's largest; float32 [batch, tokens]."""
    received = column_sums.float().sum(dim=1)
    return received / received.amax(dim=-1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)


def handcrafted_features(
    norms: Tensor,
    layer: int,
    feature_dim: int = 64,
    token_ids: Tensor | None = None,
    token_types: Tensor | None = None,
    positions: Tensor | None = None,
    length: int | None = None,
    max_norms: Tensor | None = None,
) -> Tensor:
    """Handcrafted features: float32 [batch, tokens, feature_dim].

    The first quarter holds ``token_types`` (an embedding, if there is one); from there on: position
    over length, whether the token is a special one, norm over the largest norm, layer over 100.

    Args:
        norms: [batch, tokens], norms of the hidden states.
        layer: index of the layer.
        token_ids: int [batch, tokens]; None: no token counts as special.
        token_types: [batch, tokens, feature_dim // 4]; None: zeros.
        positions: [tokens]; None: 0, 1, ... ; ``length`` and ``max_norms`` [batch, 1] belong to the
            whole prompt where only a part of it is given.
    """
    tokens = norms.shape[-1]
    quarter = feature_dim // 4
    features = norms.new_zeros(*norms.shape, feature_dim, dtype=torch.float32)
    if token_types is not None:
        features[..., :quarter] = token_types
    if positions is None:
        positions = torch.arange(tokens, device=norms.device)
    largest = norms.amax(dim=-1, keepdim=True) if max_norms is None else max_norms
    features[..., quarter] = positions / (tokens if length is None else length)
    if token_ids is not None:
        features[..., quarter + 1] = token_ids < SPECIAL_TOKENS
    features[..., quarter + 2] = norms / largest.clamp(min=torch.finfo(torch.float32).tiny)
    features[..., quarter + 3] = layer / 100
    return features


def predictor_inputs(
    hidden_states: Tensor,
    column_sums: Tensor,
    observers: Tensor | float,
    layer: int,
    config: PredictorConfig,
) -> Tensor:
    """``[h; a; f]`` of a whole prompt, as training reads it: float32 [batch, tokens, inputs].

    Args:
        hidden_states: [batch, tokens, hidden_size]; column_sums [batch, query_heads, tokens] and
            observers as in :func:`attention_feature`.
    """
    hidden = hidden_states.float()
    attention = attention_feature(column_sums, observers, config.attention_feature)
    handcrafted = handcrafted_features(hidden.norm(dim=-1), layer, config.feature_dim)
    return torch.cat([hidden, attention, handcrafted], dim=-1)


class RelevancePredictor(nn.Module):
    """Relevance in (0, 1) of a layer's tokens from ``[h; a; f]``.

    ``mlp``: ``sigmoid(W2 relu(W1 x + b1) + b2)``; ``linear``: ``sigmoid(w x + b)``.
    """

    def __init__(self, config: PredictorConfig):
        super().__init__()
        self.config = config
        two_layers = config.kind == "mlp"
        self.inner = nn.Linear(config.inputs, config.width if two_layers else 1)
        self.outer = nn.Linear(config.width, 1) if two_layers else None

    def forward(self, inputs: Tensor) -> Tensor:
        """Relevance [batch, tokens] of inputs [batch, tokens, hidden_size + attention + F]."""
        return self.relevance(self.inner(inputs))

    def relevance(self, inner: Tensor) -> Tensor:
        """Relevance [batch, tokens] from what the first layer says [batch, tokens, width]."""
        if self.outer is not None:
            inner = self.outer(inner.relu())
        return inner.squeeze(-1).sigmoid()

    @torch.no_grad()
    def static_part(self, hidden_states: Tensor, layer: int) -> Tensor:
        """What hidden states and handcrafted features add to the first layer, bias included: these
        never change, so that the relevance can follow the attention without the hidden states.

        Args:
            hidden_states: [batch, tokens, hidden_size], a whole prompt without padding.
            layer: index of the layer.

        Returns:
            float32 [batch, tokens, width].
        """
        if hidden_states.shape[-1] != self.config.hidden_size:
            raise UserError(
                f"the relevance predictor was made for a hidden size of {self.config.hidden_size} "
                f"but the model's is {hidden_states.shape[-1]}; use one trained for this model"
            )
        batch, tokens, hidden = hidden_states.shape
        weight, size = self.inner.weight, self.config.attention_size
        device = hidden_states.device
        static = torch.empty(batch, tokens, weight.shape[0], device=device)
        norms = torch.empty(batch, tokens, device=device)
        blocks = [slice(i, min(i + BLOCK_TOKENS, tokens)) for i in range(0, tokens, BLOCK_TOKENS)]
        for block in blocks:
            part = hidden_states[:, block].float()
            norms[:, block] = part.norm(dim=-1)
            static[:, block] = part @ weight[:, :hidden].T + self.inner.bias
        largest = norms.amax(dim=-1, keepdim=True)
        for block in blocks:
            features = handcrafted_features(
                norms[:, block],
                layer,
                self.config.feature_dim,
                positions=torch.arange(block.start, block.stop, device=device),
                length=tokens,
                max_norms=largest,
            )
            static[:, block] += features @ weight[:, hidden + size :].T
        return static

    @torch.no_grad()
    def from_static(self, static: Tensor, column_sums: Tensor, observers: Tensor) -> Tensor:
        """Relevance float32 [batch, tokens] from :meth:`static_part` and the attention received.

        Args:
            static: [batch, tokens, width].
            column_sums: [batch, query_heads, tokens]; observers as in :func:`attention_feature`.
        """
        config = self.config
        if column_sums.shape[1] != config.query_heads:
            raise UserError(
                f"the relevance predictor was made for {config.query_heads} query heads but the "
                f"layer has {column_sums.shape[1]}; use one trained for this model, without "
                "splitting heads over devices"
            )
        attention = attention_feature(column_sums, observers, config.attention_feature)
        weight = self.inner.weight[:, config.hidden_size :][:, : config.attention_size]
        return self.relevance(static + attention @ weight.T)


def untrained_predictor(config: PredictorConfig, seed: int, layer: int) -> RelevancePredictor:
    """A predictor with reproducible random weights; says nothing about relevance."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed * 10_007 + layer)
        return RelevancePredictor(config).requires_grad_(False)
