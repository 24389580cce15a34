"""catekv as a model of lm-evaluation-harness (extra ``lm-eval``).

Importing this module registers the model ``catekv``: ``simple_evaluate(model="catekv", ...)`` and
``catekv lm-eval`` know it then. A request's context is read and compressed once, and answers are
generated from, or continuations scored against, what was kept. Equal contexts share one compressed
cache. The first token of a continuation is scored by the prefill's logits, which no compression has
touched (``strict=true`` reads the last context token again from the compressed cache).
"""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.models.utils import (
    handle_stop_sequences,
    normalize_gen_kwargs,
    postprocess_generated_text,
)
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from tqdm import tqdm

from catekv import methods
from catekv.decode.context import Context
from catekv.errors import UserError
from catekv.evaluation.run.forcing import forced, log_likelihoods
from catekv.evaluation.run.request import Request
from catekv.evaluation.run.session import open_model
from catekv.methods.base import Method
from catekv.model import CateKVModel
from catekv.models.compat import context_window
from catekv.tasks.core.token_ids import beginning_ids, text_ids

#: new tokens where a task does not say how many
_NEW_TOKENS = 256

Tokens = tuple[int, ...]
#: ids of what is compressed, and of what is asked behind it
Parted = tuple[list[int], list[int]]
#: a request of the harness: its texts, the context's ids and the continuation's
Scored = tuple[tuple[str, str], list[int], list[int]]


@register_model("catekv")
class HarnessModel(TemplateLM):
    """The harness's view of a model with a compressed cache.

    Args:
        pretrained: folder, ``.gguf`` file or hub name; None: the embedded model.
        method: name of a method; every further option goes to it (``ratio=0.4``, ``budget=512``,
            ``preset=recommended``; a head mask as ``mask=FOLDER``).
        device: as the harness passes it on; what is not there becomes ``auto``.
        batch_size: contexts that are read at once. max_batch_size: the harness passes it along
            with every model; sizes are not searched for here.
        max_length: longest prompt and answer together; None: the model's window.
        marker: what follows its last occurrence in a context is the question, which is asked after
            compression; None: the whole context is compressed, its question too.
        strict: score the first token of a continuation against the compressed cache as well.
        think_end_token: answers begin behind its last occurrence.
    """

    backend = "causal"

    def __init__(
        self,
        pretrained: str | None = None,
        method: str = "full",
        *,
        mask: str | None = None,
        dtype: str = "auto",
        device: str | None = None,
        attention: str = "auto",
        batch_size: int | str = 1,
        max_batch_size: int | None = None,
        max_length: int | None = None,
        marker: str | None = None,
        strict: bool = False,
        think_end_token: str | None = None,
        **options: Any,
    ):
        super().__init__()
        if not str(batch_size).isdecimal() or int(batch_size) < 1:
            raise UserError(f"batch_size={batch_size!r}; give a whole number of at least 1")
        if mask is not None:
            options["head_mask"] = mask
        target = "auto" if device is None else str(device)
        if target.startswith("cuda") and not torch.cuda.is_available():
            target = "auto"  # the harness asks for cuda:0 everywhere
        self.catekv: CateKVModel = open_model(
            Request(model=pretrained, dtype=dtype, device=target, attention=attention)
        )
        if self.catekv.tokenizer is None:
            raise UserError(f"{pretrained} has no tokenizer; the harness sends texts")
        self.tokenizer: Any = self.catekv.tokenizer
        self.method: Method = methods.create(method, **options)
        self.method.validate(self.catekv.shape)
        self.batch = int(batch_size)
        self.window = max_length or context_window(self.catekv.config)
        self.marker, self.strict, self.think_end = marker, strict, think_end_token
        self._kept = self._full = self._untouched = self._contexts = 0
        self._warned = False

    # --- texts and tokens ---------------------------------------------------------------------
    @property
    def eot_token_id(self) -> int:
        return int(self.tokenizer.eos_token_id)

    @property
    def prefix_token_id(self) -> int:
        begin = self.tokenizer.bos_token_id
        return self.eot_token_id if begin is None else int(begin)

    @property
    def tokenizer_name(self) -> str:
        return str(self.tokenizer.name_or_path).replace("/", "__")

    @property
    def max_length(self) -> int:
        return self.window or int(self.tokenizer.model_max_length)

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **options: Any
    ) -> list[int]:
        # an EOS that the tokenizer adds would lie between a context and its continuation
        alone = add_special_tokens is False
        return text_ids(self.tokenizer, string) if alone else beginning_ids(self.tokenizer, string)

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        return str(
            self.tokenizer.apply_chat_template(
                chat_history,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=not add_generation_prompt,
            )
        )

    def get_model_info(self) -> dict[str, Any]:
        """What the results say of the run besides the harness's own fields."""
        return {
            "catekv_method": self.method.to_dict(),
            "catekv_kept_share": self._kept / self._full if self._full else None,
            "catekv_uncompressed_contexts": self._untouched / max(1, self._contexts),
        }

    # --- contexts -----------------------------------------------------------------------------
    def _read(self, contexts: Sequence[Tokens], method: Method) -> Context:
        context = self.catekv.prefill([list(ids) for ids in contexts], method=method)
        if method is self.method:
            lengths = torch.stack([length.cpu() for length in context.lengths()])
            for row, ids in enumerate(contexts):
                self._kept += int(lengths[:, row].sum())
                self._full += lengths[:, row].numel() * len(ids)
                self._untouched += int(lengths[:, row].min()) >= len(ids)
            self._contexts += len(contexts)
        return context

    def _batches(
        self, parted: Mapping[int, Parted], method: Method
    ) -> Iterator[tuple[Context, list[int]]]:
        """Requests by their place that are answered together, with their compressed contexts.

        The longest contexts come first; equal ones are read once, and their requests follow each
        other.
        """
        by_context: dict[Tokens, list[int]] = defaultdict(list)
        for place, (context, _) in parted.items():
            by_context[tuple(context)].append(place)
        ordered = sorted(by_context, key=lambda ids: (-len(ids), ids))
        for start in range(0, len(ordered), self.batch):
            contexts = ordered[start : start + self.batch]
            read = self._read(contexts, method)
            for number in range(max(len(by_context[ids]) for ids in contexts)):
                rows = [r for r, ids in enumerate(contexts) if number < len(by_context[ids])]
                part = read if len(rows) == len(contexts) else read.rows(rows)
                yield part, [by_context[contexts[row]][number] for row in rows]

    def _refuse_too_long(self, tokens: int) -> None:
        if tokens > self.max_length:
            raise UserError(
                f"a request has {tokens} tokens with its answer, the model's window has "
                f"{self.max_length}; shorten the task's contexts: nothing is cut here"
            )

    # --- scoring ------------------------------------------------------------------------------
    def _loglikelihood_tokens(
        self, requests: list[Scored], disable_tqdm: bool = False, **options: Any
    ) -> list[tuple[float, bool]]:
        results: dict[int, tuple[float, bool]] = {}
        with tqdm(total=len(requests), disable=disable_tqdm, desc="scoring") as progress:
            pairs = [(context, continuation) for _, context, continuation in requests]
            for place, rated in self._scores(pairs, self.method):
                results[place] = rated
                self.cache_hook.add_partial("loglikelihood", requests[place][0], rated)
                progress.update()
        return [results[place] for place in range(len(requests))]

    def _scores(
        self, pairs: Sequence[tuple[list[int], list[int]]], method: Method
    ) -> Iterator[tuple[int, tuple[float, bool]]]:
        """Place and score of every (context, continuation)."""
        parted: dict[int, Parted] = {}
        for place, (context, continuation) in enumerate(pairs):
            self._refuse_too_long(len(context) + len(continuation))
            split = len(context) - int(self.strict and len(context) > 1)
            parted[place] = context[:split], context[split:]
        for read, places in self._batches(parted, method):
            continuations = [pairs[place][1] for place in places]
            scores = forced(self.catekv, read, continuations, [parted[p][1] for p in places])
            for place, rated, ids in zip(places, scores, continuations, strict=True):
                yield place, _answer(rated, ids)

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        """Likelihood of whole texts, which have no context to compress: by the full cache."""
        if not self._warned and self.method.name != "full":
            self._warned = True
            warnings.warn(
                "a text without a context has nothing to compress: its rolling likelihood is that "
                "of the full cache",
                stacklevel=2,
            )
        texts = [request.args[0] for request in requests]
        return [self._rolling(text) for text in tqdm(texts, disable=disable_tqdm)]

    def _rolling(self, text: str) -> float:
        windows = get_rolling_token_windows(
            token_list=self.tok_encode(text),
            prefix_token=self.prefix_token_id,
            max_seq_len=self.max_length,
            context_len=1,
        )
        pairs = [make_disjoint_window(window) for window in windows]
        return sum(score for _, (score, _) in self._scores(pairs, methods.create("full")))

    # --- generation ---------------------------------------------------------------------------
    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        groups: dict[str, list[int]] = defaultdict(list)
        for place, request in enumerate(requests):
            groups[repr(request.args[1])].append(place)
        results: dict[int, str] = {}
        with tqdm(total=len(requests), disable=disable_tqdm, desc="generating") as progress:
            for group in groups.values():
                settings = requests[group[0]].args[1]
                parted = {place: self._parted(requests[place].args[0]) for place in group}
                for read, places in self._batches(parted, self.method):
                    texts = self._texts(read, [parted[place][1] for place in places], settings)
                    for place, text in zip(places, texts, strict=True):
                        results[place] = text
                        self.cache_hook.add_partial("generate_until", requests[place].args, text)
                    progress.update(len(places))
        return [results[place] for place in range(len(requests))]

    def _parted(self, text: str) -> Parted:
        """Ids of what is compressed, and of the question behind the marker."""
        ids = self.tok_encode(text)
        if self.marker is None or self.marker not in text:
            return ids, []
        context = self.tok_encode(text[: text.rindex(self.marker)])
        # the tokens that both have in common, where the border falls within one
        common = next(
            (n for n, pair in enumerate(zip(context, ids, strict=False)) if pair[0] != pair[1]),
            min(len(context), len(ids)),
        )
        return (ids[:common], ids[common:]) if common else (ids, [])

    def _texts(
        self, context: Context, questions: Sequence[list[int]], settings: dict[str, Any]
    ) -> list[str]:
        """Answers of a batch, cut before the first stop text."""
        given = dict(normalize_gen_kwargs(settings, _NEW_TOKENS))
        end = self.tokenizer.decode(self.eot_token_id, skip_special_tokens=False)
        until = handle_stop_sequences(given.pop("until", None), eos=end)
        tokens = int(given.pop("max_gen_toks"))
        longest = max(map(len, questions), default=0)
        self._refuse_too_long(context.input_ids.shape[1] + longest + tokens)
        sampling: dict[str, Any] = {}
        if given.get("do_sample"):
            names = ("temperature", "top_k", "top_p", "seed")
            sampling = {name: given[name] for name in names if given.get(name) is not None}
        answers = self.catekv.generate_ids(
            questions,
            context,
            tokens,
            [self.eot_token_id],
            stop=None if self.think_end else [text for text in until if text != end] or None,
            **sampling,
        )
        texts = self.tokenizer.batch_decode(answers.rows, skip_special_tokens=True)
        return [postprocess_generated_text(text, until, self.think_end) for text in texts]


def _answer(scores: torch.Tensor, continuation: list[int]) -> tuple[float, bool]:
    """Sum of the log probabilities of a continuation, and whether greedy decoding gives it."""
    greedy = scores[: len(continuation)].argmax(dim=-1).tolist() == list(continuation)
    return float(log_likelihoods(scores, continuation).sum()), greedy
