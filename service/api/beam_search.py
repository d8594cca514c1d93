"""The beam search that a request asks for, in vLLM's form. It goes with nothing that changes what would be drawn."""

from typing import Any

from model.sampling_params import SamplingParams
from service.api.errors import refusal
from service.api.schemas.generation import GenerationBody
from service.engine.messages import BeamSearch, Grammar

_ALONE: dict[str, tuple[Any, ...]] = {"length_penalty": (1.0,), "early_stopping": (False,)}
"""Fields of a search, each with the values that ask for nothing without one."""

_EXCLUDED: dict[str, tuple[Any, ...]] = {
    "stream": (False,),
    "temperature": (None, 0),
    "top_p": (None, 1),
    "top_k": (None, 0, -1),
    "min_p": (None, 0),
    "typical_p": (1,),
    "top_n_sigma": (0, -1),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "repetition_penalty": (None, 1),
    "logit_bias": ({},),
    "allowed_token_ids": (None,),
    "bad_words": ([],),
    "min_tokens": (0,),
    "stop": (None, []),
    "prompt_logprobs": (None,),
    "inspect": (None,),
}
"""Fields that a search has no use for, each with the values that ask for nothing."""


def beam_search(
    body: GenerationBody, width: int, logprobs: int | None, grammar: Grammar | None, *, scores_echo: bool
) -> BeamSearch | None:
    """The search with so many beams; None if the request draws. Raises ApiError."""
    if not body.use_beam_search:
        for name, idle in _ALONE.items():
            if getattr(body, name) not in idle:
                raise refusal(name, "goes with use_beam_search")
        return None
    for name, idle in _EXCLUDED.items():
        if getattr(body, name) not in idle:
            raise refusal(name, "does not go with use_beam_search")
    if grammar is not None:
        raise refusal(grammar.field, "does not go with use_beam_search")
    if body.max_tokens == 0 or scores_echo:
        raise refusal("echo", "goes with use_beam_search neither at max_tokens 0 nor with logprobs")
    return BeamSearch(width, body.n, body.length_penalty, body.early_stopping, logprobs)


def searching(search: BeamSearch, max_tokens: int, ends: tuple[int, ...]) -> SamplingParams:
    """The parameters of a search's request, where the tokens `ends` end a completion."""
    top = max(search.top(len(ends)), search.logprobs or 0)
    return SamplingParams(max_tokens=max_tokens, stop_token_ids=ends, temperature=0.0, logprobs=top)
