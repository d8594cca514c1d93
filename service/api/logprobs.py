"""Log-probabilities in JSON, for both forms of answers."""

from collections.abc import Sequence

from model.contract import TokenLogprobs
from service.api.schemas.answers import PromptLogprob, PromptLogprobs
from service.text.interface import Tokenizer

LEAST = -9999.0
"""Stands for minus infinity, which JSON cannot write; the number is OpenAI's."""


def finite(logprob: float) -> float:
    """`logprob`, raised to LEAST if it is below."""
    return max(logprob, LEAST)


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
