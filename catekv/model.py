"""Load any supported decoder, compress a context once, ask it many questions."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from catekv.cache.cache import RaggedCache
from catekv.cache.continuation import SINGLE_TOKENS, feed
from catekv.cache.probe import examine
from catekv.decode import generation, stock_generation
from catekv.decode.context import Context, DensePrompt
from catekv.decode.fused import chosen_step
from catekv.decode.generation import Generation, Limits, Piece, Session
from catekv.decode.prompts import Prompt, PromptReader, read_mask
from catekv.decode.question_parts import Part, answers_of, in_order, parts_of, refuse_apart
from catekv.decode.repeat_wording import repeat_wording
from catekv.decode.sampling import Sampling
from catekv.decode.step import GRAPH_MODES
from catekv.decode.stock_generation import DEFAULT_NEW_TOKENS, StockOptions, refuse_both
from catekv.decode.text import stop_strings
from catekv.errors import UserError
from catekv.loading import attach_attention, load_checkpoint, make_method, random_model
from catekv.methods.base import Method, Needs
from catekv.models.compat import context_window, input_device, text_config
from catekv.models.kinds import refuse_adapters, refuse_other_kinds, refuse_unless_causal
from catekv.models.padding import refuse_unless_left_padding
from catekv.prefill import capacity, layerwise
from catekv.prefill.repeating import refuse_without_room
from catekv.tasks.core.token_ids import end_of_ids

__all__ = ["CateKVModel", "Context", "DensePrompt", "Generation", "Prompt"]


class CateKVModel:
    """A transformers decoder with compressed contexts.

    Attributes:
        model: the transformers model, with catekv attention. tokenizer: its tokenizer or None.
        method: the default method. shape: layers, heads and head_dim. device, config.
        traits: what was found out on loading, see :class:`catekv.cache.probe.Traits`.
    """

    def __init__(
        self,
        model: Any,
        method: str | Method | None = None,
        tokenizer: Any = None,
        *,
        attention_base: str = "auto",
        model_id: str = "",
        fused_step: str = "auto",
    ):
        refuse_other_kinds(model)
        attach_attention(model, attention_base)
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.method = None if method is None else make_method(method)
        self.model_id = model_id
        self.config = model.config
        refuse_unless_causal(model)
        self.traits = examine(self.model)
        self.shape = self.traits.shape
        if self.method is not None:
            self.method.validate(self.shape)
        self.fused_step = fused_step

    @property
    def device(self) -> torch.device:
        """Where prompts go: the device of the embeddings."""
        return input_device(self.model)

    @property
    def fused_step(self) -> str:
        """Whether decode steps are fused: ``auto``, ``on`` or ``off``, see :meth:`from_pretrained`.

        May be set; other answers to the same context go on with the new choice.
        """
        return self._fused_step

    @fused_step.setter
    def fused_step(self, mode: str) -> None:
        # tried now, and not in the midst of an answer: it moves weights and compiles kernels
        chosen_step(self.model, mode)
        self._fused_step = mode

    @property
    def not_fused(self) -> str | None:
        """Why decode steps are not fused; None if they are, wherever tails of fixed size are
        possible."""
        found = chosen_step(self.model, self._fused_step)
        return found if isinstance(found, str) else None

    @property
    def dtype(self) -> torch.dtype:
        return self.model.get_input_embeddings().weight.dtype

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        method: str | Method = "catekv",
        *,
        head_mask: Any = None,
        ratio: float | None = None,
        retention: float | None = None,
        budget: int | None = None,
        dtype: str | torch.dtype = "auto",
        device: str | torch.device = "auto",
        attention: str = "auto",
        tensor_parallel: bool = False,
        fused_step: str = "auto",
        **method_options: Any,
    ) -> CateKVModel:
        """Load a checkpoint.

        Args:
            path: folder of a checkpoint, a hub name, a ``.gguf`` file (its weights are taken out
                of their quantisation), or ``REPOSITORY:FILE`` for a GGUF file of the hub.
            method: a method, or its name; every other method option goes to
                ``catekv.methods.create``. None stands for the method's own default.
            head_mask: catekv: a ``HeadMask`` or the path of one. ratio: r, share of adaptive heads
                (default 0.4). retention: eta (default 1.0). budget: b in tokens (default 2048).
            dtype: ``auto`` is the checkpoint's own, but float32 on a CPU, where half precision is
                slow.
            device: ``auto`` is a CUDA device if there is one.
            attention: base implementation, one of ``auto`` (sdpa where the model has it), ``sdpa``,
                ``eager``, ``flash_attention_2``, ``flash_attention_3``.
            tensor_parallel: share the weights and KV heads among the processes of the running
                process group (``torchrun``), all of which must then make the same calls.
            fused_step: decode in few launches (:mod:`catekv.decode.fused`), which puts some weights
                side by side: ``auto`` on a CUDA device if the model allows it, ``on`` (an error
                where it does not), ``off``.

        Raises:
            UserError: the checkpoint is missing or not one, the device is absent, an option is
                wrong, or the model's attention cannot be compressed.
        """
        chosen = make_method(
            method,
            head_mask=head_mask,
            ratio=ratio,
            retention=retention,
            budget=budget,
            **method_options,
        )
        model, tokenizer = load_checkpoint(path, chosen, dtype, device, attention, tensor_parallel)
        return cls(model, chosen, tokenizer, model_id=str(path), fused_step=fused_step)

    @classmethod
    def from_config(
        cls,
        config: Any,
        method: str | Method | None = None,
        *,
        random_weights: bool = True,
        dtype: str | torch.dtype = "auto",
        device: str | torch.device = "auto",
        attention: str = "auto",
        layers: int | None = None,
        seed: int = 0,
        tokenizer: Any = None,
        fused_step: str = "auto",
        **method_options: Any,
    ) -> CateKVModel:
        """A model of real shape with random weights, for latency and memory without a download.

        Args:
            config: one of ``catekv.models.presets.available()`` or a transformers configuration.
            method: as in :meth:`from_pretrained`; None: every prefill names its own.
            random_weights: must be True; says in the call what one gets.
            layers: fewer decoder layers than the model has.
            seed: of the weights. Other arguments as in :meth:`from_pretrained`; ``auto`` dtype is
                bfloat16 on an accelerator.
        """
        if not random_weights:
            raise UserError("from_config has no weights to load; use from_pretrained for those")
        chosen = None if method is None else make_method(method, **method_options)
        model, name = random_model(config, chosen, dtype, device, attention, layers, seed)
        return cls(model, chosen, tokenizer, model_id=name, fused_step=fused_step)

    @property
    def vocabulary(self) -> int:
        """Number of token ids that the model can be given."""
        rows = self.model.get_input_embeddings().weight.shape[0]
        # a process of several may hold a part of the rows
        return max(rows, getattr(text_config(self.config), "vocab_size", None) or 0)

    def encode(
        self, prompt: Prompt, *, begin: bool = True, after: Context | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Token ids [batch, columns], left-padded, and their mask (None: no padding).

        Args:
            prompt: text, token ids, chat messages, or a mapping with ``input_ids``, of one prompt
                or of several; see :data:`catekv.decode.prompts.Prompt`.
            begin: whether text gets the special tokens that the tokenizer puts before text (a
                context does, a question that follows it does not); see
                :mod:`catekv.tasks.core.token_ids`.
            after: the context that a question follows.

        Raises:
            UserError: no prompt, ids outside of the vocabulary, a mask that is no left padding.
        """
        before = None
        if after is not None and self.tokenizer is not None:
            before = [end_of_ids(self.tokenizer, row) for row in after.input_ids.tolist()]
        reader = PromptReader(self.tokenizer, self.vocabulary)
        ids, mask = reader.read(prompt, begin=begin, before=before)
        return ids.to(self.device), None if mask is None else mask.to(self.device)

    def _prompt(self, prompt: Prompt, attention_mask: Any) -> tuple[Tensor, Tensor | None]:
        ids, mask = self.encode(prompt)
        refuse_adapters(self.model)
        if ids.numel() == 0:
            raise UserError("the prompt is empty; pass text or at least one token")
        if attention_mask is not None:
            if isinstance(prompt, Mapping) and prompt.get("attention_mask") is not None:
                raise UserError("the prompt has an attention_mask already; pass it once")
            given = read_mask(attention_mask, ids)
            mask = None if given is None else given.to(self.device)
        if mask is not None:
            refuse_unless_left_padding(mask)
        self.refuse_beyond_window(ids.shape[1])
        return ids, mask

    def _question_ids(self, question: Prompt, context: Context) -> tuple[Tensor, Tensor | None]:
        """Ids [batch, tokens] (perhaps no tokens) of a question for each sequence of a context."""
        if not isinstance(context, Context):
            raise UserError(
                f"the context is a {type(context).__name__}; give what prefill() returned as the "
                "context, and the question in its own place (the arguments may be swapped)"
            )
        context.cache.refuse_other_model(self.model)
        ids, mask = self.encode(question, begin=False, after=context)
        # adapters may have been switched since
        refuse_adapters(self.model)
        batch = context.input_ids.shape[0]
        if ids.numel() == 0:
            return ids.new_zeros(batch, 0), None
        if ids.shape[0] != batch:
            raise UserError(
                f"{ids.shape[0]} questions for a context of {batch} sequences; pass one each"
            )
        return ids, mask

    def refuse_beyond_window(self, tokens: int) -> None:
        """``UserError`` for more tokens, prompt and answer, than the model reads."""
        window = context_window(self.config)
        if window is not None and tokens > window:
            raise UserError(
                f"{tokens} tokens exceed the model's context window of {window}; shorten the "
                "context or the answer, or use a model with a longer window"
            )

    def prefill(
        self,
        prompt: Prompt,
        chunk_size: int | None = 8192,
        method: str | Method | None = None,
        *,
        attention_mask: Any = None,
        check_memory: bool = True,
    ) -> Context:
        """Read a context and compress it, layer by layer.

        Args:
            prompt: text, token ids, chat messages (in the tokenizer's template) or a mapping with
                ``input_ids`` and perhaps ``attention_mask``, of one context or of several
                (left-padded then).
            chunk_size: tokens a layer processes at a time; None: all at once.
            method: instead of the model's default.
            attention_mask: [batch, columns] for ids that are padded (on the left) already, 0 on
                padding.
            check_memory: refuse what cannot fit the free memory of the device
                (:func:`catekv.prefill.capacity.refuse_unless_fits`).

        Raises:
            UserError: no method; what is no prompt, or padded elsewhere than on the left; a prompt
                that is empty, longer than the model's window or larger than the free memory.
        """
        chosen = self.method if method is None else make_method(method)
        if chosen is None:
            raise UserError("this model has no method; pass method= to prefill or on loading")
        if method is not None:
            chosen.validate(self.shape)
        ids, mask = self._prompt(prompt, attention_mask)
        cache = RaggedCache(self.config, chosen, ids.shape[1])
        return self._run(ids, mask, cache, chunk_size, check_memory)

    def _run(
        self,
        ids: Tensor,
        mask: Tensor | None,
        cache: RaggedCache,
        chunk_size: int | None,
        check_memory: bool,
    ) -> Context:
        wording, ways = None, cache.settings.needs.repeats
        if ways:
            wording = repeat_wording(self.tokenizer)
            refuse_without_room(self.config, ids.shape[1], ways, wording)
        if check_memory:
            batch, tokens = ids.shape
            capacity.refuse_unless_fits(
                self.model,
                cache.settings.method,
                tokens,
                batch,
                layerwise.usable_chunk(self.model, tokens, chunk_size),
                ids.device,
                self.shape,
                None if mask is None else mask.sum(dim=-1).tolist(),
            )
        clock = time.perf_counter()
        logits = layerwise.prefill(self.model, ids, cache, mask, chunk_size, wording)
        generation.synchronize(ids.device)
        seconds = time.perf_counter() - clock
        timings = {
            "prefill_seconds": seconds - cache.settings.compress_seconds,
            "compress_seconds": cache.settings.compress_seconds,
        }
        return Context(cache, ids, mask, logits, timings, self.model_id)

    def observe(
        self,
        prompt: Prompt,
        window: int = 64,
        chunk_size: int | None = None,
        *,
        needs: Needs | None = None,
        attention_mask: Any = None,
        check_memory: bool = True,
    ) -> DensePrompt:
        """Read a prompt and keep all keys and values, and what methods need to choose among them.

        Args:
            window: number of last queries to keep.
            needs: instead of ``window``; ``Needs.of_all(methods)`` serves several methods.
            check_memory: as in :meth:`prefill`.
        """
        needs = Needs(window=window) if needs is None else needs
        ids, mask = self._prompt(prompt, attention_mask)
        cache = RaggedCache(self.config, None, ids.shape[1], hold=needs)
        run = self._run(ids, mask, cache, chunk_size, check_memory)
        return DensePrompt(
            cache,
            ids,
            mask,
            run.last_logits,
            needs,
            self.config,
            {"prefill_seconds": run.timings["prefill_seconds"]},
            self.model_id,
        )

    def extend(self, context: Context, prompt: Prompt) -> Context:
        """A context with more behind it, such as a question and its answer; the old one stays.

        What is added is kept whole, unless the context's method goes on while decoding;
        ``Context.compress()`` lets such a method choose again at once.

        Args:
            prompt: text or ids, for several contexts one each, as questions are given.

        Raises:
            UserError: as :meth:`generate_ids`; turns that cannot be read in one batch as each is
                alone.
        """
        ids, mask = self._question_ids(prompt, context)
        self.refuse_beyond_window(context.tokens + ids.shape[1])
        refuse_apart(parts_of(self.model, context.cache, ids, mask))
        more = context.fork()
        more.attention_mask = generation.joined_mask(
            ids, mask, context.attention_mask, context.tokens
        )
        if ids.shape[1]:
            with torch.no_grad():
                logits = feed(self.model, ids, more.cache, more.attention_mask)
            more.last_logits = logits[:, -1]
        more.input_ids = torch.cat([context.input_ids, ids], dim=1)
        return more

    def load_context(self, path: str | Path) -> Context:
        """Read a context that ``Context.save`` wrote with this model.

        Raises:
            UserError: missing or torn files, or a context of another model, of other weights, of
                another adapter or of another number format. One that an earlier version saved does
                not say which weights it was read with and is loaded with a warning.
        """
        return Context.load(Path(path), self)

    def stop_token_ids(self) -> list[int]:
        """Token ids that end an answer, from the model's generation configuration."""
        configured = getattr(self.model, "generation_config", None)
        ids = getattr(configured, "eos_token_id", None)
        if ids is None and self.tokenizer is not None:
            ids = self.tokenizer.eos_token_id
        if ids is None:
            return []
        listed = list(ids) if isinstance(ids, Iterable) else [ids]
        if not all(isinstance(token, int) for token in listed):
            raise UserError(
                f"eos_token_id {ids!r} of the model's generation configuration is no token id; "
                "correct its generation_config.json"
            )
        return listed

    def generate_ids(
        self,
        question_ids: Prompt,
        context: Context,
        max_new_tokens: int,
        stop_token_ids: Sequence[int] | None = None,
        *,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int | tuple[int, ...] | None = None,
        stop: str | Sequence[str] | None = None,
        min_new_tokens: int = 0,
        stream: Callable[..., Any] | None = None,
        graph: str = "auto",
    ) -> Generation:
        """Answer with the project's own loop, greedily or sampling.

        Args:
            question_ids: ids after the context; empty to continue the context itself. For a batch
                one list per sequence; they may differ in length (models with windows or recurrent
                layers answer those of equal length together, one length after another).
            context: not consumed.
            max_new_tokens: tokens to generate at most.
            stop_token_ids: default :meth:`stop_token_ids`; pass ``[]`` to ignore the end.
            temperature, top_k, top_p, seed: with any of them tokens are drawn, see
                :class:`catekv.decode.sampling.Sampling`.
            stop: a sequence ends before the first of these strings (needs a tokenizer).
            min_new_tokens: so many tokens are chosen among those that do not end the answer, see
                :class:`catekv.decode.generation.Limits`.
            stream: called with each new piece of text; for several sequences as
                ``stream(text, sequence)`` (needs a tokenizer).
            graph: whether decode steps replay a CUDA graph: ``auto`` where it is possible and
                pays, ``on`` (an error where it is impossible), ``off``.

        Returns:
            ``Generation``: ``tokens`` of the first sequence, ``rows`` of all, times, steps.

        Raises:
            UserError: another batch size than the context's, more tokens than the window, or an
                option outside of its range.
        """
        pieces = self._answer(
            question_ids,
            context,
            Limits(
                max_new_tokens,
                self.stop_token_ids() if stop_token_ids is None else stop_token_ids,
                stop_strings(stop),
                min_new_tokens,
            ),
            _sampling(temperature, top_k, top_p, seed),
            text=stream is not None,
            graph=graph,
        )
        return generation.finish(pieces, _of_batch(stream, context))

    def _answer(
        self,
        question: Prompt,
        context: Context,
        limits: Limits,
        sampling: Sampling | None,
        *,
        text: bool,
        graph: str = "auto",
    ) -> Generator[Piece, None, Generation]:
        """Check a request; return the generator that answers it."""
        ids, mask = self._question_ids(question, context)
        if graph not in GRAPH_MODES:
            raise UserError(f"unknown graph mode {graph!r}; use {', '.join(GRAPH_MODES)}")
        text = text or bool(limits.stop)
        if text and self.tokenizer is None:
            raise UserError(
                "this model was loaded without a tokenizer, which streaming and stop strings need"
            )
        self.refuse_beyond_window(context.tokens + ids.shape[1] + limits.max_new_tokens)
        tokenizer = self.tokenizer if text else None

        parts = parts_of(self.model, context.cache, ids, mask)

        def one(part: Part) -> Generator[Piece, None, Generation]:
            whole = len(parts) == 1
            return self._answer_part(
                part,
                context if whole else context.rows(part.rows),
                limits,
                sampling,
                tokenizer,
                # a recorded step would serve this part and never again
                graph if whole or graph != "auto" else "off",
            )

        return answers_of(parts, one)

    def _answer_part(
        self,
        part: Part,
        context: Context,
        limits: Limits,
        sampling: Sampling | None,
        tokenizer: Any,
        graph: str,
    ) -> Generator[Piece, None, Generation]:
        """Answer questions that can be asked at once; ``context`` has their sequences."""
        # a kept step would be a recorded one
        if graph == "off":
            session = Session(context.cache)
        else:
            session = context.sessions.take(self.model, context.cache)
        session.fused_step = self.fused_step
        try:
            result = yield from generation.answer(
                self.model,
                session,
                part.ids,
                part.mask,
                context.attention_mask,
                context.last_logits,
                limits,
                sampling,
                tokenizer,
                graph,
                part.rows,
            )
        except GeneratorExit:
            # the reader of a stream has read enough
            context.sessions.put(session, context.cache)
            raise
        context.sessions.put(session, context.cache)
        return result

    def generate(
        self,
        question: Prompt,
        context: Context | None = None,
        max_new_tokens: int | None = None,
        *,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int | None = None,
        stop: str | Sequence[str] | None = None,
        stream: Callable[..., Any] | None = None,
        **options: Any,
    ) -> str | list[str]:
        """Answer a question, as text.

        Args:
            question: text, ids, messages or a mapping after the context, one per sequence of it.
            context: from :meth:`prefill`; not consumed. None: the question is the whole prompt,
                prefilled and compressed with the model's method (with ``options`` all of it but
                its last token, which starts the decoding).
            max_new_tokens: tokens to generate at most; None: what ``generation_config`` or
                ``max_length`` say (the latter counts the prompt), else 64.
            temperature, top_k, top_p, seed, stop, stream: as in :meth:`generate_ids`.
            options: passed to transformers' ``generate`` (beams, penalties, ``do_sample``,
                ``generation_config`` ...) together with temperature, top_k and top_p; without any
                the project's own loop runs. An argument wins over the configuration, and that over
                the model's own; :mod:`catekv.decode.stock_generation` says what is refused.

        Returns:
            One string, or a list where several prompts (or ``num_return_sequences``) were given.

        Raises:
            UserError: assisted decoding, which a compressed cache cannot do; no tokenizer; options
                of the project's own loop beside those of transformers, or options that
                transformers refuses.
        """
        if self.tokenizer is None:
            raise UserError("this model was loaded without a tokenizer; use generate_ids")
        options = {name: value for name, value in options.items() if value is not None}
        if options:
            refuse_both(options, seed=seed, stop=stop, stream=stream)
            options.update(temperature=temperature, top_k=top_k, top_p=top_p)
            rows = self._generate(*self._question(question, context), max_new_tokens, options)
        else:
            question, context = self._whole(question, context)
            most = DEFAULT_NEW_TOKENS if max_new_tokens is None else max_new_tokens
            limits = Limits(most, self.stop_token_ids(), stop_strings(stop))
            sampling = _sampling(temperature, top_k, top_p, seed)
            pieces = self._answer(question, context, limits, sampling, text=stream is not None)
            result = generation.finish(pieces, _of_batch(stream, context))
            if result.texts is not None:
                return result.texts[0] if len(result.texts) == 1 else result.texts
            rows = result.rows
        texts = [self.tokenizer.decode(row, skip_special_tokens=True) for row in rows]
        return texts[0] if len(texts) == 1 else texts

    def generate_stream(
        self,
        question: Prompt,
        context: Context | None = None,
        max_new_tokens: int = DEFAULT_NEW_TOKENS,
        *,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int | None = None,
        stop: str | Sequence[str] | None = None,
    ) -> Iterator[str]:
        """The pieces of one answer as they come; joined they are what :meth:`generate` returns.

        Arguments as in :meth:`generate`, for a single sequence.

        Raises:
            UserError: at the call, not when reading: as :meth:`generate`, and for several prompts.
        """
        if self.tokenizer is None:
            raise UserError("this model was loaded without a tokenizer; use generate_ids")
        question, context = self._whole(question, context)
        if context.input_ids.shape[0] > 1:
            raise UserError(
                "generate_stream reads one answer; for several pass stream= to generate"
            )
        limits = Limits(max_new_tokens, self.stop_token_ids(), stop_strings(stop))
        sampling = _sampling(temperature, top_k, top_p, seed)
        pieces = self._answer(question, context, limits, sampling, text=True)
        return (text for _, text in pieces)

    def _whole(self, question: Prompt, context: Context | None) -> tuple[Prompt, Context]:
        """Question and context; without a context the question is all of it."""
        if context is not None:
            return question, context
        context = self.prefill(question)
        return [[] for _ in range(context.input_ids.shape[0])], context

    def _question(self, question: Prompt, context: Context | None) -> tuple[Prompt, Context]:
        """The same for transformers, which needs a token to feed: the last one of the prompt."""
        if context is not None:
            return question, context
        ids, mask = self._prompt(question, None)
        before = None if mask is None else mask[:, :-1]
        if ids.shape[1] == 1 or (before is not None and not bool(before.any(dim=-1).all())):
            raise UserError(
                "options of transformers' generate() need prompts of at least two tokens; leave "
                "them out or pass more"
            )
        context = self.prefill(ids[:, :-1], attention_mask=before)
        return ids[:, -1:], context

    def _generate(
        self,
        question: Prompt,
        context: Context,
        max_new_tokens: int | None,
        options: dict[str, Any],
    ) -> list[list[int]]:
        """Answer through transformers; rows of new tokens."""
        stock = StockOptions(self.model, options, max_new_tokens)
        ids, mask = self._question_ids(question, context)
        tokens = context.input_ids.shape[1] + ids.shape[1]
        self.refuse_beyond_window(tokens + stock.new_tokens(tokens))
        parts = parts_of(self.model, context.cache, ids, mask)
        if any(part.ids.shape[1] == 0 for part in parts):
            raise UserError(
                "sampling and beams need at least one question token after every context; prefill "
                "the prompt without its last part and pass that as the question"
            )
        rows = [
            self._generate_part(
                part, context if len(parts) == 1 else context.rows(part.rows), stock
            )
            for part in parts
        ]
        return in_order(parts, rows)

    def _generate_part(self, part: Part, context: Context, stock: StockOptions) -> list[list[int]]:
        """transformers' answers to questions that can be asked at once."""
        cache, past = context.cache.fork(), context.input_ids
        masks = (context.attention_mask, part.mask)
        whole = torch.cat([past, part.ids], dim=1)
        full_mask = torch.cat(
            [
                torch.ones_like(ids) if mask is None else mask.to(ids.dtype)
                for ids, mask in zip((past, part.ids), masks, strict=True)
            ],
            dim=1,
        )
        if part.ids.shape[1] > 1 and self.traits.continues_by == SINGLE_TOKENS:
            # transformers would feed the question at once
            padded = any(mask is not None for mask in masks)
            feed(self.model, part.ids[:, :-1], cache, full_mask[:, :-1] if padded else None)
        return stock_generation.generate(stock, whole, full_mask, cache, self.tokenizer)


def _sampling(
    temperature: float | None,
    top_k: int | None,
    top_p: float | None,
    seed: int | tuple[int, ...] | None,
) -> Sampling | None:
    """How to draw; None (greedily) if nothing of it was asked for."""
    if temperature is None and top_k is None and top_p is None and seed is None:
        return None
    return Sampling(1.0 if temperature is None else temperature, top_k, top_p, seed)


def _of_batch(
    stream: Callable[..., Any] | None, context: Context
) -> Callable[[str, int], Any] | None:
    """A reader of one answer is not told which one it is."""
    if stream is None or context.input_ids.shape[0] > 1:
        return stream
    return lambda text, _: stream(text)
