"""Load any supported decoder, compress a context once, ask it many questions."""

from __future__ import annotations

import copy
import json
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from catekv import attention, generation, methods, presets
from catekv.cache import RaggedCache, RaggedLayer, compress_observed
from catekv.errors import UserError
from catekv.generation import Generation
from catekv.methods.base import Method, ModelShape, Observed
from catekv.token_buffer import TokenBuffer
from catekv.transformers_compat import context_window, set_attention, text_config

#: Text or token ids of one prompt, or of several.
Prompt = str | Sequence[str] | Sequence[int] | Sequence[Sequence[int]] | Tensor

CONTEXT_FILE = "context.safetensors"
_ASSISTED = ("assistant_model", "prompt_lookup_num_tokens", "custom_generate")


@dataclass
class Context:
    """A compressed prompt. Questions fork it, so it can be asked any number of times.

    Attributes:
        cache: the compressed cache after the whole context.
        input_ids: int64 [batch, columns]; attention_mask: [batch, columns] or None (no padding).
        last_logits: [batch, vocabulary] of the last context token.
        timings: ``prefill_seconds`` (without compression) and ``compress_seconds``.
    """

    cache: RaggedCache
    input_ids: Tensor
    attention_mask: Tensor | None
    last_logits: Tensor
    timings: dict[str, float] = field(default_factory=dict)
    model_id: str = ""

    @property
    def tokens(self) -> int:
        """True number of context columns (padding included)."""
        return self.cache.get_seq_length()

    def lengths(self) -> list[Tensor]:
        """Stored tokens of every layer, int64 [batch, kv_heads]."""
        return self.cache.lengths()

    def stored_bytes(self) -> int:
        """Bytes the cache really allocates."""
        return self.cache.stored_bytes()

    def full_bytes(self) -> int:
        """Bytes an uncompressed cache of the same model and length needs."""
        return self.cache.full_bytes()

    def kept_share(self) -> float:
        """Stored tokens over all tokens."""
        return self.cache.kept_share()

    def fork(self) -> Context:
        """An independent copy that shares the compressed storage."""
        return Context(
            self.cache.fork(),
            self.input_ids,
            self.attention_mask,
            self.last_logits,
            dict(self.timings),
            self.model_id,
        )

    def save(self, path: str | Path) -> None:
        """Write the context to a folder that ``CateKVModel.load_context`` reads."""
        from safetensors.torch import save_file

        tensors = {"input_ids": self.input_ids, "last_logits": self.last_logits}
        if self.attention_mask is not None:
            tensors["attention_mask"] = self.attention_mask
        folder = Path(path)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            save_file(
                {name: tensor.contiguous() for name, tensor in tensors.items()},
                str(folder / CONTEXT_FILE),
            )
            self.cache.save(
                folder,
                model_id=self.model_id,
                timings=self.timings,
            )
        except OSError as error:
            raise UserError(f"cannot write the context to {folder}: {error}") from error


@dataclass
class DensePrompt:
    """An uncompressed prompt with the last queries of every layer: one prefill for many methods.

    ``cache`` stays as it is; :meth:`compress` may be called with any number of methods.
    """

    cache: RaggedCache
    input_ids: Tensor
    attention_mask: Tensor | None
    last_logits: Tensor
    window: int
    config: Any
    timings: dict[str, float] = field(default_factory=dict)
    model_id: str = ""

    @property
    def tokens(self) -> int:
        return self.cache.get_seq_length()

    def observed(self, layer: int) -> Observed:
        """What a method sees of one layer (padded columns included, if there are any).

        Raises:
            UserError: if this layer is not one that can be compressed.
        """
        found = self.cache.layers[layer]
        if not isinstance(found, RaggedLayer):
            raise UserError(f"layer {layer} is a sliding-window layer and is not compressed")
        return found.observed()[0]

    def compress(self, method: Method) -> Context:
        """The context as ``method`` would have left it, had it been prefilled with it.

        Raises:
            UserError: if the method looks at more queries than were recorded.
        """
        if method.needs.window > self.window:
            raise UserError(
                f"method {method.name!r} looks at {method.needs.window} queries, the prompt was "
                f"observed with {self.window}; call observe(window={method.needs.window})"
            )
        clock = time.perf_counter()
        cache = RaggedCache(self.config, method, self.tokens)
        for index, source in enumerate(self.cache.layers):
            if not isinstance(source, RaggedLayer):
                # transformers replaces the tensors of such layers and never writes into them
                cache.layers[index] = copy.copy(source)
                continue
            observed, valid = source.observed(method.needs.window)
            target = cache.layers[index]
            target.lazy_initialization(observed.keys, observed.values)
            target.seen, target.scaling = source.seen, source.scaling
            target.query_heads = source.query_heads
            target._adopt(compress_observed(method, observed, valid), valid, TokenBuffer())
        timings = {**self.timings, "compress_seconds": time.perf_counter() - clock}
        return Context(
            cache,
            self.input_ids,
            self.attention_mask,
            self.last_logits,
            timings,
            self.model_id,
        )


class CateKVModel:
    """A transformers decoder with compressed contexts.

    Attributes:
        model: the transformers model, with catekv attention. tokenizer: its tokenizer or None.
        method: the default method. shape: layers, heads and head_dim. device, config.
    """

    def __init__(
        self,
        model: Any,
        method: Method | None = None,
        tokenizer: Any = None,
        *,
        attention_base: str = "sdpa",
        model_id: str = "",
    ):
        attention.register_attention()
        set_attention(model, attention.NAMES[attention_base])
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.method = method
        self.model_id = model_id
        self.config = model.config
        config = text_config(self.config)
        heads = config.num_attention_heads
        self.shape = ModelShape(
            layers=config.num_hidden_layers,
            query_heads=heads,
            kv_heads=getattr(config, "num_key_value_heads", None) or heads,
            head_dim=getattr(config, "head_dim", None) or config.hidden_size // heads,
        )
        probe(self.model)
        if method is not None:
            method.validate(self.shape)

    @property
    def device(self) -> torch.device:
        """Where prompts go: the device of the embeddings."""
        return self.model.get_input_embeddings().weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.model.get_input_embeddings().weight.dtype

    # --- making one -------------------------------------------------------------------------------

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
        **method_options: Any,
    ) -> CateKVModel:
        """Load a checkpoint.

        Args:
            path: folder of a checkpoint, or a hub name.
            method: a method, or its name; every other method option goes to
                ``catekv.methods.create``. None stands for the method's own default.
            head_mask: catekv: a ``HeadMask`` or the path of one. ratio: r, share of adaptive heads
                (default 0.4). retention: eta (default 1.0). budget: b in tokens (default 2048).
            dtype: ``auto`` is the checkpoint's own, but float32 on a CPU, where half precision is
                slow.
            device: ``auto`` is a CUDA device if there is one.
            attention: base implementation, one of ``auto`` (sdpa where the model has it), ``sdpa``,
                ``eager``, ``flash_attention_2``, ``flash_attention_3``.

        Raises:
            UserError: the checkpoint is missing or not one, the device is absent, an option is
                wrong, or the model's attention cannot be compressed.
        """
        from transformers import AutoConfig, AutoModelForCausalLM

        chosen = make_method(
            method,
            head_mask=head_mask,
            ratio=ratio,
            retention=retention,
            budget=budget,
            **method_options,
        )
        target = resolve_device(device)
        base = _attention_base(attention)
        name = str(path)
        local = Path(name).expanduser()
        if local.is_dir():
            if not (local / "config.json").is_file():
                raise UserError(f"{name} is no checkpoint: it has no config.json")
            name = str(local)
        elif local.exists() or name.startswith((".", "/", "~")) or name.count("/") > 1:
            raise UserError(f"there is no checkpoint folder {name}; pass a folder or a hub name")
        try:
            config = AutoConfig.from_pretrained(name)
            kind = _dtype(dtype, target)
            model = AutoModelForCausalLM.from_pretrained(
                name, config=config, dtype=kind, attn_implementation=base
            ).to(target)
        except (OSError, ValueError, KeyError, ImportError) as error:
            reason = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
            hint = "" if local.is_dir() else " (for a hub name the network or a filled cache)"
            raise UserError(
                f"cannot load {name}{hint}: {reason}; pass the folder of a complete decoder "
                "checkpoint"
            ) from error
        return cls(
            model, chosen, _tokenizer(name), attention_base=base or "sdpa", model_id=str(path)
        )

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
        **method_options: Any,
    ) -> CateKVModel:
        """A model of real shape with random weights, for latency and memory without a download.

        Args:
            config: one of ``catekv.presets.available()`` or a transformers configuration.
            method: as in :meth:`from_pretrained`; None: every prefill names its own.
            random_weights: must be True; says in the call what one gets.
            layers: fewer decoder layers than the model has.
            seed: of the weights. Other arguments as in :meth:`from_pretrained`; ``auto`` dtype is
                bfloat16 on an accelerator.
        """
        from transformers import AutoModelForCausalLM

        if not random_weights:
            raise UserError("from_config has no weights to load; use from_pretrained for those")
        chosen = None if method is None else make_method(method, **method_options)
        target = resolve_device(device)
        base = _attention_base(attention) or "sdpa"
        if isinstance(config, str):
            model_id = f"{config} (random weights)"
            config = presets.preset_config(config, layers)
        else:
            model_id = f"{type(config).__name__} (random weights)"
            config = copy.deepcopy(config)
            if layers is not None:
                text_config(config).num_hidden_layers = layers
        kind = _dtype(dtype, target)
        if kind == "auto":
            kind = torch.bfloat16
        with torch.random.fork_rng(devices=[target] if target.type == "cuda" else []), target:
            torch.manual_seed(seed)
            model = AutoModelForCausalLM.from_config(config, dtype=kind, attn_implementation=base)
        return cls(model, chosen, tokenizer, attention_base=base, model_id=model_id)

    # --- prompts ----------------------------------------------------------------------------------

    def encode(self, prompt: Prompt, *, begin: bool = True) -> tuple[Tensor, Tensor | None]:
        """Token ids [batch, columns], left-padded, and their mask (None: no padding).

        Args:
            prompt: text or token ids, of one prompt or of several.
            begin: whether text gets the tokenizer's special tokens (a context does, a question
                that follows it does not).
        """
        if isinstance(prompt, Tensor):
            ids = prompt if prompt.ndim == 2 else prompt[None]
            return ids.to(self.device, torch.long), None
        items = [prompt] if isinstance(prompt, str) else list(prompt)
        if not items or isinstance(items[0], int):
            rows: list[list[int]] = [list(items)]  # type: ignore[arg-type]
        elif isinstance(items[0], str):
            if self.tokenizer is None:
                raise UserError("this model was loaded without a tokenizer; pass token ids")
            rows = [self.tokenizer(item, add_special_tokens=begin)["input_ids"] for item in items]
        else:
            rows = [list(item) for item in items]  # type: ignore[arg-type]
        width = max(len(row) for row in rows)
        ids = torch.zeros(len(rows), width, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for index, row in enumerate(rows):
            if row:
                ids[index, width - len(row) :] = torch.tensor(row)
                mask[index, width - len(row) :] = 1
        full = bool(mask.all())
        return ids.to(self.device), None if full else mask.to(self.device)

    def _prompt(
        self, prompt: Prompt, attention_mask: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        ids, mask = self.encode(prompt)
        if attention_mask is not None:
            mask = attention_mask.to(self.device)
            if mask.shape != ids.shape:
                raise UserError(
                    f"attention_mask {tuple(mask.shape)} does not fit ids {tuple(ids.shape)}"
                )
        if ids.shape[1] == 0:
            raise UserError("the prompt is empty; pass text or at least one token")
        self._check_length(ids.shape[1])
        return ids, mask

    def _check_length(self, tokens: int) -> None:
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
        attention_mask: Tensor | None = None,
    ) -> Context:
        """Read a context and compress it, layer by layer.

        Args:
            prompt: text or token ids, of one context or of several (left-padded then).
            chunk_size: tokens a layer processes at a time; None: all at once.
            method: instead of the model's default.
            attention_mask: [batch, columns] for ids that are padded (on the left) already.

        Raises:
            UserError: no method, an empty prompt, or one longer than the model's window.
        """
        chosen = self.method if method is None else make_method(method)
        if chosen is None:
            raise UserError("this model has no method; pass method= to prefill or on loading")
        if method is not None:
            chosen.validate(self.shape)
        ids, mask = self._prompt(prompt, attention_mask)
        cache = RaggedCache(self.config, chosen, ids.shape[1])
        return self._run(ids, mask, cache, chunk_size)

    def _run(
        self, ids: Tensor, mask: Tensor | None, cache: RaggedCache, chunk_size: int | None
    ) -> Context:
        clock = time.perf_counter()
        logits = generation.prefill(self.model, ids, cache, mask, chunk_size)
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
        attention_mask: Tensor | None = None,
    ) -> DensePrompt:
        """Read a prompt and keep all keys and values and the last ``window`` queries."""
        ids, mask = self._prompt(prompt, attention_mask)
        cache = RaggedCache(self.config, None, ids.shape[1], hold_window=window)
        run = self._run(ids, mask, cache, chunk_size)
        return DensePrompt(
            cache,
            ids,
            mask,
            run.last_logits,
            window,
            self.config,
            {"prefill_seconds": run.timings["prefill_seconds"]},
            self.model_id,
        )

    def load_context(self, path: str | Path) -> Context:
        """Read a context that ``Context.save`` wrote with this model.

        Raises:
            UserError: missing or torn files, or a context of another model.
        """
        from safetensors.torch import load_file

        folder = Path(path)
        cache = RaggedCache.load(folder, self)
        try:
            tensors = load_file(str(folder / CONTEXT_FILE), device=str(self.device))
            description = json.loads((folder / "cache.json").read_text())
        except (OSError, ValueError) as error:
            raise UserError(f"{folder} holds no saved context: {error}") from error
        return Context(
            cache,
            tensors["input_ids"],
            tensors.get("attention_mask"),
            tensors["last_logits"],
            description.get("timings", {}),
            description.get("model_id", ""),
        )

    # --- answers ----------------------------------------------------------------------------------

    def stop_token_ids(self) -> list[int]:
        """Token ids that end an answer, from the model's generation configuration."""
        configured = getattr(self.model, "generation_config", None)
        ids = getattr(configured, "eos_token_id", None)
        if ids is None and self.tokenizer is not None:
            ids = self.tokenizer.eos_token_id
        if ids is None:
            return []
        return [ids] if isinstance(ids, int) else list(ids)

    def generate_ids(
        self,
        question_ids: Prompt,
        context: Context,
        max_new_tokens: int,
        stop_token_ids: Sequence[int] | None = None,
    ) -> Generation:
        """Answer greedily with the project's own loop.

        Args:
            question_ids: ids after the context; empty to continue the context itself. For a batch
                one list per sequence; they may differ in length (left-padded).
            context: not consumed.
            max_new_tokens: tokens to generate at most.
            stop_token_ids: default :meth:`stop_token_ids`; pass ``[]`` to ignore the end.

        Returns:
            ``Generation``: ``tokens`` of the first sequence, ``rows`` of all, times, steps.

        Raises:
            UserError: another batch size than the context's, or more tokens than the window.
        """
        question, mask = self.encode(question_ids, begin=False)
        batch = context.input_ids.shape[0]
        if question.numel() == 0:
            question = question.new_zeros(batch, 0)
            mask = None
        if question.shape[0] != batch:
            raise UserError(
                f"{question.shape[0]} questions for a context of {batch} sequences; pass one each"
            )
        if max_new_tokens < 1:
            raise UserError(f"max_new_tokens {max_new_tokens} must be at least 1")
        self._check_length(context.tokens + question.shape[1] + max_new_tokens)
        stops = self.stop_token_ids() if stop_token_ids is None else stop_token_ids
        return generation.greedy(
            self.model,
            context.cache.fork(),
            question,
            mask,
            context.attention_mask,
            context.last_logits,
            max_new_tokens,
            stops,
        )

    def generate(
        self,
        question: Prompt,
        context: Context | None = None,
        max_new_tokens: int = 64,
        **options: Any,
    ) -> str | list[str]:
        """Answer a question, as text.

        Args:
            question: text or ids after the context, one per sequence of it.
            context: from :meth:`prefill`; not consumed. None: the question is the whole prompt,
                prefilled and compressed with the model's method.
            options: passed to transformers' ``generate`` (sampling, beams ...); without any the
                project's own greedy loop runs.

        Returns:
            One string, or a list where several prompts (or ``num_return_sequences``) were given.

        Raises:
            UserError: assisted decoding, which a compressed cache cannot do; no tokenizer.
        """
        for name in _ASSISTED:
            if options.get(name) is not None:
                raise UserError(
                    f"{name} needs a cache that can be rolled back, a compressed one cannot; "
                    "generate without it"
                )
        if self.tokenizer is None:
            raise UserError("this model was loaded without a tokenizer; use generate_ids")
        if context is None:
            context = self.prefill(question)
            question = [[] for _ in range(context.input_ids.shape[0])]
        if not options:
            rows = self.generate_ids(question, context, max_new_tokens).rows
        else:
            rows = self._generate(question, context, max_new_tokens, options)
        texts = [self.tokenizer.decode(row, skip_special_tokens=True) for row in rows]
        return texts[0] if len(texts) == 1 else texts

    def _generate(
        self, question: Prompt, context: Context, max_new_tokens: int, options: dict[str, Any]
    ) -> list[list[int]]:
        ids, mask = self.encode(question, begin=False)
        cache, past = context.cache.fork(), context.input_ids
        past_mask = context.attention_mask
        if ids.shape[1] == 0:
            raise UserError(
                "sampling and beams need at least one question token after the context; prefill "
                "the prompt without its last part and pass that as the question"
            )
        if ids.shape[0] != past.shape[0]:
            raise UserError(
                f"{ids.shape[0]} questions for a context of {past.shape[0]} sequences; "
                "pass one each"
            )
        whole = torch.cat([past, ids], dim=1)
        full_mask = torch.cat(
            [
                torch.ones_like(past) if past_mask is None else past_mask.to(ids.dtype),
                torch.ones_like(ids) if mask is None else mask,
            ],
            dim=1,
        )
        self._check_length(whole.shape[1] + max_new_tokens)
        output = self.model.generate(
            whole,
            attention_mask=full_mask,
            past_key_values=cache,
            max_new_tokens=max_new_tokens,
            **options,
        )
        return output[:, whole.shape[1] :].tolist()


def make_method(method: str | Method, **options: Any) -> Method:
    """A method from its name and the options that are not None.

    Raises:
        UserError: unknown name or option, or options beside a ready-made method.
    """
    given = {name: value for name, value in options.items() if value is not None}
    if isinstance(method, Method):
        if given:
            raise UserError(
                f"options {', '.join(given)} have no effect beside a ready-made method; set them "
                "when making it"
            )
        return method
    return methods.create(method, **given)


def resolve_device(device: str | torch.device) -> torch.device:
    """``auto`` or the name of a device, checked to exist."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        target = torch.device(device)
    except RuntimeError as error:
        raise UserError(f"unknown device {device!r}; use auto, cpu, cuda or cuda:N") from error
    if target.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (target.index or 0) >= count:
            raise UserError(
                f"device {str(device)!r} was asked for, but {count} CUDA devices are usable here; "
                "use device='cpu' or install a CUDA build of torch"
            )
    return target


def probe(model: Any) -> None:
    """Check with a one-token forward that every layer's keys reach our attention function.

    Raises:
        UserError: if the architecture cannot be compressed, with the reason.
    """
    name = type(model).__name__
    cache = RaggedCache(model.config, None, hold_window=1)
    if not cache.ragged_layers:
        warnings.warn(
            f"{name} has no layer with full attention, so nothing will be compressed", stacklevel=3
        )
        return
    ids = torch.zeros(1, 1, dtype=torch.long, device=model.get_input_embeddings().weight.device)
    with torch.no_grad():
        try:
            model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
        except UserError:
            raise
        except Exception as error:
            raise UserError(f"{name} does not run with a compressed cache: {error}") from error
    fed = [layer for layer in cache.ragged_layers if layer.seen]
    deaf = [layer.index for layer in fed if layer.pending]
    if deaf or not fed:
        which = f"layers {deaf}" if deaf else "its layers"
        raise UserError(
            f"{name} is not supported: {which} do not hand the cache's keys to the attention "
            "function unchanged, so queries and keys cannot be observed together"
        )


def _attention_base(name: str) -> str | None:
    if name == "auto":
        return None
    if name not in attention.NAMES:
        raise UserError(f"unknown attention {name!r}; use auto, {', '.join(attention.NAMES)}")
    return name


def _dtype(dtype: str | torch.dtype, device: torch.device) -> str | torch.dtype:
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype == "auto":
        return torch.float32 if device.type == "cpu" else "auto"
    found = getattr(torch, dtype, None)
    if not isinstance(found, torch.dtype):
        raise UserError(f"unknown dtype {dtype!r}; use auto, float32, bfloat16 or float16")
    return found


def _tokenizer(name: str) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError, KeyError):
        # token ids work without one; text asks for it by name
        return None
