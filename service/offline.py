"""The offline API: a model in a program of one's own, through the same door and by the same engine as over HTTP.

The engine is a process of its own here too; all prompts of a call are handed to it together, and its scheduler makes
the batches.
"""

import asyncio
import weakref
from collections.abc import Coroutine, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, contextmanager
from dataclasses import dataclass, fields, replace
from threading import Thread
from typing import Any, Literal, Self, TypeVar

from model.checkpoint.source import DEFAULT_MODEL
from model.token_logprobs import TokenLogprobs
from service.api.answers import Format, chosen, usage_of
from service.api.chat import ChatFormat
from service.api.completions import CompletionFormat
from service.api.context import JobContext
from service.api.errors import ApiError, describe
from service.api.inspection_writer import InspectionWriter
from service.api.requests import Job, chat_job, completion_job
from service.api.schemas.chat import ChatBody
from service.api.schemas.completions import CompletionBody
from service.api.schemas.inspect import InspectBody
from service.engine.status import EngineDead
from service.generation import GenerationError, GenerationRefused, Piece
from service.inspection.arrays import DrawnInspection, Inspection
from service.local_engine import body_of, envelope, generated, in_parallel, inspected, running_engine
from service.progress import Progress
from service.settings import OFFLINE_SETTINGS, SettingsError, load_settings

T = TypeVar("T")

_NOT_OFFLINE = ("stream", "stream_options", "echo")
"""Fields that say how an answer is to be sent, or what to put before it."""


class RequestError(ValueError):
    """A request is refused, or has failed; the message is one line that says why."""

    def __init__(self, message: str, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.param = param
        """The field that is at fault, if one is."""
        self.code = code
        """The word for the fault that an HTTP client would get, if there is one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How to choose tokens, and where to end: the fields of a request of these names. None is a field's default."""

    n: int | None = None
    max_tokens: int | None = None
    """By default 16 for a text, and what the context holds for a chat."""
    min_tokens: int | None = None
    temperature: float | None = None
    """Its default, and those of top_p, top_k, min_p and repetition_penalty, are the model makers' recommendation."""
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    typical_p: float | None = None
    top_n_sigma: float | None = None
    seed: int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    logit_bias: Mapping[int | str, float] | None = None
    allowed_token_ids: Sequence[int] | None = None
    bad_words: Sequence[str] | None = None
    stop: str | Sequence[str] | None = None
    stop_token_ids: Sequence[int] | None = None
    ignore_eos: bool | None = None
    include_stop_str_in_output: bool | None = None
    skip_special_tokens: bool | None = None
    logprobs: int | None = None
    """Number of likeliest tokens to report beside each token."""
    prompt_logprobs: int | None = None
    response_format: Mapping[str, Any] | None = None
    structured_outputs: Mapping[str, Any] | None = None

    def fields(self) -> dict[str, Any]:
        """The fields that are given."""
        given = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in given.items() if value is not None}


@dataclass(frozen=True, slots=True, kw_only=True)
class CompletionOutput:
    """One completion of a prompt."""

    index: int
    text: str
    """The completion; of a chat's answer the content, without reasoning and calls."""
    token_ids: list[int]
    """All tokens that were drawn, the one that ended the completion included."""
    finish_reason: Literal["stop", "length", "tool_calls"]
    logprobs: list[TokenLogprobs] | None
    """One entry for each token of the text, if they were asked for."""
    message: dict[str, Any] | None = None
    """The answer to a chat as a message in OpenAI's form, which can be appended to the conversation."""
    inspection: list[DrawnInspection] | None = None
    """The inside of the model where it drew each of `token_ids`, if `inspect` asked for it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestOutput:
    """A prompt and its completions, `n` of them."""

    prompt_token_ids: list[int]
    outputs: list[CompletionOutput]
    prompt_logprobs: list[TokenLogprobs | None] | None
    """One entry for each token of the prompt, the first of them None, if they were asked for."""
    cached_tokens: int
    """Tokens of the prompt that were found in the prefix cache."""


Prompt = str | Sequence[int]
Conversation = Sequence[Mapping[str, Any]]
Params = SamplingParams | Sequence[SamplingParams] | None


class LLM:
    """A loaded model. `close`, leaving its `with`, or the program's end, ends its engine."""

    def __init__(self, model: str = DEFAULT_MODEL, **settings: Any) -> None:
        """Load a model, which is named as for `headlight serve`; `settings` are those of the engine and the bounds.

        Raises SettingsError, CheckpointError and EngineDead, each with one line that says what is wrong.
        """
        for name in settings:
            if name not in OFFLINE_SETTINGS:
                raise SettingsError(f"{name}: there is no such setting without a server")
        self._loop = _LoopThread(running_engine(load_settings(model=model, **settings)))
        self._context = self._loop.entered
        # Not a method of this object, which it would keep alive.
        self._end = weakref.finalize(self, self._loop.close)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """End the engine; without effect on a closed one."""
        self._end()

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: Params = None,
        *,
        progress: bool = True,
        **fields: Any,
    ) -> list[RequestOutput]:
        """Continue one or several texts, or lists of token ids; the results are in the order of the prompts.

        `sampling_params` hold for all prompts, or are one for each. `fields` are further fields of a completion
        request, such as inspect, and hold for all. A bar on the terminal shows the progress. Raises RequestError
        before anything is generated if any prompt is refused, and EngineDead.
        """

        async def job(fields: Mapping[str, Any], context: JobContext) -> tuple[Job, Format]:
            made = await completion_job(body_of(CompletionBody, fields, context.settings), context, envelope())
            return made, CompletionFormat(replace(made, inspect=None), context)

        alone = isinstance(prompts, str) or (len(prompts) > 0 and isinstance(prompts[0], int))
        each: Any = [prompts] if alone else prompts
        given = [prompt if isinstance(prompt, str) else [*prompt] for prompt in each]
        requests = _requests("prompt", given, sampling_params, fields)
        return self._loop.run(_answers(self._context, requests, job, progress))

    def chat(
        self,
        messages: Conversation | Sequence[Conversation],
        sampling_params: Params = None,
        *,
        progress: bool = True,
        **fields: Any,
    ) -> list[RequestOutput]:
        """Answer one or several conversations, lists of messages in OpenAI's form; all else is as in `generate`.

        `fields` are further fields of a chat request, such as tools and chat_template_kwargs.
        """

        async def job(fields: Mapping[str, Any], context: JobContext) -> tuple[Job, Format]:
            if (top := fields.get("logprobs")) is not None:
                fields = {**fields, "logprobs": True, "top_logprobs": top}
            made = await chat_job(body_of(ChatBody, fields, context.settings), context, envelope())
            return made, ChatFormat(replace(made, inspect=None), context)

        conversations = [messages] if messages and isinstance(messages[0], Mapping) else messages
        requests = _requests("messages", [[*each] for each in conversations], sampling_params, fields)
        return self._loop.run(_answers(self._context, requests, job, progress))

    def inspect(
        self,
        prompt: Prompt | Conversation,
        *,
        attention: Sequence[tuple[int, int]] | Literal["all"] | None = None,
        residual: bool = False,
        lens: int | None = None,
        distribution: int | None = None,
        **fields: Any,
    ) -> Inspection:
        """Look inside the model while it reads a text, a list of token ids or a conversation.

        `attention` names heads as pairs of layer and head. `residual` asks for norms, `lens` and `distribution` for so
        many likeliest tokens. `fields` are further fields of a request to `/v1/inspect`: positions, max_tokens,
        settings, temperature. Raises RequestError, also for what would be larger than the settings allow, and
        EngineDead.
        """
        asked = {"attention": attention, "residual": residual, "lens": lens, "distribution": distribution, **fields}
        name = "prompt" if isinstance(prompt, str) else "tokens"
        if not isinstance(prompt, str) and prompt and isinstance(prompt[0], Mapping):
            name = "messages"
        _check_fields(name, fields)
        given = prompt if isinstance(prompt, str) else [*prompt]
        return self._loop.run(_inspection(self._context, {name: given, **asked}))


async def _inspection(context: JobContext, fields: Mapping[str, Any]) -> Inspection:
    with _plainly():
        _require_engine(context)
        body = body_of(InspectBody, fields, context.settings)
        return Inspection.of(await inspected(context, body))


def _require_engine(context: JobContext) -> None:
    """Raise EngineDead before any work is done for an engine that is lost."""
    _ = context.client.limits


def _requests(name: str, inputs: Sequence[Any], params: Params, fields: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The fields of each request."""
    _check_fields(name, fields)
    each = (
        [params or SamplingParams()] * len(inputs) if params is None or isinstance(params, SamplingParams) else params
    )
    if len(each) != len(inputs):
        raise RequestError(f"There are {len(inputs)} prompts and {len(each)} sampling_params.", "sampling_params")
    return [{name: given, **one.fields(), **fields} for given, one in zip(inputs, each, strict=True)]


def _check_fields(name: str, fields: Mapping[str, Any]) -> None:
    """Refuse further fields that would stand in place of the input, which is named, or ask for another sending."""
    for field in (name, *_NOT_OFFLINE):
        if field in fields:
            raise RequestError(f"{field}: does not go with the offline API.", field)


async def _answers(
    context: JobContext, requests: Sequence[Mapping[str, Any]], job: Any, bar: bool
) -> list[RequestOutput]:
    with _plainly():
        _require_engine(context)
    jobs: list[tuple[Job, Format]] = []
    for index, request in enumerate(requests):
        with _plainly(f"Prompt {index}: " if len(requests) > 1 else ""):
            jobs.append(await job(request, context))
    outputs: dict[int, RequestOutput] = {}
    with Progress(len(jobs), "prompts", shown=bar) as progress:

        async def answer(numbered: tuple[int, tuple[Job, Format]]) -> None:
            index, (made, layout) = numbered
            with _plainly(f"Prompt {index}: " if len(requests) > 1 else ""):
                outputs[index] = await _answer(context, made, layout)
            progress.add(sum(len(output.token_ids) for output in outputs[index].outputs))

        # Twice what can run: there is always a next request, and the engine's queue stays short.
        most = max((made.tries for made, _ in jobs), default=1)
        await in_parallel(enumerate(jobs), max(1, 2 * context.settings.max_running // most), answer)
    return [outputs[index] for index in range(len(jobs))]


async def _answer(context: JobContext, job: Job, layout: Format) -> RequestOutput:
    generations, drawn = await generated(context, job.generations)
    pieces = chosen(job, generations, drawn)
    writer = None if job.inspect is None else InspectionWriter(job.inspect, context.tokenizer, context.client.limits)
    whole: Any = layout.whole(pieces, usage_of(job, generations))
    outputs = []
    for choice, own in zip(whole.choices, pieces, strict=True):
        message = choice.message.model_dump(exclude_unset=True) if isinstance(layout, ChatFormat) else None
        outputs.append(
            CompletionOutput(
                index=choice.index,
                text=choice.text if message is None else message["content"] or "",
                token_ids=[piece.token for piece in own if piece.token is not None],
                finish_reason=choice.finish_reason,
                logprobs=[piece.logprobs for piece in own if piece.logprobs is not None] if job.logprobs else None,
                message=message,
                inspection=None if writer is None else _inspections(writer, own),
            )
        )
    return RequestOutput(
        prompt_token_ids=job.prompts[0],
        outputs=outputs,
        prompt_logprobs=None if job.prompt_logprobs is None else [None, *pieces[0][0].scores],
        cached_tokens=generations[0].cached_tokens,
    )


def _inspections(writer: InspectionWriter, pieces: Sequence[Piece]) -> list[DrawnInspection]:
    return [DrawnInspection.of(inspection) for piece in pieces if (inspection := writer.of_token(piece)) is not None]


@contextmanager
def _plainly(place: str = "") -> Iterator[None]:
    """Turns refusals and failures of a request into RequestError; `place` says of which request."""
    try:
        yield
    except (ApiError, GenerationError, GenerationRefused) as error:
        said = describe(error)
        raise RequestError(place + said.detail, said.body.error.param, said.body.error.code) from None


class _LoopThread:
    """An event loop in a thread of its own, where what was entered at its start lives until `close`.

    A thread, so that the engine is watched between calls, and calls may come from a program that has a loop itself.
    """

    def __init__(self, resource: AbstractAsyncContextManager[JobContext]) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = Thread(target=self._loop.run_forever, name="headlight", daemon=True)
        self._thread.start()
        self._stack = AsyncExitStack()
        try:
            self.entered = self.run(self._stack.enter_async_context(resource))
        except BaseException:
            self.close()
            raise

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """The result of a coroutine; it is cancelled if this thread is interrupted. Raises EngineDead when closed."""
        if self._loop.is_closed():
            work.close()
            raise EngineDead("the engine was stopped")
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def close(self) -> None:
        """Leave what was entered, and end the thread."""
        try:
            self.run(self._stack.aclose())
        finally:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()
