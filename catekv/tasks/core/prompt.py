"""From a sample to token ids: chat template, answer prefix and BOS, each exactly once.

The boundary between context and question is explicit, because most comparisons compress the
context first and ask afterwards. Both parts are tokenised on their own; their concatenation is the
full prompt.
"""

from __future__ import annotations

import re
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

    def question_ids(self, context: str, question: str, answer_prefix: str) -> list[int]:
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

        Raises:
            UserError: the text has the BOS token that the tokenizer puts before prompts somewhere
                else too. What a template writes is right as it is.
        """
        if self.after and not literal:
            answer_prefix = answer_prefix.lstrip()
        prompt = EncodedPrompt(
            self.context_ids(context), self.question_ids(context, question, answer_prefix)
        )
        self._check_bos(prompt.ids)
        return prompt

    def _check_bos(self, ids: list[int]) -> None:
        bos = getattr(self.tokenizer, "bos_token_id", None)
        if bos is None or bos not in self.leading or bos == self.tokenizer.eos_token_id:
            return
        wrapping = self.tokens(self.before) + self.tokens(self.after)
        begins = self.tokens(self.before)[: len(self.leading)] == self.leading
        found = ids.count(bos) - wrapping.count(bos) + (1 if begins else 0)
        if found != 1:
            raise UserError(
                f"the prompt holds the BOS token {found} times instead of once at its start; "
                "remove it from the text or choose another chat template"
            )


def prompt_format(tokenizer: Any, chat_template: str | None = "auto") -> PromptFormat:
    """Find out how ``tokenizer`` wraps a user turn.

    Args:
        tokenizer: a transformers tokenizer.
        chat_template: ``auto`` (the tokenizer's own chat template with its generation prompt, or
            none if it has none), ``base`` or None (no template), a name of :data:`TEMPLATES` (any
            case), or a text with the place holder ``{prompt}``.

    Raises:
        UserError: unknown template, or one that drops the user's text.
    """
    name = chat_template or "base"
    if name == "auto" and getattr(tokenizer, "chat_template", None):
        rendered = tokenizer.apply_chat_template(
            [{"role": "user", "content": _MARKER}],
            tokenize=False,
            add_generation_prompt=True,
            # a begun answer leaves no room for a thinking phase, and today's date (which some
            # templates write) would make the prompts of two days differ
            enable_thinking=False,
            date_string="26 Jul 2024",
        )
    else:
        template = "{prompt}" if name == "auto" else TEMPLATES.get(name.lower(), name)
        if template.count("{prompt}") != 1:
            raise UserError(
                f"unknown chat template {name!r}; use auto, {', '.join(TEMPLATES)} or a text with "
                "the place holder {prompt}"
            )
        rendered = template.replace("{prompt}", _MARKER)
    if rendered.count(_MARKER) != 1:
        raise UserError(
            "the tokenizer's chat template does not render a user message exactly once; "
            "choose a template by name, for example chat_template='base'"
        )
    before, after = rendered.split(_MARKER)
    return PromptFormat(tokenizer, before, after, leading_ids(tokenizer))


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
