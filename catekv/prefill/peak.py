"""What a prefill holds at its fullest moment: arithmetic from a model's sizes, term by term.

The layer-by-layer prefill holds the weights, what is kept of the layers that are done, one layer's
dense keys and values, the hidden states of the prompt, and temporaries: of one chunk, or of the
compression of a layer. Its peak is the largest of four moments of a layer; which layer it is
depends on what the method keeps where.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from catekv.cache import attention
from catekv.kernels.codes import BLOCK_NUMBERS
from catekv.kernels.window_scores import BLOCK_BYTES
from catekv.methods.base import Method, Needs
from catekv.methods.formulas.query_moments import FIRST
from catekv.methods.formulas.repeat import FLOATS
from catekv.methods.stores import QUANTISED
from catekv.prefill.sizes import ModelSizes, kept_table

FLOAT32 = 4
INT32 = 4
INT64 = 8
#: Scratch of the matrix library, which the allocator counts.
CUDA_WORKSPACE = 32 * 2**20
#: Per score: the score, its sorted copy and index, and the double buffers of the device's sort.
SORT_BYTES = 48


@dataclass(frozen=True)
class Term:
    """One summand of a peak: its bytes and what they are."""

    name: str
    bytes: float
    meaning: str


@dataclass(frozen=True)
class PrefillPeak:
    """The fullest moment of a prefill.

    Attributes:
        moment: what is going on then.
        layer: in which layer (counted from 0).
        terms: what is alive; their sum is :attr:`total`.
        complete: False if the method decides by the prompt's content how much it keeps; that then
            counts as everything.
    """

    moment: str
    layer: int
    terms: tuple[Term, ...]
    complete: bool = True

    @property
    def total(self) -> int:
        return int(sum(term.bytes for term in self.terms))

    def bytes_of(self, name: str) -> float:
        """Bytes of one term; 0 if it is not part of this moment."""
        return sum(term.bytes for term in self.terms if term.name == name)


def peak_prefill_bytes(
    sizes: ModelSizes,
    method: Method | None,
    tokens: int,
    batch: int = 1,
    chunk_size: int | None = 8192,
    device: str = "cuda",
) -> int:
    """Largest number of bytes that a prefill holds, weights included.

    Args:
        sizes: of the model (:func:`catekv.prefill.sizes.sizes_of_config`); its ``element_bytes``
            are those of weights and cache.
        method: what compresses; None: all layers stay dense.
        tokens: columns of the prompt. batch: sequences.
        chunk_size: tokens that a layer processes at a time; None: all at once.
        device: ``cuda`` or ``cpu`` (a number behind it changes nothing): attention, scoring and
            packing differ in their temporaries.
    """
    return prefill_peak(sizes, method, tokens, batch, chunk_size, device).total


def prefill_peak(
    sizes: ModelSizes,
    method: Method | None,
    tokens: int,
    batch: int = 1,
    chunk_size: int | None = 8192,
    device: str = "cuda",
    lengths: Sequence[int] | None = None,
) -> PrefillPeak:
    """The fullest moment of a prefill; arguments as in :func:`peak_prefill_bytes`.

    ``lengths`` are the tokens of the sequences without their padding; None: no padding.
    """
    chunk = tokens if chunk_size is None else min(chunk_size, tokens)
    pieces = _Pieces(sizes, method, tokens, batch, chunk, device, lengths)
    moments = [
        moment for layer in range(sizes.layers) for moment in pieces.moments_of(layer) if moment
    ]
    return max(moments, key=lambda moment: moment.total)


class _Pieces:
    """The moments of a prefill, layer by layer. Sizes in bytes; ``rows`` counts chunk tokens."""

    def __init__(
        self,
        sizes: ModelSizes,
        method: Method | None,
        tokens: int,
        batch: int,
        chunk: int,
        device: str,
        lengths: Sequence[int] | None,
    ):
        self.sizes, self.method, self.tokens, self.batch = sizes, method, tokens, batch
        self.device = device.partition(":")[0]
        self.element = sizes.element_bytes
        self.rows = batch * chunk
        self.chunked = chunk < tokens
        self.full = [batch * size for size in sizes.full_layer_bytes(tokens)]
        # what is kept, in the form in which it stays, and before it takes that form
        self.kept = [0.0] * sizes.layers
        self.packed = [0.0] * sizes.layers
        counts = {tokens: batch} if lengths is None else Counter(lengths)
        for length, count in counts.items():
            own = sizes.kept_layer_bytes(method, length)
            self.kept = [sum_ + count * size for sum_, size in zip(self.kept, own, strict=True)]
            own = sizes.kept_layer_bytes(method, length, packed=True)
            self.packed = [sum_ + count * size for sum_, size in zip(self.packed, own, strict=True)]
        needs = None if method is None else method.needs
        self.needs = Needs() if needs is None else needs
        self.window = self.needs.window
        # methods that decide after the last layer leave all layers dense until then
        self.late = needs is None or needs.all_layers
        self.quantised = method is not None and method.store in QUANTISED
        self.table = None if method is None else kept_table(method, tokens, sizes.shape)
        self.known = method is None or self.table is not None
        self.query = sizes.query_heads * sizes.head_dim
        self.key = sizes.kv_heads * sizes.head_dim

    def moments_of(self, layer: int) -> list[PrefillPeak]:
        found = [
            self._moment(layer, "feed-forward part of a chunk", self._feed_forward()),
            self._moment(layer, "attention of a chunk", self._attention()),
        ]
        if self.sizes.windows[layer] is None and not self.late:
            entry = [self._chunk_term(self._entering())]
            found.append(
                self._moment(layer, "choice of what to keep", [*entry, *self._scoring(layer)])
            )
            found.append(
                self._moment(layer, "packing of what is kept", [*entry, *self._packing(layer)])
            )
        if self.needs.repeats and layer == self.sizes.layers - 1:
            found.append(self._repetition(layer))
        return found

    def _moment(self, layer: int, name: str, temporaries: list[Term]) -> PrefillPeak:
        done = self.full if self.late else self.kept
        dense = self.full[layer]
        # one forward over everything compresses inside its attention, before its feed-forward part
        if not self.chunked and name.startswith("feed-forward") and not self.late:
            dense = self.kept[layer]
        size, hidden = self.sizes, self.batch * self.tokens * self.sizes.hidden_size * self.element
        terms = [
            Term("weights", size.weight_bytes, "all parameters"),
            Term("kept cache", sum(done[:layer]), f"what is kept of the {layer} layers before"),
            Term("one dense layer", dense, "keys and values of the whole prompt in one layer"),
            Term(
                "hidden states",
                hidden if self.chunked else 2 * hidden,
                "the prompt between two layers, replaced in place"
                if self.chunked
                else "the prompt's embeddings, and its states between two layers",
            ),
            Term("positions", self._positions(), "position ids" + self._tables_meaning()),
            Term("recorded", self._recorded(layer), "what the method looks at besides keys"),
        ]
        if self.device == "cuda":
            terms.append(Term("workspaces", CUDA_WORKSPACE, "scratch of the matrix library"))
        return PrefillPeak(name, layer, (*terms, *temporaries), self.known)

    def _recorded(self, layer: int) -> float:
        size, needs = self.sizes, self.needs
        numbers = (needs.hidden_states + needs.attention_inputs) * size.hidden_size * self.element
        numbers += size.query_heads * FLOAT32 if needs.column_sums else 0
        layers = layer + 1 if self.late else 1
        moments = 0
        if needs.query_moments:
            moments = size.query_heads * size.head_dim * (size.head_dim + FIRST + 1) * FLOAT32
        return float(layers * self.batch * (self.tokens * numbers + moments))

    def _positions(self) -> float:
        ids = self.tokens * INT64
        return ids + (0 if self.chunked else self._rotary_tables())

    def _tables_meaning(self) -> str:
        return "" if self.chunked else " and rotary tables"

    def _rotary_tables(self) -> float:
        tokens = self.rows // self.batch
        return 2 * tokens * self.sizes.head_dim * self.element

    def _repetition(self, layer: int) -> PrefillPeak:
        """One part of the prompt behind the dense cache; the words that ask for it hardly count."""
        size, longest = self.sizes, max(min(way.chunk, self.tokens) for way in self.needs.repeats)
        rows, asked = self.batch * longest, min(longest, self.rows // self.batch)
        behind = size.layers * rows * size.kv_heads * size.row_token_bytes
        scores = len(self.needs.repeats) * size.layers * self.batch * self.tokens * size.kv_heads
        logits = min(FLOATS, size.query_heads // size.kv_heads * asked * 2 * longest)
        # room behind the prompt is made by a copy of the layer, before anything is scored
        copies = 2 + any(way.plus for way in self.needs.repeats)
        work = max(self.full[layer], copies * logits * FLOAT32)
        states = rows * size.hidden_size + self.batch * asked * self._entering()
        terms = (
            Term("weights", size.weight_bytes, "all parameters"),
            Term("dense layers", sum(self.full), "keys and values of the whole prompt"),
            Term("recorded", self._recorded(layer), "what the method looks at besides keys"),
            Term("repetition", behind + scores * FLOAT32, "entries behind the prompt, scores"),
            Term("work", work, "attention of the repetition in float32, or a layer that grows"),
            Term("chunk temporaries", states * self.element, "activations of the part"),
        )
        return PrefillPeak("repetition of the prompt", layer, terms, self.known)

    def _chunk_term(self, numbers: float, extra: float = 0.0) -> Term:
        tables = self._rotary_tables() if self.chunked else 0.0
        total = self.rows * numbers * self.element + tables + extra
        return Term("chunk temporaries", total, "activations of one chunk, rotary tables")

    def _feed_forward(self) -> list[Term]:
        size = self.sizes
        # residual, normed input, and the wide tensors
        wide = 2 * size.hidden_size + size.feed_forward * size.intermediate_size
        # residual, and the norm in float32 with a copy
        norm = size.hidden_size + 2 * size.hidden_size * FLOAT32 / self.element
        return [self._chunk_term(max(wide, norm))]

    def _attention(self) -> list[Term]:
        # normed input, queries, keys and values; rotation makes three more of the queries
        rotation = self.sizes.hidden_size + 4 * self.query + 2 * self.key
        if self.device == "cuda":
            # logsumexp, float32 per query head
            extra = self.rows * self.sizes.query_heads * FLOAT32
            attended = self._chunk_term(self._entering(), extra)
        else:
            attended = self._chunk_term(self._entering() + self._block_share(), self._mask())
        return [max(self._chunk_term(rotation), attended, key=lambda term: term.bytes)]

    def _entering(self) -> float:
        """Numbers per token alive when a chunk's attention is done: normed input, queries and
        output; with one projection for queries, keys and values its result too."""
        fused = self.query + 2 * self.key if self.sizes.fused_attention else 0
        return self.sizes.hidden_size + 2 * self.query + fused

    def _block(self) -> int:
        """Queries per block on the path without FlashAttention (see ``catekv.cache.attention``)."""
        group = self.sizes.query_heads // self.sizes.kv_heads
        room = attention.MASK_BYTES // (group * self.tokens * self.element)
        return max(1, min(attention.QUERY_BLOCK, room, self.rows // self.batch))

    def _block_share(self) -> float:
        # a block's queries and its result, as a share of the chunk's
        return 2 * self.query * self._block() * self.batch / self.rows

    def _mask(self) -> float:
        if not self.chunked:
            return 0.0
        group = self.sizes.query_heads // self.sizes.kv_heads
        return float(group * self._block() * self.tokens * self.element)

    def _scored_heads(self, layer: int) -> int:
        """KV heads of a layer that a window method must choose in."""
        if not self.window:
            return 0
        if self.table is None:
            return self.sizes.kv_heads
        return int((self.table[layer] < self.tokens).sum())

    def _marks(self) -> Term:
        marks = self.batch * self.sizes.kv_heads * self.tokens
        return Term("marks", marks, "one byte per token and KV head: kept or not")

    def _scoring(self, layer: int) -> list[Term]:
        heads = self._scored_heads(layer)
        scored = compared = self.tokens
        if self.method is not None:
            scored, compared = self.method.scored(self.tokens)
        scores = self.batch * heads * compared
        if self.device == "cuda":
            # scores, their sorted copy with indices, and what the sort works in
            return [self._marks(), Term("scoring", scores * SORT_BYTES, "scores and their order")]
        size, per_head = self.sizes, self.window * scored * FLOAT32
        widest = FLOAT32 * max(1, scored) * max(self.window, size.head_dim)
        block = max(1, min(heads, BLOCK_BYTES // widest)) if heads else 0
        group = size.query_heads // size.kv_heads
        # logits and probabilities of this and of the last query head, their mean, and a mean more
        # where blocks follow each other
        logits = min(group + 1, 4) + (self.batch * heads > block)
        total = block * per_head * logits + scores * FLOAT32
        if self.element < FLOAT32:
            total += block * scored * size.head_dim * FLOAT32
        if heads < size.kv_heads:
            # the keys of these heads
            total += self.batch * heads * self.tokens * size.head_dim * self.element
        meaning = "attention of the window over the prompt, some heads at a time, in float32"
        return [self._marks(), Term("scoring", total, meaning)]

    def _packing(self, layer: int) -> list[Term]:
        packed = self.packed[layer]
        terms = []
        # the dense tensors themselves become what is kept where that is everything
        if packed < self.full[layer]:
            terms = [
                self._marks(),
                Term("packed copy", packed, "what is kept of this layer, beside its dense keys"),
            ]
        # what packing works with is gone when the entries are quantised
        work = self._pack_bytes(layer) if terms else 0.0
        if self.quantised:
            quantising = self._quantising(layer)
            if quantising > work:
                meaning = "codes of the packed entries, and what they are made in, in float32"
                return [*terms, Term("quantising", quantising, meaning)]
        return [*terms, Term("packing", work, "where the kept entries lie")] if terms else []

    def _quantising(self, layer: int) -> float:
        """Codes and scales, and temporaries of a block in float32; rows of four-bit codes, made one
        by one, are joined afterwards, those of keys before those of values."""
        assert self.method is not None
        four, kept = self.method.store == "int4", self.kept[layer]
        numbers = self.packed[layer] / 2 / self.element
        if four:
            longest = self.tokens if self.table is None else float(self.table[layer].max())
            numbers = min(numbers, longest * self.sizes.head_dim)
        copies = (2 if four else 1) + (self.element < FLOAT32)
        work = kept + copies * FLOAT32 * min(numbers, BLOCK_NUMBERS)
        return max(work, 1.5 * kept) if four else work

    def _pack_bytes(self, layer: int) -> float:
        size = self.sizes
        if self.device == "cuda":
            return float(self.batch * size.kv_heads * self.tokens * INT32)
        # row by row: the row's indices, and its keys or values once more
        longest = self.tokens if self.table is None else float(self.table[layer].max())
        return longest * (INT64 + size.head_dim * self.element)
