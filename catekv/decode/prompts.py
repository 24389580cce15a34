"""Reading prompts: text, chat messages, token ids or what a tokenizer returned, and their padding.

Whatever form a prompt has, it becomes token ids [batch, columns], padded on the left, and a mask.
What is none of these forms is refused: a guess would be answered with confidence.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from catekv.errors import UserError
from catekv.models.padding import refuse_unless_left_padding
from catekv.tasks.core.prompt import following_chat, rendered_chat
from catekv.tasks.core.token_ids import beginning_ids, continuing_ids, leading_ids, text_ids

#: One prompt or several: text; chat messages; token ids; or a mapping with ``input_ids`` and
#: perhaps ``attention_mask``, as tokenizers return it.
Prompt = (
    str
    | Sequence[str]
    | Sequence[int]
    | Sequence[Sequence[int]]
    | Sequence[Mapping[str, Any]]
    | Sequence[Sequence[Mapping[str, Any]]]
    | Mapping[str, Any]
    | Tensor
    | np.ndarray
)

_FORMS = (
    "pass text, token ids, chat messages or a mapping with input_ids, of one prompt or of several"
)
#: What tokenizers return besides, and what does not change how a decoder reads the ids.
_IGNORED_KEYS = frozenset(
    {"token_type_ids", "special_tokens_mask", "offset_mapping", "length", "assistant_masks"}
)


@dataclass(frozen=True)
class PromptReader:
    """Reads the prompts of one model.

    Attributes:
        tokenizer: for text and messages; None refuses them.
        vocabulary: number of token ids that the model has; None: not checked.
    """

    tokenizer: Any = None
    vocabulary: int | None = None

    def read(
        self, prompt: Prompt, *, begin: bool = True, before: Sequence[str] | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Token ids int64 [batch, columns], left-padded, and their mask (None: no padding).

        Args:
            prompt: see :data:`Prompt`.
            begin: whether it begins a sequence. Text then gets the special tokens that its
                tokenizer puts before text; otherwise it goes on after ``before``
                (:mod:`catekv.tasks.core.token_ids`).
            before: end of the text before each prompt, for ``begin=False``.

        Raises:
            UserError: no prompt, ids outside of the vocabulary, or a mask that is no left padding.
        """
        if isinstance(prompt, Mapping):
            ids, mask = _read_mapping(prompt)
        elif isinstance(prompt, Tensor | np.ndarray):
            ids, mask = _id_tensor(prompt), None
        else:
            ids, mask = _pad(self._rows(prompt, begin, before))
        self._check_vocabulary(ids)
        return ids, mask

    def _rows(self, prompt: Any, begin: bool, before: Sequence[str] | None) -> list[list[int]]:
        if isinstance(prompt, str):
            return self._texts([prompt], begin, before)
        if not isinstance(prompt, Sequence) or isinstance(prompt, bytes | bytearray | memoryview):
            raise UserError(f"a {type(prompt).__name__} is no prompt; {_FORMS}")
        items = list(prompt)
        if all(isinstance(item, str) for item in items) and items:
            return self._texts(items, begin, before)
        if items and all(isinstance(item, Mapping) for item in items):
            return self._chats([items], begin)
        if items and all(_is_chat(item) for item in items):
            return self._chats(items, begin)
        if all(_is_number(item) for item in items):
            return [_id_row(items)]
        if all(_is_row(item) for item in items):
            return [_id_row(item) for item in items]
        kinds = ", ".join(sorted({type(item).__name__ for item in items}))
        raise UserError(f"a prompt cannot be read from a list of {kinds}; {_FORMS}")

    def _texts(
        self, texts: Sequence[str], begin: bool, before: Sequence[str] | None
    ) -> list[list[int]]:
        tokenizer = self._need_tokenizer("text")
        if begin:
            leading = leading_ids(tokenizer)
            return [beginning_ids(tokenizer, text, leading) for text in texts]
        # as many as texts, or whoever asks refuses the batch
        ends = [""] * len(texts) if before is None else [*before, *[""] * len(texts)]
        return [
            continuing_ids(tokenizer, text, end) for text, end in zip(texts, ends, strict=False)
        ]

    def _chats(self, chats: Sequence[Sequence[Mapping[str, Any]]], begin: bool) -> list[list[int]]:
        """Ids of conversations as the tokenizer's template writes them, the answer begun."""
        tokenizer = self._need_tokenizer("chat messages")
        if not getattr(tokenizer, "chat_template", None):
            raise UserError(
                "the tokenizer has no chat template for chat messages; pass the prompt as text"
            )
        rendered = rendered_chat if begin else following_chat
        rows = []
        for chat in chats:
            _check_messages(chat)
            # as it is: a template writes all of its special tokens
            rows.append(text_ids(tokenizer, rendered(tokenizer, chat)))
        return rows

    def _need_tokenizer(self, what: str) -> Any:
        if self.tokenizer is None:
            raise UserError(
                f"this model was loaded without a tokenizer, which {what} needs; pass token ids"
            )
        return self.tokenizer

    def _check_vocabulary(self, ids: Tensor) -> None:
        if not ids.numel():
            return
        lowest, highest = (int(bound) for bound in torch.aminmax(ids))
        if lowest < 0 or (self.vocabulary is not None and highest >= self.vocabulary):
            wrong = lowest if lowest < 0 else highest
            known = "" if self.vocabulary is None else f" (0 to {self.vocabulary - 1})"
            raise UserError(
                f"token id {wrong} is outside of the model's vocabulary{known}; use the tokenizer "
                "of this model"
            )


def read_mask(mask: Any, ids: Tensor) -> Tensor | None:
    """An attention mask of ``ids`` as int64 [batch, columns]; None if nothing is padding.

    Raises:
        UserError: another shape, other values than 0 and 1, or no left padding.
    """
    try:
        values = torch.as_tensor(mask)
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"the attention_mask is no array of 0 and 1: {error}") from error
    if values.ndim == 1 and ids.shape[0] == 1:
        values = values[None]
    if values.shape != ids.shape:
        raise UserError(
            f"attention_mask {tuple(values.shape)} does not fit ids {tuple(ids.shape)}; pass 1 for "
            "each token and 0 for padding"
        )
    if values.is_complex() or not bool(((values == 0) | (values == 1)).all()):
        raise UserError(
            "the attention_mask holds other values than 0 and 1; pass 1 for each token and 0 for "
            "padding"
        )
    refuse_unless_left_padding(values)
    return None if bool(values.all()) else values.long()


def _read_mapping(prompt: Mapping[str, Any]) -> tuple[Tensor, Tensor | None]:
    if "input_ids" not in prompt:
        names = ", ".join(map(str, prompt)) or "nothing"
        raise UserError(f"a mapping is a prompt by its input_ids, this one has {names}; {_FORMS}")
    other = sorted(
        str(name)
        for name, value in prompt.items()
        if name not in _IGNORED_KEYS | {"input_ids", "attention_mask"} and value is not None
    )
    if other:
        raise UserError(
            f"the prompt has {', '.join(other)} besides its input_ids, which would be lost; only "
            "text is read: pass input_ids and attention_mask"
        )
    given, mask = prompt["input_ids"], prompt.get("attention_mask")
    if isinstance(given, Tensor | np.ndarray):
        ids, own = _id_tensor(given), None
        return ids, own if mask is None else read_mask(mask, ids)
    if isinstance(given, str) or not isinstance(given, Sequence):
        raise UserError(f"input_ids hold a {type(given).__name__} instead of token ids")
    if given and all(_is_row(item) for item in given):
        rows = [_id_row(item) for item in given]
    else:
        rows = [_id_row(given)]
    lengths = [len(row) for row in rows]
    ids, own = _pad(rows)
    if mask is None:
        return ids, own
    if len(set(lengths)) == 1:
        return ids, read_mask(mask, ids)
    return ids, _ragged_mask(mask, lengths, ids)


def _ragged_mask(masks: Any, lengths: Sequence[int], ids: Tensor) -> Tensor | None:
    """The mask of rows of several lengths, left-padded as they are."""
    sized = all(hasattr(row, "__len__") for row in masks)
    if not sized or [len(row) for row in masks] != list(lengths):
        raise UserError("the attention_mask does not fit the input_ids; pass 0 or 1 for each token")
    width = ids.shape[1]
    return read_mask([[0] * (width - len(row)) + list(row) for row in masks], ids)


def _id_tensor(given: Tensor | np.ndarray) -> Tensor:
    """int64 [batch, columns] of an array of one or two dimensions."""
    if not _holds_whole_numbers(given):
        raise UserError(f"token ids are whole numbers, not an array of {given.dtype}; {_FORMS}")
    if given.ndim not in (1, 2):
        raise UserError(
            f"token ids of {given.ndim} dimensions are no prompt; pass [tokens] or [batch, tokens]"
        )
    ids = (given if isinstance(given, Tensor) else torch.from_numpy(given.astype(np.int64))).long()
    return ids if ids.ndim == 2 else ids[None]


def _holds_whole_numbers(array: Tensor | np.ndarray) -> bool:
    if isinstance(array, np.ndarray):
        return array.dtype.kind in "iu"
    return not (array.is_floating_point() or array.is_complex() or array.dtype == torch.bool)


def _is_number(item: Any) -> bool:
    if isinstance(item, Tensor | np.ndarray):
        return item.ndim == 0
    return isinstance(item, int | float | complex | np.generic)


def _is_row(item: Any) -> bool:
    """Whether an item of a list is the token ids of one prompt."""
    if isinstance(item, Tensor | np.ndarray):
        return item.ndim == 1
    return (
        isinstance(item, Sequence)
        and not isinstance(item, str | bytes | bytearray)
        and all(_is_number(value) for value in item)
    )


def _is_chat(item: Any) -> bool:
    return (
        isinstance(item, Sequence)
        and not isinstance(item, str)
        and len(item) > 0
        and all(isinstance(message, Mapping) for message in item)
    )


def _id_row(row: Any) -> list[int]:
    """Python integers of one row of ids."""
    if isinstance(row, Tensor | np.ndarray):
        return _id_tensor(row)[0].tolist()
    if all(type(value) is int for value in row):
        return list(row)
    return [_id(value) for value in row]


def _id(value: Any) -> int:
    array = isinstance(value, Tensor | np.ndarray)
    whole = _holds_whole_numbers(value) if array else not isinstance(value, bool | np.bool_)
    try:
        if whole:
            return operator.index(value)
    except TypeError:
        pass
    raise UserError(f"token ids are whole numbers, not {value!r}; {_FORMS}")


def _pad(rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor | None]:
    """Rows of any lengths as ids [batch, columns], left-padded, and their mask."""
    width = max(map(len, rows), default=0)
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for index, row in enumerate(rows):
        if row:
            try:
                ids[index, width - len(row) :] = torch.tensor(row)
            except (OverflowError, ValueError, RuntimeError) as error:
                raise UserError("a token id is larger than any vocabulary") from error
            mask[index, width - len(row) :] = 1
    return ids, None if bool(mask.all()) else mask


def _check_messages(chat: Sequence[Mapping[str, Any]]) -> None:
    """``UserError`` unless these are chat messages of text."""
    for message in chat:
        if not isinstance(message.get("role"), str) or not (
            "content" in message or "tool_calls" in message
        ):
            raise UserError(
                f"a chat message is {{'role': ..., 'content': ...}}, this one has "
                f"{', '.join(map(str, message)) or 'nothing'}"
            )
        content = message.get("content")
        parts = content if isinstance(content, list | tuple) else []
        kinds = {part.get("type") if isinstance(part, Mapping) else part for part in parts}
        if kinds - {"text"}:
            raise UserError(
                "a chat message holds more than text; only text is read: leave "
                f"{', '.join(sorted(map(str, kinds - {'text'})))} out"
            )
        if content is not None and not isinstance(content, str | list | tuple):
            raise UserError(f"the content of a chat message is text, not {content!r}")
