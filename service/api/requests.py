"""The one door: here every route's body becomes a job for the engine, with every limit checked.

A limit that holds for one route holds for all of them, because there is no other way in. Knows nothing of streams or
response formats.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from model.contract import Wanted
from model.sampling_params import SamplingParams
from service.api.beam_search import beam_search, searching
from service.api.bounds import check_at_most, check_token_ids
from service.api.context import JobContext
from service.api.envelope import Envelope
from service.api.errors import refusal
from service.api.fields import ignored_fields
from service.api.grammars import grammar_of
from service.api.inspection_requests import check_spellings, inspection_request, token_inspection_request, trials_of
from service.api.judgements import Pairs, answer_tokens, check_question, judgement_prompt
from service.api.lengths import PLAIN_NAMES, FieldNames, Room, check_together, completion_lengths
from service.api.prompts import echoed, encode_messages, encode_prompt, encode_text, off_loop, prompt_list
from service.api.restrictions import allowed_mask, bad_words
from service.api.sampling import given, sampling_defaults, sampling_params, tries_of
from service.api.schemas.body import Body
from service.api.schemas.chat import ChatBody
from service.api.schemas.completions import CompletionBody
from service.api.schemas.embeddings import EmbeddingBody
from service.api.schemas.generation import GenerationBody
from service.api.schemas.inspect import InspectBody
from service.api.schemas.inspect_options import InspectOptions
from service.api.schemas.judgements import JudgementBody
from service.api.schemas.tokens import DetokenizeBody, TokenizeBody
from service.api.tools import answer_form
from service.engine.messages import EngineRequest, Grammar
from service.generation import GenerationRequest, drawable
from service.observability.record import RequestRecord
from service.text.message import MessageForm

DEFAULT_COMPLETION_TOKENS = 16
"""OpenAI's default for completions without max_tokens; a chat answer may fill the context."""

_SEED_STRIDE = 0x9E3779B97F4A7C15
"""2^64 divided by the golden ratio: the seeds of a request's choices lie far from those of seed + 1, seed + 2, ..."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """The work that a completion request gives the engine, and the form of answer that it wants."""

    prompts: list[list[int]]
    generations: list[GenerationRequest]
    """Generations, equally many for each prompt, in the order of the prompts."""
    n: int
    """Number of choices for each prompt; the best of its generations, if there are more, or those of a beam search."""
    echo: list[str]
    """Text to put before each choice."""
    stream: bool
    include_usage: bool
    continuous_usage: bool
    return_token_ids: bool
    logprobs: bool
    prompt_logprobs: int | None
    """Number of likeliest tokens to report beside each prompt token; None: nothing is reported of the prompt."""
    scores_echo: bool
    """Whether the echoed prompt has log-probabilities too."""
    inspect: InspectOptions | None = None
    """The things inside the model that are told beside each token."""
    message: MessageForm = field(default_factory=MessageForm)
    """Form of a chat's answers."""

    @property
    def tries(self) -> int:
        """Number of generations for each prompt."""
        return len(self.generations) // len(self.prompts)

    @property
    def choices(self) -> list[GenerationRequest]:
        """The generation of each choice, but for its seed, in which alone those of one prompt differ."""
        return [first for first in self.generations[:: self.tries] for _ in range(self.n)]


async def completion_job(body: CompletionBody, context: JobContext, envelope: Envelope) -> Job:
    """A completion request as a job. Raises ApiError."""
    _check_shared(body, context, envelope.record)
    if body.max_tokens == 0 and not body.echo and body.prompt_logprobs is None:
        raise refusal("max_tokens", "0 generates nothing; it goes with echo or prompt_logprobs")
    check_at_most("logprobs", body.logprobs, context.settings.max_logprobs, "tokens")

    prompts = prompt_list(body.prompt)
    _check_choices(body, len(prompts), context)
    room = Room(context.client.limits, PLAIN_NAMES)
    encoded = [await encode_prompt(prompt, body.add_special_tokens, context, room) for prompt in prompts]
    _check_prompts("prompt", encoded, context)
    echo = [await echoed(prompt, context) if body.echo else "" for prompt in prompts]
    return _job(
        body,
        context,
        envelope,
        encoded,
        room=room,
        echo=echo,
        max_tokens=body.max_tokens,
        default_max_tokens=DEFAULT_COMPLETION_TOKENS,
        logprobs=body.logprobs,
        scores_echo=body.echo and body.logprobs is not None,
        grammar=grammar_of(body, context.settings.max_grammar),
        banned=await bad_words(body, context),
    )


async def chat_job(body: ChatBody, context: JobContext, envelope: Envelope) -> Job:
    """A chat request as a job. Raises ApiError."""
    _check_shared(body, context, envelope.record)
    if body.top_logprobs and not body.logprobs:
        raise refusal("top_logprobs", "needs logprobs to be true")
    check_at_most("top_logprobs", body.top_logprobs, context.settings.max_logprobs, "tokens")
    _check_choices(body, 1, context)

    names = FieldNames("messages", "max_tokens" if body.max_completion_tokens is None else "max_completion_tokens")
    room = Room(context.client.limits, names)
    encoded = await encode_messages(body, body.messages, context, room, add_special_tokens=body.add_special_tokens)
    _check_prompts("messages", [encoded], context)
    message, grammar = answer_form(body, context, encoded)
    return _job(
        body,
        context,
        envelope,
        [encoded],
        room=room,
        echo=[""],
        max_tokens=given(body.max_completion_tokens, body.max_tokens),
        default_max_tokens=None,
        logprobs=(body.top_logprobs or 0) if body.logprobs else None,
        grammar=grammar,
        banned=await bad_words(body, context),
        message=message,
    )


async def embedding_job(body: EmbeddingBody, context: JobContext, envelope: Envelope) -> list[GenerationRequest]:
    """The inputs of an embedding request as generations without tokens. Raises ApiError."""
    _check_fields(body, context, envelope.record)
    context.check_model(body.model)
    prompts = prompt_list(body.input)
    check_at_most("input", len(prompts), min(context.settings.max_choices, context.settings.max_open), "inputs")
    room = Room(context.client.limits, FieldNames("input"))
    encoded = [await encode_prompt(prompt, body.add_special_tokens, context, room) for prompt in prompts]
    _check_prompts("input", encoded, context)
    lengths = completion_lengths(encoded, 0, None, room, context)
    return [
        GenerationRequest(
            sent=EngineRequest(
                prompt,
                SamplingParams(max_tokens=length),
                cache_salt=_cache_salt(body, context, envelope.caller),
                caller=envelope.caller,
                patience=envelope.patience,
                wanted=Wanted(pooling=body.pooling),
            )
        )
        for prompt, length in zip(encoded, lengths, strict=True)
    ]


async def judgement_job(
    body: JudgementBody, pairs: Pairs, context: JobContext, envelope: Envelope
) -> list[GenerationRequest]:
    """For each pair two generations of one token, which can only be yes, and only be no. Raises ApiError.

    Their log-probabilities are the model's own. Both have one prompt, so that its blocks are computed once.
    """
    _check_fields(body, context, envelope.record)
    context.check_model(body.model)
    limits = context.client.limits
    most = min(context.settings.max_choices, context.settings.max_open) // 2
    check_at_most(pairs.documents, len(pairs.texts), most, "texts")
    check_question(body, pairs, context.settings.max_body)
    masks = [allowed_mask([token], limits) for token in answer_tokens(body, context)]
    rooms = [Room(limits, FieldNames(pairs.longest_field(body, [pair]))) for pair in pairs.texts]
    prompts = [await judgement_prompt(body, pair, context, room) for pair, room in zip(pairs.texts, rooms, strict=True)]
    _check_prompts(pairs.documents, prompts, context)
    lengths = [room.length(len(prompt), 1, None) for room, prompt in zip(rooms, prompts, strict=True)]
    check_together(pairs.longest_field(body, pairs.texts), prompts, context)
    return [
        GenerationRequest(
            sent=EngineRequest(
                prompt,
                SamplingParams(max_tokens=length, temperature=0.0, allowed=mask, logprobs=0),
                cache_salt=_cache_salt(body, context, envelope.caller),
                caller=envelope.caller,
                patience=envelope.patience,
            )
        )
        for prompt, length in zip(prompts, lengths, strict=True)
        for mask in masks
    ]


async def inspect_job(body: InspectBody, context: JobContext, envelope: Envelope) -> GenerationRequest:
    """A request to look inside as a generation. Raises ApiError."""
    sent = "tokens" if body.tokens is not None else "prompt" if body.messages is None else "messages"
    room = Room(context.client.limits, FieldNames(sent))
    if body.tokens is None:
        prompt = await tokenized(body, context, envelope.record, room)
    else:
        prompt = body.tokens
        _check_fields(body, context, envelope.record)
        context.check_model(body.model)
        if body.prompt is not None or body.messages is not None:
            raise refusal("tokens", "stand in place of prompt and messages")
        if body.add_special_tokens is not None:
            raise refusal("add_special_tokens", "goes with prompt or messages")
        _check_no_template_fields(body)
    _check_prompts(sent, [prompt], context)
    check_spellings(body, context)
    limits = context.client.limits
    (length,) = completion_lengths([prompt], body.max_tokens, None, room, context)
    defaults = replace(context.sampling, temperature=0.0)
    params = sampling_params(body, defaults, context)
    asked = inspection_request(body, len(prompt), context)
    return GenerationRequest(
        sent=EngineRequest(
            prompt,
            replace(params, max_tokens=length, stop_token_ids=drawable(context.tokenizer.eos_token_ids, limits)),
            cache_salt=_cache_salt(None, context, envelope.caller),
            caller=envelope.caller,
            patience=envelope.patience,
            wanted=Wanted(inspect=replace(asked, settings=trials_of(body, defaults, context))),
        ),
        include_stop=True,
        skip_special_tokens=False,
    )


async def tokenized(
    body: TokenizeBody, context: JobContext, record: RequestRecord, room: Room | None = None
) -> list[int]:
    """The token ids that a completion or chat request would make of the same input.

    Raises ApiError, also where they are known to be too many for a `room`.
    """
    _check_fields(body, context, record)
    context.check_model(body.model)
    if (body.prompt is None) == (body.messages is None):
        raise refusal("prompt", "or messages is needed, and not both")
    if body.messages is not None:
        return await encode_messages(
            body,
            body.messages,
            context,
            room,
            add_special_tokens=body.add_special_tokens or False,
        )
    _check_no_template_fields(body)
    assert body.prompt is not None
    return await encode_text(body.prompt, body.add_special_tokens is not False, context, room)


def _check_no_template_fields(body: TokenizeBody) -> None:
    """Refuse fields that mean nothing without messages."""
    for name in (
        "add_generation_prompt",
        "continue_final_message",
        "reasoning_effort",
        "chat_template_kwargs",
        "tools",
    ):
        if getattr(body, name):
            raise refusal(name, "goes with messages only")


async def detokenized(body: DetokenizeBody, context: JobContext, record: RequestRecord) -> str:
    """The text of token ids. Raises ApiError."""
    _check_fields(body, context, record)
    context.check_model(body.model)
    check_token_ids("tokens", body.tokens, context.token_bound)
    return await off_loop(
        context, len(body.tokens), lambda: context.tokenizer.decode(body.tokens, skip_special_tokens=False)
    )


def _check_prompts(param: str, prompts: list[list[int]], context: JobContext) -> None:
    """Refuse tokens that the model cannot read, whether a client sent them or its text or the template made them."""
    for prompt in prompts:
        check_token_ids(param, prompt, context.client.limits.vocab_size)


def _check_fields(body: Body, context: JobContext, record: RequestRecord) -> None:
    """Note the fields without an effect in the record; refuse unknown ones if the settings say so."""
    refuse = context.settings.unknown_fields == "refuse"
    record.ignored = ignored_fields(body, refuse_unknown=refuse, template=context.template)


def _check_shared(body: GenerationBody, context: JobContext, record: RequestRecord) -> None:
    """Refuse all that can be refused without tokenising."""
    settings = context.settings
    _check_fields(body, context, record)
    context.check_model(body.model)
    if body.stream_options and body.stream_options.include_usage and not body.stream:
        raise refusal("stream_options", "goes with stream only")
    if body.stream_options and body.stream_options.continuous_usage_stats and not body.stream_options.include_usage:
        raise refusal("stream_options.continuous_usage_stats", "needs include_usage to be true")
    stop = _stop_strings(body)
    if "" in stop:
        raise refusal("stop", "has an empty string")
    check_at_most("stop", max(map(len, stop), default=0), settings.max_stop_length, "characters in a string")
    check_at_most("prompt_logprobs", body.prompt_logprobs, settings.max_logprobs, "tokens")
    check_token_ids("stop_token_ids", body.stop_token_ids, context.client.limits.vocab_size)
    check_token_ids("allowed_token_ids", body.allowed_token_ids or [], context.client.limits.vocab_size)


def _check_choices(body: GenerationBody, prompts: int, context: JobContext) -> None:
    tries = tries_of(body)
    if tries < body.n:
        raise refusal("best_of", f"is below n, which is {body.n}")
    if tries > body.n and body.stream and not body.use_beam_search:
        raise refusal("best_of", "goes without stream, because the best are known at the end alone")
    name = "n" if tries == body.n else "best_of"
    check_at_most(name, tries, context.settings.max_n, "choices")
    most = min(context.settings.max_choices, context.settings.max_open)
    check_at_most(name, tries * prompts, most, "choices over all prompts")


def _job(
    body: GenerationBody,
    context: JobContext,
    envelope: Envelope,
    prompts: list[list[int]],
    *,
    room: Room,
    echo: list[str],
    max_tokens: int | None,
    default_max_tokens: int | None,
    logprobs: int | None,
    grammar: Grammar | None,
    banned: tuple[tuple[int, ...], ...],
    scores_echo: bool = False,
    message: MessageForm | None = None,
) -> Job:
    """The job of a completion or chat whose `prompts` are encoded already. Raises ApiError."""
    message = message or MessageForm()
    tries = tries_of(body)
    ends = _end_tokens(body, context)
    params = replace(
        sampling_params(body, sampling_defaults(body, context.sampling), context),
        min_tokens=body.min_tokens,
        stop_token_ids=ends,
        allowed=allowed_mask(body.allowed_token_ids, context.client.limits),
        bad_words=banned,
        # The mean log-probability is what the best are chosen by.
        logprobs=0 if logprobs is None and tries > body.n else logprobs,
    )
    search = beam_search(body, tries, logprobs, grammar, scores_echo=scores_echo)
    lengths = completion_lengths(prompts, max_tokens, default_max_tokens, room, context)
    _check_lengths(body, lengths, context, room.names)
    asked = None if body.inspect is None else token_inspection_request(body, context, lengths, prompts)
    scored = [top for top in (body.prompt_logprobs, logprobs if scores_echo else None) if top is not None]
    drawing = [
        (prompt, drawn)
        for prompt, length in zip(prompts, lengths, strict=True)
        for drawn in ([searching(search, length, ends)] if search else _tries(params, length, tries))
    ]
    generations = [
        GenerationRequest(
            sent=EngineRequest(
                prompt,
                drawn,
                cache_salt=_cache_salt(body, context, envelope.caller),
                caller=envelope.caller,
                patience=envelope.patience,
                wanted=Wanted(prompt_logprobs=max(scored, default=None), inspect=asked),
                grammar=grammar,
                beams=search,
            ),
            stop=_stop_strings(body),
            include_stop=body.include_stop_str_in_output,
            skip_special_tokens=body.skip_special_tokens,
            kept_special=message.markers,
        )
        for prompt, drawn in drawing
    ]
    options = body.stream_options
    return Job(
        prompts=prompts,
        generations=generations,
        n=body.n,
        echo=[text for text in echo for _ in range(body.n)],
        stream=body.stream,
        include_usage=options is not None and options.include_usage,
        continuous_usage=options is not None and options.continuous_usage_stats,
        return_token_ids=body.return_token_ids,
        logprobs=logprobs is not None,
        prompt_logprobs=body.prompt_logprobs,
        scores_echo=scores_echo,
        inspect=body.inspect,
        message=message,
    )


def _end_tokens(body: GenerationBody, context: JobContext) -> tuple[int, ...]:
    """The tokens that end a completion: the model's own unless the request ignores them, and the request's."""
    model_ends = () if body.ignore_eos else tuple(context.tokenizer.eos_token_ids)
    return drawable((*model_ends, *body.stop_token_ids), context.client.limits)


def _check_lengths(body: GenerationBody, lengths: Sequence[int], context: JobContext, names: FieldNames) -> None:
    """Refuse completions, of at most `lengths` tokens for each prompt, that are too short or too long together."""
    if body.min_tokens > min(lengths):
        raise refusal("min_tokens", f"is above {names.max_tokens}, which is {min(lengths)} here")
    most = context.settings.max_request_tokens
    if tries_of(body) * sum(lengths) > most:
        raise refusal(names.max_tokens, f"times the number of choices is more than {most} tokens")


def _tries(params: SamplingParams, length: int, count: int) -> list[SamplingParams]:
    """The parameters of each completion of a prompt, of at most `length` tokens; their seeds lie far apart."""
    return [
        replace(params, max_tokens=length, seed=(params.seed + index * _SEED_STRIDE) % 2**63) for index in range(count)
    ]


def _cache_salt(body: GenerationBody | EmbeddingBody | JudgementBody | None, context: JobContext, caller: str) -> str:
    """The salt of a request's cache blocks: it parts the API keys' blocks, unless the settings let them share."""
    salt = (body and body.cache_salt) or ""
    return f"{caller}:{salt}" if caller and not context.settings.share_prefix_cache else salt


def _stop_strings(body: GenerationBody) -> tuple[str, ...]:
    stop = body.stop if body.stop is not None else []
    return (stop,) if isinstance(stop, str) else tuple(stop)
