"""How a request's tokens are drawn: its fields, and the makers' recommendations, as parameters of the engine."""

import re
import secrets
from dataclasses import replace
from typing import TypeVar

from model.checkpoint.sampling_defaults import SamplingDefaults
from model.sampling_params import SamplingParams
from service.api.bounds import check_token_ids
from service.api.context import JobContext
from service.api.errors import refusal
from service.api.schemas.completions import CompletionBody
from service.api.schemas.generation import GenerationBody
from service.api.schemas.sampling import Sampling

_GREEDY_BELOW = 1e-5
"""Temperatures below this count as 0: dividing logits by them leaves nothing to draw, or overflows."""

_RANDOM = -1
"""The seed that asks for none, as in vLLM and llama.cpp, whose clients send it by default."""

T = TypeVar("T")


def sampling_params(body: Sampling, defaults: SamplingDefaults, context: JobContext) -> SamplingParams:
    """How a request draws its tokens; their number and ends are left open. Raises ApiError."""
    limits = context.client.limits
    temperature = given(body.temperature, defaults.temperature)
    top_k = given(body.top_k, defaults.top_k)
    return SamplingParams(
        max_tokens=0,
        temperature=temperature if temperature >= _GREEDY_BELOW else 0.0,
        top_k=0 if top_k >= limits.vocab_size else max(top_k, 0),
        top_p=given(body.top_p, defaults.top_p),
        min_p=given(body.min_p, defaults.min_p),
        typical_p=body.typical_p,
        top_n_sigma=max(body.top_n_sigma, 0.0),
        filter_order=context.settings.filter_order,
        seed=secrets.randbits(63) if body.seed is None or body.seed == _RANDOM else body.seed % 2**63,
        presence_penalty=body.presence_penalty,
        frequency_penalty=body.frequency_penalty,
        repetition_penalty=given(body.repetition_penalty, defaults.repetition_penalty),
        logit_bias=_logit_bias(body.logit_bias, limits.vocab_size),
    )


def sampling_defaults(body: GenerationBody, defaults: SamplingDefaults) -> SamplingDefaults:
    """The makers' recommended sampling, unless it is greedy and would make several choices the same."""
    greedy = defaults.temperature < _GREEDY_BELOW or defaults.top_k == 1
    return replace(defaults, temperature=1.0, top_k=0) if tries_of(body) > 1 and greedy else defaults


def tries_of(body: GenerationBody) -> int:
    """Number of completions to draw for each prompt."""
    return (isinstance(body, CompletionBody) and body.best_of) or body.n


def given(value: T | None, default: T) -> T:
    """A field's value, or its default where none was sent."""
    return default if value is None else value


def _logit_bias(entries: dict[str, float], vocab_size: int) -> tuple[tuple[int, float], ...]:
    for key in entries:
        if not re.fullmatch("0|[1-9][0-9]{0,9}", key):
            raise refusal("logit_bias", "has a key that is not a token id in plain decimals")
    bias = {int(key): value for key, value in entries.items()}
    check_token_ids("logit_bias", list(bias), vocab_size)
    return tuple(bias.items())
