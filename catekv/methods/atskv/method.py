"""ATSKV: a predictor says which tokens matter; the others wait in host memory until asked for."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor

from catekv.errors import NeedsAllHeadsError, UserError
from catekv.kernels.ragged import RaggedPrefix
from catekv.methods.atskv import control as control
from catekv.methods.atskv.lsh import random_projection
from catekv.methods.atskv.passive import PassivePlace
from catekv.methods.atskv.relevance import RelevancePredictor, queries_that_see
from catekv.methods.atskv.source import PREDICTOR_OPTIONS, PredictorSource
from catekv.methods.atskv.store import TierRules, TierState, TierStore
from catekv.methods.atskv.tiers import TwoTiers
from catekv.methods.base import Method, Needs, Observed, Selection
from catekv.methods.example import WHOLE, Example, MemoryFormula
from catekv.methods.options import assign, method_option
from catekv.methods.registry import register
from catekv.models.shape import ModelShape

SELECTIONS = ("quantile", "top")
HYSTERESES = ("absolute", "quantile")
PASSIVE_TIERS = ("host", "file", "drop")
DEFAULT_QUANTILE, DEFAULT_BETA = 0.7, 1.0


_EXAMPLE = {
    "untrained": True,
    "predictor_width": 5,
    "feature_dim": 16,
    "lsh_bits": 2,
    "fetch": 3,
    "update_every": 2,
    "init_tokens": 2,
    "recent_tokens": 4,
}


@register
@dataclass(frozen=True)
class ATSKV(Method):
    """Predict every token's relevance in every layer; relevant tokens stay active on the device,
    the others become passive in host memory and are fetched when a query looks for them.

    All heads of a layer share one mask. Quantiles have the paper's direction (a level q keeps the
    share 1 - q; more memory pressure means a higher level); the released code has it the other way
    round, and its published numbers are not measurements. The method works on the prompt; generated
    tokens are always active. See :class:`catekv.methods.atskv.store.TierStore` for decoding.

    Args:
        predictor: folder of trained predictors (:mod:`catekv.methods.atskv.files`).
        untrained: use random weights where ``predictor`` is None; says nothing about quality.
        budget: active tokens per head that memory is meant for; a prompt of at most so many is kept
            whole, for good. None: no limit, the level stays as it is.
        selection: ``quantile`` keeps what exceeds the threshold, and the edges; the number follows
            from the scores. ``top`` (recommended) keeps exactly ``budget`` tokens, edges included,
            or without a budget the share ``1 - quantile``.
        quantile: level q at the start (default 0.7, an initial sparsity of 0.7), or that of the
            predictor's file per layer.
        q_min, q_max: range of the level; with a budget it moves by ``1 - smoothing`` towards
            ``q_min + (q_max - q_min) * min(1, active / budget)`` at every update.
        beta: factor of the threshold (default 1, or the file's). Not 1: q is no share any more.
        momentum: lambda of the soft mask.
        smoothing: inertia of the level.
        init_tokens, recent_tokens: first and last prompt tokens that are always active; 0 = none.
        promote_above, demote_below: relevance at which tokens change tiers, strictly.
        hysteresis: ``absolute`` compares relevance itself with these two, as published;
            ``quantile`` (recommended) takes them as levels of the prompt's own relevance when it
            was compressed: a predictor that says 0.8 to nobody then promotes all the same, and one
            that says less than 0.2 to most does not empty the active tier.
        update_every: tokens between two updates of relevance and tiers; 0 = the tiers stay.
        lsh_bits, fetch: hash bits, and passive entries fetched per KV head and step (0 = none).
            With 16 bits hardly a key shares its query's bucket; recommended: 4 and 16.
        passive: ``host`` memory, memory-mapped ``file``, or ``drop``: what is not active is gone
            for good.
        passive_folder: of the mapped files; default: where temporary files go.
        passive_mib: MiB for passive entries over all layers, an equal share each; what does not
            fit is an error that loses nothing. None: no limit.
        seed: of the projections and of untrained predictors.
        predictor_kind, predictor_width, feature_dim, attention_feature, causal_normalised: what an
            untrained predictor is like
            (:class:`~catekv.methods.atskv.relevance.PredictorConfig`); None: what the
            file says, or ``mlp``, 32, 64, ``vector`` and True.
    """

    name: ClassVar[str] = "atskv"
    paper: ClassVar[str] = (
        "Adaptive Token-Relevance Sparse KV-Cache for Efficient Long Context Understanding"
    )
    effect: ClassVar[str] = "moves"
    example = Example({"quantile": 0.5, **_EXAMPLE}, {"budget": WHOLE, **_EXAMPLE}, exact=False)
    memory_formula = MemoryFormula(
        "T - floor(quantile*T)",
        "T*e + fetch*e + 12*kept + 16*(T-kept) + 4*T*(predictor_width + Q + H + 1)/H",
        "kept + fetch",
        "4*(kept + fetch)",
    )
    recommended: ClassVar[dict[str, Any]] = {
        "selection": "top",
        "hysteresis": "quantile",
        "lsh_bits": 4,
        "fetch": 16,
    }

    predictor: str | None = None
    untrained: bool = False
    budget: int | None = None
    selection: str = method_option("quantile", words=SELECTIONS)
    quantile: float | None = method_option(None, least=0, most=1)
    q_min: float = method_option(0.5, least=0, most=1)
    q_max: float = method_option(0.9, least=0, most=1)
    beta: float | None = method_option(None, least=0)
    momentum: float = method_option(0.8, least=0, most=1)
    smoothing: float = method_option(0.9, least=0, most=1)
    init_tokens: int = method_option(4, least=0)
    recent_tokens: int = method_option(32, least=0)
    promote_above: float = method_option(0.8, least=0, most=1)
    demote_below: float = method_option(0.2, least=0, most=1)
    hysteresis: str = method_option("absolute", words=HYSTERESES)
    update_every: int = method_option(16, least=0)
    lsh_bits: int = method_option(16, least=1, most=62)
    fetch: int = method_option(5, least=0)
    passive: str = method_option("host", words=PASSIVE_TIERS)
    passive_folder: str | None = None
    passive_mib: float | None = method_option(None, least=0)
    seed: int = method_option(0, least=0)
    predictor_kind: str | None = None
    predictor_width: int | None = None
    feature_dim: int | None = None
    attention_feature: str | None = None
    causal_normalised: bool | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.predictor is None and not self.untrained:
            raise UserError(
                "atskv needs a trained relevance predictor: atskv:predictor=FOLDER; "
                "atskv:untrained=true runs with random weights, whose results mean nothing"
            )
        if self.predictor is not None and self.untrained:
            raise UserError("atskv: pass predictor or untrained=True, not both")
        self._check_together()
        assign(self, **self.source.options)

    def _check_together(self) -> None:
        for low, high in (("q_min", "q_max"), ("demote_below", "promote_above")):
            if getattr(self, low) > getattr(self, high):
                raise UserError(
                    f"atskv: {low} {getattr(self, low)} is above {high} {getattr(self, high)}"
                )
        if self.passive_folder is not None and self.passive != "file":
            raise UserError("atskv: passive_folder is for passive=file")
        edges = self.init_tokens + self.recent_tokens
        if self.budget is not None and self.budget < max(1, edges):
            raise UserError(
                f"atskv: budget {self.budget} is smaller than the {edges} tokens that are always "
                f"active ({self.init_tokens} initial + {self.recent_tokens} recent), or than 1"
            )

    @cached_property
    def source(self) -> PredictorSource:
        """Where the predictors come from."""
        given = {option: getattr(self, option) for option in PREDICTOR_OPTIONS}
        return PredictorSource.open(self.predictor, given, self.seed)

    def layer_predictor(self, observed: Observed) -> RelevancePredictor:
        """The predictor of a layer, on the device of its keys."""
        assert observed.hidden_states is not None
        sizes = (observed.hidden_states.shape[-1], observed.queries.shape[1])
        device = observed.keys.device
        return self.source.layer(observed.layer, observed.num_layers, sizes, device)

    @property
    def needs(self) -> Needs:
        return Needs(column_sums=True, hidden_states=True)

    def validate(self, shape: ModelShape) -> None:
        self.source.check(shape.layers, shape.query_heads)

    def validate_model(self, model_hash: str) -> None:
        self.source.check_model(model_hash)

    def threshold_numbers(self, layer: int) -> tuple[float, float]:
        """Level at the start and beta of one layer: the options, else the file's, else defaults."""
        level, beta = self.source.thresholds(layer)
        level = level if self.quantile is None else self.quantile
        beta = beta if self.beta is None else self.beta
        return (
            DEFAULT_QUANTILE if level is None else level,
            DEFAULT_BETA if beta is None else beta,
        )

    def kept_tokens(self, tokens: int, layer: int) -> int:
        """Active tokens of a prompt under ``selection="top"``."""
        if self.budget is not None:
            return min(tokens, self.budget)
        share = tokens - int(self.threshold_numbers(layer)[0] * tokens + 1e-9)
        return min(tokens, max(share, self.init_tokens + self.recent_tokens))

    def budget_table(self, tokens: int, shape: ModelShape) -> Tensor:
        if self.selection != "top":
            return super().budget_table(tokens, shape)
        kept = torch.tensor([self.kept_tokens(tokens, layer) for layer in range(shape.layers)])
        return kept[:, None].expand(-1, shape.kv_heads).clone()

    def with_total(self, total: int, tokens: int, shape: ModelShape) -> ATSKV:
        """The method with ``total`` active entries over all heads, rounded down to whole tokens of
        a head: all heads share one mask."""
        return replace(self, budget=total // (shape.layers * shape.kv_heads), selection="top")

    def for_heads(self, heads: slice) -> ATSKV:
        raise NeedsAllHeadsError(
            "atskv has one mask for all heads of a layer, and no process of a tensor-parallel "
            "group has them all; use one process"
        )

    def edges(self, tokens: int, device: torch.device) -> Tensor:
        """The tokens that are always active: bool [tokens]."""
        place = torch.arange(tokens, device=device)
        return (place < self.init_tokens) | (place >= tokens - self.recent_tokens)

    def prefill_level(self, tokens: int, layer: int) -> float:
        """Quantile level of a prompt: the start level, one step on under the prompt's pressure."""
        level = self.threshold_numbers(layer)[0]
        if self.budget is None:
            return level
        target = control.quantile_level(tokens / self.budget, self.q_min, self.q_max)
        return control.smoothed_level(level, target, self.smoothing)

    def relevance(self, observed: Observed) -> tuple[Tensor, Tensor, Tensor]:
        """Relevance of a prompt without padding.

        Returns:
            Relevance [batch, tokens], the predictor's static part [batch, tokens, width], and what
            column sums are divided by [tokens].
        """
        hidden, sums = observed.hidden_states, observed.column_sums
        assert hidden is not None
        assert sums is not None
        predictor = self.layer_predictor(observed)
        tokens = hidden.shape[1]
        observers = queries_that_see(tokens, hidden.device)
        if not self.causal_normalised:
            observers = torch.full_like(observers, float(tokens))
        static = predictor.static_part(hidden, observed.layer)
        return predictor.from_static(static, sums, observers), static, observers

    def active_mask(self, relevance: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        """Soft-mask start and active tokens, bool [batch, tokens] each (the latter with edges)."""
        tokens = relevance.shape[-1]
        if self.budget is not None and tokens <= self.budget:
            whole = torch.ones_like(relevance, dtype=torch.bool)
            return whole, whole
        edges = self.edges(tokens, relevance.device)
        if self.selection == "top":
            count = self.kept_tokens(tokens, layer)
            chosen = torch.stack([control.best_with(row, edges, count) for row in relevance])
            return chosen, chosen
        level, beta = self.prefill_level(tokens, layer), self.threshold_numbers(layer)[1]
        chosen = control.relevance_mask(relevance, level, beta)
        return chosen, chosen | edges

    def select_observed(self, observed: Observed) -> Selection:
        relevance, static, observers = self.relevance(observed)
        active = self.active_mask(relevance, observed.layer)[1]
        return Selection(
            active[:, None].expand(observed.keys.shape[:3]).clone(),
            # the tiers go on from what was computed here
            memo=tuple((*pair, observers) for pair in zip(relevance, static, strict=True)),
        )

    @property
    def own_store(self) -> bool:
        return self.passive != "drop"

    def decode_store(
        self, prefix: RaggedPrefix, observed: Observed, valid: Tensor | None, selection: Selection
    ) -> TierStore | None:
        keys = observed.keys
        batch, kv_heads, tokens, dim = keys.shape
        if valid is None:
            valid = torch.ones(batch, tokens, dtype=torch.bool, device=keys.device)
        lengths = valid.sum(dim=-1).tolist()
        if self.passive == "drop" or (self.budget is not None and max(lengths) <= self.budget):
            return None
        assert observed.column_sums is not None
        assert selection.memo is not None
        state = TierState(
            static=keys.new_zeros(batch, tokens, self._width(), dtype=torch.float32),
            sums=observed.column_sums.detach().float().clone(),
            observers=keys.new_ones(batch, kv_heads, tokens, dtype=torch.float32),
            soft=keys.new_zeros(batch, tokens, dtype=torch.float32),
            valid=valid,
            fixed=torch.zeros_like(valid),
            levels=tuple(self.prefill_level(length, observed.layer) for length in lengths),
            limits=tuple(
                self.kept_tokens(length, observed.layer) if self.selection == "top" else None
                for length in lengths
            ),
            changes=(),
        )
        active = torch.zeros_like(valid)
        changes = []
        for b in range(batch):
            columns = valid[b].nonzero().squeeze(-1)
            relevance, static, observers = selection.memo[b]
            changes.append(self.change_thresholds(relevance))
            soft, chosen = self.active_mask(relevance[None], observed.layer)
            state.static[b, columns], state.soft[b, columns] = static, soft[0].float()
            state.observers[b][:, columns] = observers
            active[b, columns] = chosen[0]
            whole = self.budget is not None and lengths[b] <= self.budget
            state.fixed[b, columns] = whole | self.edges(lengths[b], keys.device)
        projection = random_projection(self.lsh_bits, dim, self.seed, observed.layer)
        tiers = TwoTiers.split(
            keys, observed.values, active, valid, projection, self.fetch, self._place(observed)
        )
        return TierStore(
            tiers,
            replace(state, changes=tuple(changes)),
            self.layer_predictor(observed),
            self._rules(observed.layer),
        )

    def change_thresholds(self, relevance: Tensor) -> tuple[float, float]:
        """Relevance below which tokens of a prompt leave the active tier and above which they come
        back, from the prompt's relevance [tokens] when it is compressed."""
        if self.hysteresis == "absolute":
            return self.demote_below, self.promote_above
        return (
            float(control.threshold(relevance, self.demote_below)),
            float(control.threshold(relevance, self.promote_above)),
        )

    def _place(self, observed: Observed) -> PassivePlace:
        limit = None
        if self.passive_mib is not None:
            limit = int(self.passive_mib * 2**20 / observed.num_layers)
        if self.passive == "host":
            return PassivePlace(None, limit)
        return PassivePlace(self.passive_folder or tempfile.gettempdir(), limit)

    def _width(self) -> int:
        assert self.predictor_width is not None
        return self.predictor_width if self.predictor_kind == "mlp" else 1

    def _rules(self, layer: int) -> TierRules:
        return TierRules(
            self.q_min,
            self.q_max,
            self.threshold_numbers(layer)[1],
            self.momentum,
            self.smoothing,
            self.update_every,
            self.budget,
            self.selection == "top",
        )
