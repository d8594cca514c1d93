"""Tells markers, the tokens that open, close and end turns, from text: by their use, not by their label.

Checkpoints label such tokens carelessly: official files have end tokens that are typed as text, or no types at all.
This module knows the forms of markers, and which of them a chat template writes; its callers decide what becomes of
them.
"""

import re
from collections.abc import Iterator, Mapping

from service.text.sandbox import SandboxedTemplate, TemplateError

END_TEXTS = frozenset(
    {
        "<|eot_id|>",
        "<|eom_id|>",
        "<|im_end|>",
        "<|end|>",
        "<end_of_turn>",
        "<|endoftext|>",
        "<|end_of_text|>",
        "<｜end▁of▁sentence｜>",
    }
)
"""Tokens that end a turn in the families served here; many files name only one of several."""

_NAME = r"[^\s<>|｜'\"\\{}]+"
_UNMISTAKABLE = rf"<\|{_NAME}\|>|<｜{_NAME}｜>|<(?:start|end)_of_[a-z]+>"
"""Forms that nobody writes for another purpose."""
_BRACKETED = r"\[/?[A-Z_]{3,}\]"
_READ_BY_CLIENTS = r"think|thought|reason|tool|function"
_WRITTEN = re.compile(rf"{_UNMISTAKABLE}|{_BRACKETED}|</?[a-z_]*(?:{_READ_BY_CLIENTS})[a-z_]*>")

_PROBES = (("system", "user", "assistant"), ("user", "assistant"), ("user",))
"""Conversations to render, by their roles; not every template takes a system's turn or an assistant's."""


def is_marker(text: str) -> bool:
    """Whether a token is spelt like a marker, so that making it special takes no ordinary word from the vocabulary."""
    return re.fullmatch(r"<[^\s<>]+>|\[[^\s\[\]]+\]", text) is not None


def is_unmistakable(text: str) -> bool:
    """Whether a text can only be a marker, even if no vocabulary had it."""
    return re.fullmatch(_UNMISTAKABLE, text) is not None


def is_bracketed(text: str) -> bool:
    """Whether a marker has the form of [INST], which a vocabulary may also have learnt as an ordinary word."""
    return re.fullmatch(_BRACKETED, text) is not None


def is_content(text: str) -> bool:
    """Whether a marker belongs to a completion's text, because clients read reasoning and tool calls out of it."""
    return re.search(_READ_BY_CLIENTS, text, re.IGNORECASE) is not None


def template_markers(source: str | None, named_tokens: Mapping[str, str]) -> frozenset[str]:
    """The markers in a chat template's source, and those that it puts together while it renders a conversation."""
    if source is None:
        return frozenset()
    texts = (source, *_renderings(source, named_tokens))
    return frozenset(marker for text in texts for marker in _WRITTEN.findall(text))


def _renderings(source: str, named_tokens: Mapping[str, str]) -> Iterator[str]:
    try:
        template = SandboxedTemplate(source)
    except TemplateError:
        return  # A broken template is reported where conversations are rendered with it.
    for roles in _PROBES:
        messages = [{"role": role, "content": "x"} for role in roles]
        try:
            yield template.render(
                {**named_tokens, "messages": messages, "tools": None, "documents": None, "add_generation_prompt": True}
            )
        except TemplateError:
            continue
