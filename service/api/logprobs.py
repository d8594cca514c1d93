"""Log-probabilities in JSON, for all forms of answers."""

from collections.abc import Sequence
from typing import Any

from model.token_logprobs import TokenLogprobs
from service.api.schemas.answers import PromptLogprob, PromptLogprobs, TokenLogprob, TopLogprob
from service.generation import Piece
from service.text.interface import Tokenizer

LEAST = -9999.0
"""Stands for minus infinity, which JSON cannot write; the number is OpenAI's."""


def finite(logprob: float) -> float:
    """`logprob`, raised to LEAST if it is below."""
    return max(logprob, LEAST)


def token_logprobs(tokenizer: Tokenizer, pieces: Sequence[Piece]) -> list[TokenLogprob]:
    """The log-probabilities of the pieces' tokens, with the likeliest ones in the place of each.

    Each token that was drawn has an entry, also a stop token that is left out of the text, as in vLLM's chats.
    """

    def entry(token: int, logprob: float) -> dict[str, Any]:
        raw = tokenizer.token_bytes(token)
        return {"token": raw.decode(errors="replace"), "logprob": finite(logprob), "bytes": list(raw)}

    def place(token: int, known: TokenLogprobs) -> TokenLogprob:
        likeliest = zip(known.top_tokens, known.top_logprobs, strict=True)
        tops = [TopLogprob(**entry(other, logprob)) for other, logprob in likeliest]
        return TokenLogprob(**entry(token, known.chosen), top_logprobs=tops)

    return [
        place(piece.token, piece.logprobs) for piece in pieces if piece.token is not None and piece.logprobs is not None
    ]


def prompt_logprobs(
    tokenizer: Tokenizer, prompt: Sequence[int], scores: Sequence[TokenLogprobs], top: int
) -> PromptLogprobs:
    """The log-probabilities of a prompt's tokens, with the `top` likeliest ones in the place of each."""

    def entry(token: int, logprob: float, rank: int) -> PromptLogprob:
        text = tokenizer.token_bytes(token).decode(errors="replace")
        return PromptLogprob(logprob=finite(logprob), rank=rank, decoded_token=text)

    def place(token: int, known: TokenLogprobs) -> dict[str, PromptLogprob]:
        likeliest = zip(known.top_tokens[:top], known.top_logprobs, strict=False)
        tops = {str(other): entry(other, logprob, rank) for rank, (other, logprob) in enumerate(likeliest, 1)}
        return {str(token): entry(token, known.chosen, known.rank)} | tops

    return [None, *(place(token, known) for token, known in zip(prompt[1:], scores, strict=True))]
