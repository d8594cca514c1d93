"""The inspection request that the fields of a body ask for, within the limits on what it may cost."""

from dataclasses import replace

from model.checkpoint.sampling_defaults import SamplingDefaults
from model.inspection import InspectionRequest
from model.sampling_params import SamplingParams
from service.api.bounds import check_at_most, check_size
from service.api.context import JobContext
from service.api.errors import refusal
from service.api.inspection_writer import named_heads
from service.api.sampling import sampling_params, tries_of
from service.api.schemas.generation import GenerationBody
from service.api.schemas.inspect import InspectBody
from service.api.schemas.inspect_options import InspectOptions
from service.api.schemas.sampling import Sampling
from service.text.respelling import respellings

MOST_STAGES = 14
"""Limit of the stages in a distribution: the model's own, and every setting that changes it."""
CANDIDATE_BYTES = 8 * (MOST_STAGES + 1)
"""Most bytes of a candidate in a distribution: a number of 8 for each stage, and its noise."""

TOKEN_BYTES = 80
"""About the size of a token in an answer."""


def inspection_request(body: InspectBody, prompt: int, context: JobContext) -> InspectionRequest:
    """The inspection that a body of `/v1/inspect` asks for. Raises ApiError."""
    if body.reduction == "rollout" and body.positions is not None:
        raise refusal("positions", "do not go with rollout, which is of all positions")
    positions = body.positions if body.positions is not None else [*range(prompt)]
    if positions != sorted(set(positions)) or (positions and not 0 <= positions[0] <= positions[-1] < prompt):
        raise refusal("positions", f"should be ascending, from 0 to {prompt - 1}")
    if body.distribution is None and body.settings is not None:
        raise refusal("settings", "need distribution")
    shown = body.max_tokens + len(positions) * (len(body.settings or ()) or not body.max_tokens)
    if body.distribution is not None:
        check_at_most("distribution", shown, context.settings.max_distributions, "distributions")
    rows = len(positions) + body.max_tokens
    asked = _bounded(body, context, rows=rows, cells=rows * (prompt + body.max_tokens))
    if body.embedding is not None:
        check_at_most("embedding", rows, context.settings.max_lens_rows, "rows")
        check_at_most("embedding", body.embedding, context.settings.max_logprobs, "tokens")
    if body.embedding_vectors:
        if body.embedding is None:
            raise refusal("embedding_vectors", "needs embedding")
        size = 4 * rows * context.client.limits.size.hidden_size
        check_size("embedding_vectors", size, context.settings.max_inspection)
    if body.position_encoding:
        size = 4 * rows * context.client.limits.encoding_width
        check_size("position_encoding", size, context.settings.max_inspection)
    return replace(
        asked,
        positions=positions,
        generated=body.max_tokens > 0,
        embedding=body.embedding,
        vectors=body.embedding_vectors,
        encoding=body.position_encoding,
    )


def token_inspection_request(
    body: GenerationBody, context: JobContext, lengths: list[int], prompts: list[list[int]]
) -> InspectionRequest:
    """The inspection of the places where tokens are drawn, beside them. Raises ApiError; fewer max_tokens may help."""
    assert body.inspect is not None
    if not (body.inspect.attention or body.inspect.residual) and body.inspect.lens == body.inspect.distribution is None:
        raise refusal("inspect", "says nothing to look at")
    tries = tries_of(body)
    rows = tries * sum(lengths)
    cells = tries * sum(length * (len(prompt) + length) for length, prompt in zip(lengths, prompts, strict=True))
    asked = _bounded(body.inspect, context, rows=rows, cells=cells, path="inspect.")
    if asked.distribution is not None:
        size = rows * CANDIDATE_BYTES * (2 * asked.distribution + 1)
        check_size("inspect.distribution", size, context.settings.max_inspection)
    return replace(asked, generated=True)


def trials_of(body: InspectBody, defaults: SamplingDefaults, context: JobContext) -> list[SamplingParams]:
    """The settings under which tokens are drawn on trial. Raises ApiError."""
    if body.distribution is None or (body.max_tokens and body.settings is None):
        return []
    own = {name: getattr(body, name) for name in Sampling.model_fields if name in body.model_fields_set}
    changes = [entry.model_dump(exclude_unset=True) for entry in body.settings or [Sampling()]]
    # A trial without a seed is the same each time it is asked for.
    return [sampling_params(Sampling(**({"seed": 0} | own | change)), defaults, context) for change in changes]


def _bounded(
    options: InspectOptions, context: JobContext, *, rows: int, cells: int, path: str = ""
) -> InspectionRequest:
    """An inspection request within the server's bounds, without positions. Raises ApiError.

    `rows` is the number of positions that it will be, `cells` that of the attention weights of a head there.
    """
    limits, settings = context.client.limits, context.settings
    heads = named_heads(options, limits)
    if not all(0 <= layer < limits.layers and 0 <= head < limits.heads for layer, head in heads):
        raise refusal(
            f"{path}attention",
            f"has a head beyond the model's {limits.layers} layers of {limits.heads} heads, counted from 0",
        )
    _check_reduction(options, path)
    check_at_most(f"{path}attention", len(heads) * cells, settings.max_weights, "attention weights to compute")
    maps = len({layer for layer, _ in heads}) if options.reduction else len(heads)
    whole = options.top_keys is None or options.reduction == "rollout"
    size = 4 * maps * (cells if whole else 2 * rows * (options.top_keys or 0))
    check_size(f"{path}attention", size, settings.max_inspection)
    lens = 0 if options.lens is None else rows * (limits.layers + 1)
    if lens > settings.max_lens_rows:
        raise refusal(f"{path}lens", f"would be {lens} rows, more than the {settings.max_lens_rows} of this server")
    check_at_most(f"{path}lens", options.lens, settings.max_logprobs, "tokens")
    check_at_most(f"{path}distribution", options.distribution, settings.max_logprobs, "tokens")
    return InspectionRequest(
        heads=heads,
        reduction="mean" if options.reduction == "rollout" else options.reduction,
        top_keys=None if options.reduction == "rollout" else options.top_keys,
        stream=options.residual,
        lens=options.lens,
        distribution=options.distribution,
    )


def _check_reduction(options: InspectOptions, path: str) -> None:
    """Refuse what is to be done to attention weights that cannot be done to those that are asked for."""
    for name in ("reduction", "top_keys"):
        if getattr(options, name) is not None and not options.attention:
            raise refusal(f"{path}{name}", "needs attention")
    if options.reduction == "rollout" and path:
        raise refusal(f"{path}reduction", "can be rollout in /v1/inspect only, which sees the whole prompt")
    if options.reduction == "rollout" and options.attention != "all":
        raise refusal(f"{path}attention", 'should be "all" for rollout')


def check_spellings(body: InspectBody, context: JobContext) -> None:
    """Refuse other spellings of what is no text, and of a text that has too many bytes to show all its tokens."""
    if not body.spellings:
        return
    if body.prompt is None:
        raise refusal("spellings", "need a prompt that is a text")
    size = sum(len(text.encode()) for text in respellings(body.prompt).values())
    check_size("spellings", TOKEN_BYTES * size, context.settings.max_inspection)
