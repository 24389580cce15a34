"""From a sample to token ids: chat template, answer prefix and BOS, each added exactly once.

BOS is judged only where it is added: a tokenizer's own template writes all of its special tokens,
other text gets what its tokenizer puts before text unless it begins with that already, and special
tokens inside a user's text are the user's.

The boundary between context and question is explicit, because most comparisons compress the
context first and ask afterwards. Both parts are tokenised on their own; their concatenation is the
full prompt.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from catekv.errors import UserError
from catekv.tasks.core.sample import Sample
from catekv.tasks.core.token_ids import (
    ANCHOR_CHARACTERS,
    beginning_ids,
    continuing_ids,
    end_of_text,
    leading_ids,
    text_ids,
)

_SYSTEM = "You are a helpful assistant"
_CHATML = (
    f"<|im_start|>system\n{_SYSTEM}<|im_end|>\n<|im_start|>user\n{{prompt}}<|im_end|>\n"
    "<|im_start|>assistant\n"
)
#: Turn markers by the names that RULER and CateKV use; RULER's long system texts are left out.
TEMPLATES: dict[str, str] = {
    "none": "{prompt}",
    "base": "{prompt}",
    "meta-chat": "[INST] {prompt} [/INST]",
    "vicuna-chat": "USER: {prompt} ASSISTANT:",
    "lwm-chat": f"{_SYSTEM}. USER: {{prompt}} ASSISTANT:",
    "lwm": "USER: {prompt}\nASSISTANT:",
    "command-r-chat": (
        "<BOS_TOKEN><|START_OF_TURN_TOKEN|><|USER_TOKEN|>{prompt}<|END_OF_TURN_TOKEN|>"
        "<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>"
    ),
    "chatglm-chat": "[gMASK]sop<|user|> \n {prompt}<|assistant|> \n",
    "glm": f"[gMASK]sop<|system|>\n{_SYSTEM}<|user|> \n{{prompt}}<|assistant|>\n",
    "rwkv": "User: {prompt}\n\nAssistant:",
    "phi3": "<|user|>\n{prompt}<|end|>\n<|assistant|>\n",
    "phi": f"<|system|>\n{_SYSTEM}<|end|>\n<|user|>\n{{prompt}}<|end|>\n<|assistant|>\n",
    "meta-llama3": (
        "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\n{prompt}<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
    ),
    "llama-3": (
        f"<|begin_of_text|><|start_header_id|>system<|end_header_id|>{_SYSTEM}<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>{prompt}<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>"
    ),
    "yi": _CHATML,
    "qwen": _CHATML,
    "jamba": "<|startoftext|><|bom|><|user|> {prompt}<|eom|><|bom|><|assistant|>",
    "nemotron5-instruct": (
        "<SPECIAL_10>System\n\n<SPECIAL_11>User\n{prompt}\n<SPECIAL_11>Assistant\n"
    ),
}
_MARKER = "catekvpromptmarker"
#: metadata of a sample that is continued as it is, whatever template a run asks for
WITHOUT_TEMPLATE: dict[str, Any] = {"chat_template": "base", "without_template": True}


@dataclass(frozen=True)
class EncodedPrompt:
    """Token ids of a prompt; ``context_ids + question_ids`` is what the model reads."""

    context_ids: list[int]
    question_ids: list[int]

    @property
    def ids(self) -> list[int]:
        return self.context_ids + self.question_ids

    def __len__(self) -> int:
        return len(self.context_ids) + len(self.question_ids)


@dataclass
class PromptFormat:
    """How one tokenizer wraps a user turn; made once by :func:`prompt_format`.

    ``before`` and ``after`` surround the user's text; ``leading`` are the ids that the tokenizer
    puts before plain text (mostly BOS; the rule is that of :mod:`catekv.tasks.core.token_ids`).
    """

    tokenizer: Any
    before: str
    after: str
    leading: list[int]

    def tokens(self, text: str) -> list[int]:
        """Ids of a piece of text without special tokens."""
        return text_ids(self.tokenizer, text)

    def context_ids(self, context: str) -> list[int]:
        return beginning_ids(self.tokenizer, self.before + context, self.leading)

    def question_ids(self, context: str, question: str, answer_prefix: str = "") -> list[int]:
        """Ids of what follows the context, as of a true continuation."""
        begun = context if len(context) >= ANCHOR_CHARACTERS else self.before + context
        text = question + self.after + answer_prefix
        return continuing_ids(self.tokenizer, text, end_of_text(begun))

    def encode(
        self, context: str, question: str, answer_prefix: str, *, literal: bool = False
    ) -> EncodedPrompt:
        """Ids of the whole prompt.

        The white space before an answer prefix separates it from a plain question; after an
        assistant header it is dropped, unless ``literal``.
        """
        if self.after and not literal:
            answer_prefix = answer_prefix.lstrip()
        context_ids = self.context_ids(context)
        question_ids = self.question_ids(context, question, answer_prefix)
        if not self.before + context and question_ids[: len(self.leading)] == self.leading:
            # the question begins the prompt
            question_ids = question_ids[len(self.leading) :]
        return EncodedPrompt(context_ids, question_ids)


def template_name(chat_template: str | None) -> str:
    """The one word by which records know a choice of ``chat_template``.

    ``none``, ``base`` and None are the same choice; records made so far say ``base``.
    """
    name = chat_template or "none"
    return "base" if name.lower() in ("none", "base") else name


def prompt_format(
    tokenizer: Any, chat_template: str | None = "auto", system: str | None = None
) -> PromptFormat:
    """Find out how ``tokenizer`` wraps a user turn.

    Args:
        tokenizer: a transformers tokenizer.
        chat_template: ``auto`` (the tokenizer's own chat template with its generation prompt, or
            none if it has none), ``none`` or None (no template; ``base`` is its older name), a name
            of :data:`TEMPLATES` (any case), or a text with the place holder ``{prompt}``.
        system: system message, instead of the template's own.

    Raises:
        UserError: unknown template, one that fails or drops the user's text, or one without a place
            for the system message.
    """
    name = chat_template or "none"
    own = name == "auto" and bool(getattr(tokenizer, "chat_template", None))
    rendered = _own_turn(tokenizer, system) if own else _named_turn(name, system)
    if rendered.count(_MARKER) != 1:
        raise UserError(
            "the tokenizer's chat template does not render a user message exactly once; "
            "choose a template by name, or none"
        )
    before, after = rendered.split(_MARKER)
    # its own template writes all special tokens that the model wants
    return PromptFormat(tokenizer, before, after, [] if own else leading_ids(tokenizer))


def rendered_chat(tokenizer: Any, messages: Sequence[Mapping[str, Any]], **options: Any) -> str:
    """Chat messages as the tokenizer's template writes them, the answer begun.

    Raises:
        UserError: the template fails.
    """
    try:
        return str(
            tokenizer.apply_chat_template(
                [dict(message) for message in messages],
                **{"tokenize": False, "add_generation_prompt": True, **options},
            )
        )
    except Exception as error:
        # templates are programs of their own, which refuse in many ways
        raise UserError(
            f"the tokenizer's chat template does not take these messages: {error}"
        ) from error


def following_chat(tokenizer: Any, messages: Sequence[Mapping[str, Any]]) -> str:
    """The same as later turns of a conversation.

    Without what a template writes once, where a conversation begins (BOS, a system message of its
    own), and with what it writes before every turn.

    Raises:
        UserError: the template fails.
    """
    earlier = [{"role": role, "content": _MARKER} for role in ("user", "assistant")]
    whole = rendered_chat(tokenizer, messages)
    try:
        before = rendered_chat(tokenizer, earlier, add_generation_prompt=False)
        after = rendered_chat(tokenizer, [*earlier, *messages])
    except UserError:
        # roles that follow no answer, e.g. a system message
        before = after = ""
    (_, _, end), (_, found, rest) = before.rpartition(_MARKER), after.rpartition(_MARKER)
    if found and rest.startswith(end) and messages[0]["role"] != "system":
        return rest[len(end) :]
    return whole.removeprefix(getattr(tokenizer, "bos_token", None) or "")


def _own_turn(tokenizer: Any, system: str | None) -> str:
    """A user turn in the tokenizer's own template, with a marker for the text."""
    messages = [{"role": "user", "content": _MARKER}]
    if system is not None:
        messages.insert(0, {"role": "system", "content": system})
    try:
        rendered = rendered_chat(
            tokenizer,
            messages,
            # a begun answer leaves no room for a thinking phase, and today's date (which some
            # templates write) would make the prompts of two days differ
            enable_thinking=False,
            date_string="26 Jul 2024",
        )
    except UserError as error:
        raise UserError(f"{error}; choose a chat template by name, or none") from error.__cause__
    if system is not None and system.strip() not in rendered:
        raise UserError(
            "the tokenizer's chat template has no place for a system message; leave it out, or "
            "write it into the text"
        )
    return rendered


def _named_turn(name: str, system: str | None) -> str:
    """The same in a template of :data:`TEMPLATES`, or in one that is a text."""
    template = "{prompt}" if name == "auto" else TEMPLATES.get(name.lower(), name)
    if template.count("{prompt}") != 1:
        raise UserError(
            f"unknown chat template {name!r}; use auto, {', '.join(TEMPLATES)} or a text with "
            "the place holder {prompt}"
        )
    before, after = template.split("{prompt}")
    if system is not None:
        if _SYSTEM not in before:
            raise UserError(
                f"the chat template {name!r} has no place for a system message; leave it out, or "
                "write it into the text"
            )
        before = before.replace(_SYSTEM, system)
    return before + _MARKER + after


#: What a chat template leaves in a finished prompt; official files may hold it already.
_TEMPLATE_TRACE = re.compile(
    r"<\|[\w]+\|>|\[/?INST\]|\[gMASK\]|<SPECIAL_\d+>|^<s>|\bASSISTANT:|<BOS_TOKEN>"
)


def has_template(text: str) -> bool:
    """Whether a finished prompt already carries turn markers of a chat template."""
    return _TEMPLATE_TRACE.search(text[:400] + "\n" + text[-600:]) is not None


def encode(sample: Sample, tokenizer: Any, chat_template: str | None = "auto") -> EncodedPrompt:
    """Token ids of a sample.

    Args:
        sample: its parts are used as they are; a sample read from an official file whose context
            boundary is unknown gets all ids but the last as context (query-aware use only).
        tokenizer: a transformers tokenizer.
        chat_template: see :func:`prompt_format`; ``auto`` prefers the template that the sample was
            fitted with (``sample.metadata["chat_template"]``). Samples that must have none
            (:data:`WITHOUT_TEMPLATE`) get none.

    Returns:
        ``context_ids`` with BOS, the start of the user turn and the context; ``question_ids`` with
        the question, the end of the turn, the assistant header and the answer prefix.
    """
    if chat_template == "auto" or sample.metadata.get("without_template"):
        chat_template = sample.metadata.get("chat_template", "auto")
    wrapped = prompt_format(tokenizer, chat_template)
    literal = sample.wording.startswith("official")
    prompt = wrapped.encode(sample.context, sample.question, sample.answer_prefix, literal=literal)
    if prompt.question_ids and not sample.metadata.get("query_aware_only"):
        return prompt
    ids = prompt.ids
    return EncodedPrompt(ids[:-1], ids[-1:])
