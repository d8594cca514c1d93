"""Lengths: how many tokens a prompt may have, and how many a completion behind it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from model.limits import ModelLimits
from service.api.bounds import check_at_most
from service.api.context import JobContext
from service.api.errors import ApiError, refusal


class FieldNames(NamedTuple):
    """Names under which a request sent its texts and a limit of tokens, for refusals that tell of them."""

    prompt: str = "prompt"
    max_tokens: str = "max_tokens"


PLAIN_NAMES = FieldNames()


@dataclass(frozen=True, slots=True)
class Room:
    """The context that a prompt and its completion share, and how a request names them.

    Refusals are in OpenAI's and vLLM's words, by which clients know that a text has to be cut.
    """

    limits: ModelLimits
    names: FieldNames

    @property
    def tokens(self) -> int:
        """Most tokens of a prompt and its completion."""
        return self.limits.capacity

    def too_long(self, prompt: str) -> ApiError:
        """The refusal of a prompt alone, whose number of tokens is told as `prompt`."""
        return self._exceeded(f"your {self.names.prompt} resulted in {prompt}.", self.names.prompt)

    def length(self, prompt: int, wanted: int | None, default: int | None) -> int:
        """Number of tokens to generate after a prompt of `prompt` tokens. Raises ApiError if they do not fit."""
        names, room = self.names, self.tokens
        if prompt == 0:
            raise refusal(names.prompt, "has no tokens")
        if prompt > room or (prompt == room and wanted != 0):
            full = ", which leaves no room for a completion" if wanted != 0 else ""
            raise self.too_long(f"{prompt} tokens{full}")
        if wanted is not None and prompt + wanted > room:
            raise self._exceeded(
                f"you requested {prompt + wanted} tokens ({prompt} in the {names.prompt}, {wanted} in "
                f"the completion). Please reduce the length of the {names.prompt}, or {names.max_tokens}.",
                names.max_tokens,
            )
        return min(room - prompt, default or room) if wanted is None else wanted

    def _exceeded(self, problem: str, param: str) -> ApiError:
        bound = f"This model's maximum context length is {self.tokens} tokens"
        if self.tokens < self.limits.max_context:
            bound += " here, as many as the server's KV cache holds"
        return ApiError(400, f"{bound}. However, {problem}", param=param, code="context_length_exceeded")


def completion_lengths(
    prompts: Sequence[Sequence[int]], wanted: int | None, default: int | None, room: Room, context: JobContext
) -> list[int]:
    """Number of tokens to generate after each prompt. Raises ApiError if one does not fit, or all are too many."""
    lengths = [room.length(len(prompt), wanted, default) for prompt in prompts]
    check_together(room.names.prompt, prompts, context)
    return lengths


def check_together(param: str, prompts: Sequence[Sequence[int]], context: JobContext) -> None:
    """Refuse prompts that have too many tokens together."""
    check_at_most(param, sum(map(len, prompts)), context.settings.max_request_tokens, "tokens of all prompts")
