"""The method protocol: what a method sees, what it answers, and how it is found by name.

A method is a frozen dataclass. The smallest one implements :meth:`Method.select_observed` for
prompts without padding; batches, left padding and the packing of what is kept are handled here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from catekv import kernels
from catekv.errors import UserError
from catekv.kernels.logits import PLAIN, LogitForm
from catekv.methods.example import Example, MemoryFormula
from catekv.methods.formulas.repeat import Repeat
from catekv.methods.options import RULE, Rule, check_options
from catekv.methods.selection import Selection, joined
from catekv.methods.stores import STORES, stored
from catekv.models.shape import ModelShape

if TYPE_CHECKING:
    from catekv.kernels.ragged import RaggedPrefix
    from catekv.methods.formulas.query_moments import QueryMoments
    from catekv.methods.held import Held
    from catekv.methods.stores.base import DecodeStore
    from catekv.models.rotation import Rotation

#: Prompt lengths whose sizes a method remembers.
_LENGTHS_KNOWN = 64


@dataclass(frozen=True)
class Needs:
    """What prefill must hand to a method.

    Attributes:
        window: number of last prompt queries; 0 means that no query is looked at.
        column_sums: the attention that every key received, summed over all prompt queries. Costs a
            second pass over the attention matrix, block by block.
        hidden_states: the hidden states that the layer's attention read.
        all_layers: the method decides after it has seen all layers, which stay dense until then.
        rotation: the model's rotary angles, because the method turns stored keys.
        output_projection: what the layer's attention multiplies the outputs of its heads with.
        query_moments: mean and covariance of all prompt queries before their rotation.
        attention_inputs: the normalised states that the layer's own projections read.
        repeats: what tokens receive while the model writes the prompt once more, in these ways.
            Each costs a forward over the prompt behind the prompt; all layers stay dense until
            then, so that ``all_layers`` goes with it.
    """

    window: int = 0
    column_sums: bool = False
    hidden_states: bool = False
    all_layers: bool = False
    rotation: bool = False
    output_projection: bool = False
    query_moments: bool = False
    attention_inputs: bool = False
    repeats: tuple[Repeat, ...] = ()

    @staticmethod
    def of_all(methods: Iterable[Method]) -> Needs:
        """What serves all of these methods."""
        needs = [method.needs for method in methods]
        return Needs(
            window=max((one.window for one in needs), default=0),
            column_sums=any(one.column_sums for one in needs),
            hidden_states=any(one.hidden_states for one in needs),
            output_projection=any(one.output_projection for one in needs),
            query_moments=any(one.query_moments for one in needs),
            attention_inputs=any(one.attention_inputs for one in needs),
            repeats=tuple(dict.fromkeys(way for one in needs for way in one.repeats)),
        )

    def missing_from(self, recorded: Needs) -> list[str]:
        """Which of these needs were not recorded, in words."""
        missing = [
            name
            for name in (
                "column_sums", "hidden_states", "output_projection", "query_moments",
                "attention_inputs",
            )
            if getattr(self, name) and not getattr(recorded, name)
        ]  # fmt: skip
        missing += [f"{way}" for way in self.repeats if way not in recorded.repeats]
        if self.window > recorded.window:
            missing.insert(0, f"window={self.window}")
        return missing


@dataclass(frozen=True)
class Observed:
    """One layer of one prompt at the moment of compression, without padding.

    ``queries`` [batch, query_heads, window, head_dim] holds the last prompt queries (at most the
    whole prompt), ``keys`` and ``values`` [batch, kv_heads, tokens, head_dim] the whole prompt;
    queries and keys are post-rotary. ``scaling`` is the factor of the attention logits, ``form``
    what the model does to them before the softmax.

    ``column_sums`` float32 [batch, query_heads, tokens] (causal softmax over all keys, summed over
    all prompt queries), ``hidden_states`` [batch, tokens, hidden_size], ``rotation`` and
    ``output_projection`` [query_heads, head_dim, hidden_size] are there if the method
    :class:`Needs` them, else None; so are ``query_moments`` and ``attention_inputs`` [batch,
    tokens, hidden_size]. ``repeat_scores`` float32 [batch, kv_heads, tokens] are there for each of
    :attr:`Needs.repeats`, infinite for tokens that were not repeated.

    While decoding (:class:`catekv.methods.bounded.Bounded`) the tokens are the entries of some
    heads of one sequence, of which ``held`` knows more; it is None for a prompt.
    """

    queries: Tensor
    keys: Tensor
    values: Tensor
    scaling: float
    layer: int = 0
    num_layers: int = 1
    column_sums: Tensor | None = None
    hidden_states: Tensor | None = None
    rotation: Rotation | None = None
    form: LogitForm = PLAIN
    output_projection: Tensor | None = None
    query_moments: QueryMoments | None = None
    held: Held | None = None
    attention_inputs: Tensor | None = None
    repeat_scores: Mapping[Repeat, Tensor] = field(default_factory=dict)

    @property
    def tokens(self) -> int:
        return self.keys.shape[-2]

    @property
    def group(self) -> int:
        """Query heads per KV head."""
        return self.queries.shape[1] // self.keys.shape[1]

    @property
    def shape(self) -> ModelShape:
        """The numbers of the model that a layer tells."""
        _, heads, _, dim = self.keys.shape
        return ModelShape(self.num_layers, self.queries.shape[1], heads, dim)

    def plain_scaling(self, method: str) -> float:
        """``scaling``, for a method that takes the softmax of scaled products itself; ``UserError``
        where the model's attention is more than that."""
        if not self.form.plain:
            raise UserError(
                f"{method} scores tokens without {self.form}, which this model has; use another "
                "method (catekv, snapkv, adakv and others follow the model)"
            )
        return self.scaling

    def required_rotation(self, method: str) -> Rotation:
        """The rotation, for a method that cannot do without it; ``UserError`` if there is none."""
        if self.rotation is None:
            raise UserError(
                f"{method} rebuilds keys before their rotation and needs the model's rotary "
                "angles; pass Observed(rotation=rotation_of(model, tokens, layer))"
            )
        return self.rotation


@dataclass(frozen=True)
class Method:
    """Base of every method; see the module's first lines for how to write one.

    Args:
        store: where and how what is kept is stored: ``device``, ``offload`` (host memory), or
            quantised on the device: ``int8``, ``fp8``, ``int4``.
        keep: share of a prompt's entries that all heads together keep, instead of the method's own
            sizes (budget, ratio, share); where entries are not freed, the budget of a step.
    """

    name: ClassVar[str] = ""
    paper: ClassVar[str] = ""
    #: what becomes of the entries not kept: ``frees`` (memory and traffic fall), ``moves`` (to host
    #: memory) or ``skips`` (stored, but not read at every step); ``keeps``: there are none
    effect: ClassVar[str] = "frees"
    #: options that say how much is kept, which ``keep`` stands for
    size_options: ClassVar[tuple[str, ...]] = ("budget", "total", "ratio", "streaming_share")
    #: option values that differ from the defaults (the ``published`` preset) in ``recommended``
    recommended: ClassVar[dict[str, Any]] = {}

    #: what documentation and tests show of it (:mod:`catekv.methods.example`)
    example: ClassVar[Example | None] = None
    memory_formula: ClassVar[MemoryFormula | None] = None
    #: how else a method with :attr:`own_store` can take another store, said behind a refusal
    or_without: ClassVar[str] = ""

    store: str = field(default="device", kw_only=True, metadata={RULE: Rule(words=STORES)})
    keep: float | None = field(default=None, kw_only=True, metadata={RULE: Rule(above=0, most=1)})

    def __post_init__(self) -> None:
        """Check the options; a subclass checks after this what concerns several of them."""
        check_options(self.name, self)
        if self.store != "device" and self.own_store:
            raise self._one_store()
        if self.effect == "keeps" and self.keep not in (None, 1):
            raise UserError(f"{self.name} keeps everything; leave keep={self.keep} out")

    @property
    def needs(self) -> Needs:
        return Needs()

    def validate(self, shape: ModelShape) -> None:
        """Raise ``UserError`` if the method cannot serve a model of this shape."""

    def validate_model(self, model_hash: str) -> None:
        """Raise ``UserError`` if what the method has learnt belongs to another model than the one
        whose weights have this identity (a hash of the configuration and of some weights)."""

    def budget_table(self, tokens: int, shape: ModelShape) -> Tensor:
        """Entries kept of a prompt of ``tokens`` tokens, int64 [layers, kv_heads].

        For methods whose budgets do not depend on the prompt's content; others raise
        ``UserError``. Used to give different methods equal memory.
        """
        raise UserError(
            f"method {self.name!r} decides its budgets for every prompt; one that foretells them "
            "defines budget_table(self, tokens, shape)"
        )

    def given_table(self, tokens: int, shape: ModelShape) -> Tensor:
        """:meth:`budget_table`; of methods that move tokens between heads as they see the prompt,
        what they are given to move."""
        return self.budget_table(tokens, shape)

    def step_table(self, tokens: int, shape: ModelShape) -> Tensor:
        """Entries of a prompt of ``tokens`` tokens that a step reads, [layers, kv_heads]; others
        than :meth:`given_table` for methods that read a part of what they keep."""
        return self.given_table(tokens, shape)

    def for_prompt(self, tokens: int, shape: ModelShape) -> Method:
        """The method with the sizes that ``keep`` means for a prompt of ``tokens`` tokens.

        Raises:
            UserError: see :meth:`with_total`.
        """
        if self.keep is None:
            return self
        # every layer asks again
        known: dict[Any, Method] = self.__dict__.setdefault("_for_prompts", {})
        key = (tokens, shape, shape.config_hash)
        found = known.get(key)
        if found is None:
            total = round(self.keep * tokens * shape.layers * shape.kv_heads)
            try:
                found = replace(self, keep=None).with_total(total, tokens, shape)
            except UserError as error:
                raise UserError(f"keep={self.keep:g} of {tokens} tokens: {error}") from error
            if len(known) >= _LENGTHS_KNOWN:
                known.clear()
            known[key] = found
        return found

    def total_kept(self, tokens: int, shape: ModelShape) -> int:
        """Entries that are kept of a prompt, over all layers and KV heads.

        Of methods that move tokens between heads, what they are given to move.

        Raises:
            UserError: the method decides by the prompt's content how many it keeps.
        """
        return int(self.for_prompt(tokens, shape).given_table(tokens, shape).sum())

    def with_total(self, total: int, tokens: int, shape: ModelShape) -> Method:
        """The method keeping ``total`` entries of a prompt of ``tokens`` tokens.

        A method that can do this exactly overrides it. Here a method with a ``budget`` gets the
        largest that keeps no more; one that keeps everything and skips or moves it gets the mean as
        the budget that a step reads.

        Raises:
            UserError: the total does not hold what the method always keeps, or the method has no
                budget to set.
        """
        if self.effect == "keeps":
            return self
        if "budget" not in [item.name for item in fields(self)]:
            raise UserError(
                f"method {self.name!r} has no budget to set, so that it cannot be told how much to "
                "keep or be given the memory of another method; use it with its own options, or "
                "give the class an option budget or with_total(self, total, tokens, shape)"
            )
        heads = shape.layers * shape.kv_heads
        if self.effect != "frees":
            return self._with_budget(max(1, round(total / heads)))
        self.total_kept(tokens, shape)  # refuses methods that decide by the prompt's content
        low, high = 0, tokens + 1  # `low` keeps no more than the total, `high` more
        while high - low > 1:
            middle = (low + high) // 2
            kept = self._kept_with_budget(middle, tokens, shape)
            low, high = (middle, high) if kept is None or kept <= total else (low, middle)
        if self._kept_with_budget(low, tokens, shape) is None:
            raise UserError(
                f"no budget makes method {self.name!r} keep as few as {total} entries of {tokens} "
                f"tokens in {heads} heads; raise the total or lower what it always keeps"
            )
        return self._with_budget(low)

    def _with_budget(self, budget: int) -> Method:
        options: dict[str, Any] = {"budget": budget}
        return replace(self, **options)

    def _kept_with_budget(self, budget: int, tokens: int, shape: ModelShape) -> int | None:
        """Entries kept; None where the method refuses the budget, because it is too small."""
        try:
            return self._with_budget(budget).total_kept(tokens, shape)
        except UserError:
            return None

    @property
    def prefill_attention(self) -> str:
        """How the prompt is attended to while it comes in: ``dense`` or ``minference``."""
        return "dense"

    def scored(self, tokens: int) -> tuple[int, int]:
        """Of a prompt of ``tokens`` tokens how many are scored by the window, and how many scores
        per head are compared."""
        return tokens, tokens

    def for_heads(self, heads: slice) -> Method:
        """The method for some of the model's KV heads (tensor parallelism). Methods with budgets
        per head override this; for all others every head is alike.

        Raises:
            NeedsAllHeadsError: no part of the heads can be decided on without the others.
        """
        return self

    def select_observed(self, observed: Observed) -> Selection:
        """Choose what to keep of one layer. Tensors are unpadded; the batch may exceed 1."""
        raise NotImplementedError  # registering a method checks that it chooses in some way

    def select_layers(self, observed: Sequence[Observed]) -> list[Selection]:
        """Choose what to keep of all layers together, for methods that need ``all_layers``."""
        return [self.select_observed(layer) for layer in observed]

    @property
    def own_store(self) -> bool:
        """Whether :meth:`decode_store` gives one, at some length or layer at least: the option
        ``store`` is refused then, before a prompt is read."""
        return False

    def decode_store(
        self, prefix: RaggedPrefix, observed: Observed, valid: Tensor | None, selection: Selection
    ) -> DecodeStore | None:
        """How the layer goes on after compression; None: the prefix stays what it is.

        Args:
            prefix: what was selected, packed.
            observed: the layer before compression, padding included.
            valid: bool [batch, tokens], False on padding; None: no padding.
            selection: what was selected.
        """
        return None

    def restored_store(
        self,
        prefix: RaggedPrefix,
        observed: Observed,
        tensors: Mapping[str, Tensor],
        state: Mapping[str, Any],
    ) -> DecodeStore:
        """The store that said this of itself (:meth:`DecodeStore.saved`).

        Args:
            prefix: its entries. observed: the layer without its tokens.
        """
        raise UserError(f"method {self.name!r} saves no store")

    def open_store(
        self, prefix: RaggedPrefix, observed: Observed, valid: Tensor | None, selection: Selection
    ) -> DecodeStore | None:
        """:meth:`decode_store`, or where the option ``store`` puts the prefix.

        Raises:
            UserError: a ``store`` for a method that has one of its own.
        """
        own = self.decode_store(prefix, observed, valid, selection)
        if self.store == "device":
            return own
        if own is not None:
            raise self._one_store()
        return stored(self.store, prefix)

    def _one_store(self) -> UserError:
        return UserError(
            f"method {self.name!r} stores the context its own way; use it with store='device'"
            f"{self.or_without}"
        )

    def select(
        self,
        queries: Tensor,
        keys: Tensor,
        values: Tensor,
        layer: int = 0,
        num_layers: int = 1,
        *,
        valid: Tensor | None = None,
        scaling: float | None = None,
        form: LogitForm = PLAIN,
        column_sums: Tensor | None = None,
        hidden_states: Tensor | None = None,
        output_projection: Tensor | None = None,
    ) -> Selection:
        """Choose what to keep of one layer of a whole prompt.

        Args:
            queries: [batch, query_heads, tokens or fewer, head_dim]; the last ones are used.
            keys, values: [batch, kv_heads, tokens, head_dim].
            layer, num_layers: position of the layer, for budgets that depend on depth.
            valid: bool [batch, tokens], False on (left) padding. None: no padding.
            scaling: factor of the logits; default ``head_dim ** -0.5``.
            form: soft cap and sinks of the logits.
            column_sums, hidden_states, output_projection: as in :class:`Observed`. Column sums that
                the method needs and that are not given are computed if ``queries`` covers the whole
                prompt.

        Raises:
            UserError: if shapes do not fit together, or something that the method needs is missing.
        """
        if queries.shape[1] % keys.shape[1]:
            raise UserError(
                f"{queries.shape[1]} query heads are not a multiple of {keys.shape[1]} KV heads; "
                "pass queries [batch, query_heads, tokens, head_dim] and keys of the same model"
            )
        scaling = keys.shape[-1] ** -0.5 if scaling is None else scaling
        if self.needs.column_sums and column_sums is None:
            if queries.shape[2] != keys.shape[2]:
                raise UserError(
                    f"method {self.name!r} scores by the attention of all prompt queries; pass the "
                    f"queries of all {keys.shape[2]} tokens, or column_sums"
                )
            column_sums = kernels.column_sums(queries, keys, scaling, valid, form)
        given = {"hidden_states": hidden_states, "output_projection": output_projection}
        for need, tensor in given.items():
            if getattr(self.needs, need) and tensor is None:
                raise UserError(f"method {self.name!r} needs {need}; pass it to select()")
        window = queries[:, :, max(0, queries.shape[2] - self.needs.window) :]
        observed = Observed(
            window, keys, values, scaling, layer, num_layers, column_sums, hidden_states, form=form,
            output_projection=output_projection,
        )  # fmt: skip
        return self.select_padded([observed], valid)[0]

    def select_padded(self, layers: Sequence[Observed], valid: Tensor | None) -> list[Selection]:
        """Selections of layers of a batch with padding, each sequence by itself.

        Args:
            layers: one layer; all of them for a method that needs ``all_layers``.
            valid: bool [batch, tokens], False on padding. None: no padding.
        """
        if valid is None or bool(valid.all()):
            chosen = self._select(layers)
        else:
            batch = valid.shape[0]
            rows = [
                self._select([_sequence(layer, b, valid[b]) for layer in layers])
                for b in range(batch)
            ]
            chosen = [
                joined([row[index] for row in rows], layer.keys, layer.values, valid)
                for index, layer in enumerate(layers)
            ]
        return [
            replace(one, source_keys=layer.keys, source_values=layer.values)
            for one, layer in zip(chosen, layers, strict=True)
        ]

    def _select(self, layers: Sequence[Observed]) -> list[Selection]:
        method = self.for_prompt(layers[0].tokens, layers[0].shape)
        if self.needs.all_layers:
            chosen = method.select_layers(layers)
        else:
            chosen = [method.select_observed(layer) for layer in layers]
        for one, layer in zip(chosen, layers, strict=True):
            self._check_selection(one, layer)
        return chosen

    def _check_selection(self, selection: Any, observed: Observed) -> None:
        wanted = list(observed.keys.shape[:3])
        keep = getattr(selection, "keep", None)
        if not isinstance(selection, Selection):
            found = f"a {type(selection).__name__}"
        elif keep is not None and (keep.dtype != torch.bool or list(keep.shape) != wanted):
            found = f"keep {str(keep.dtype).removeprefix('torch.')} {list(keep.shape)}"
        else:
            return
        raise UserError(
            f"method {self.name!r} selected {found}; return Selection(keep) with keep bool "
            f"{wanted} (batch, KV heads, tokens)"
        )

    def to_dict(self) -> dict[str, Any]:
        """Name and options as plain values, for manifests; :func:`from_dict` reads them back. What
        ``keep`` stands for is not among them where that is given."""
        options: dict[str, Any] = {"name": self.name}
        for item in fields(self):
            if self.keep is not None and item.name in self.size_options:
                continue
            value = getattr(self, item.name)
            if (item.name, value) in (("store", "device"), ("keep", None)):
                continue  # as every record says that was written before there was a choice
            options[item.name] = value.to_dict() if hasattr(value, "to_dict") else value
        return options


def _sequence(layer: Observed, b: int, valid: Tensor) -> Observed:
    """One sequence of a batch without its padding."""
    columns: Any = valid.nonzero().squeeze(-1)
    count = len(columns)
    if count and int(columns[-1]) - int(columns[0]) == count - 1:
        # padding at an end: keys and values are read where they lie
        columns = slice(int(columns[0]), int(columns[-1]) + 1)
    queries = layer.queries[b : b + 1]
    sums, hidden, moments = layer.column_sums, layer.hidden_states, layer.query_moments
    inputs = layer.attention_inputs
    return replace(
        layer,
        queries=queries[:, :, max(0, queries.shape[2] - count) :],
        keys=layer.keys[b : b + 1, :, columns],
        values=layer.values[b : b + 1, :, columns],
        column_sums=None if sums is None else sums[b : b + 1, :, columns],
        hidden_states=None if hidden is None else hidden[b : b + 1, columns],
        query_moments=None if moments is None else moments.rows(slice(b, b + 1)),
        attention_inputs=None if inputs is None else inputs[b : b + 1, columns],
        repeat_scores={
            way: scores[b : b + 1, :, columns] for way, scores in layer.repeat_scores.items()
        },
    )
