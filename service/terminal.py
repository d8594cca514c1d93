"""Chat and completion in a terminal: the engine without HTTP, each token printed as it comes."""

import asyncio
import secrets
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from model.contract import SamplingParams
from service.engine.client import EngineClient
from service.generation import Generation, GenerationRequest, drawable
from service.launch import Launch, check_ends, locate, prepare
from service.processes.engine_config import engine_config
from service.processes.engine_keeper import EngineKeeper
from service.settings import Settings
from service.text.chat import TemplateError


class CommandError(Exception):
    """A command cannot go on; the message is one line that says why."""


async def complete_in_terminal(settings: Settings, text: str, max_tokens: int, temperature: float) -> None:
    """Print a continuation of `text`. Raises EngineDead, CheckpointError and CommandError."""
    async with _running(settings) as (launch, client):
        prompt = launch.tokenizer.encode(text, add_special_tokens=True, parse_special=True)
        room = _room(client, prompt)
        await _generate(launch, client, prompt, min(max_tokens, room), temperature)
        print()


async def chat_in_terminal(settings: Settings, system: str | None) -> None:
    """Take turns until the input ends. Each turn sends the whole conversation; the prefix cache makes that cheap."""
    async with _running(settings) as (launch, client):
        if launch.template is None:
            raise CommandError(f"{launch.model_name} has no chat template; use headlight complete")
        print(f"{launch.model_name}: an empty line or Ctrl-D ends the chat, Ctrl-C ends the program.")
        messages = [{"role": "system", "content": system}] if system else []
        while text := await _ask():
            messages.append({"role": "user", "content": text})
            try:
                prompt = launch.template.encode(messages, launch.tokenizer, add_generation_prompt=True)
            except TemplateError as error:
                raise CommandError(str(error)) from None
            answer = await _generate(launch, client, prompt, _room(client, prompt))
            print()
            messages.append({"role": "assistant", "content": answer})


@asynccontextmanager
async def _running(settings: Settings) -> AsyncIterator[tuple[Launch, EngineClient]]:
    source = locate(settings)
    launch = prepare(settings, source)
    client = EngineClient()
    keeper = EngineKeeper(
        engine_config(settings, source), client.follow, timeout_seconds=settings.engine_timeout_seconds
    )
    await keeper.start()
    try:
        await client.ready()
        check_ends(launch, client.limits)
        yield launch, client
    finally:
        await keeper.stop()


async def _ask() -> str:
    """Read a line of input; empty at its end."""
    print("> ", end="", flush=True)
    if sys.stdin.isatty():
        # Without a thread: one that waits for input could not be stopped when Ctrl-C ends the program.
        readable = asyncio.Event()
        loop = asyncio.get_running_loop()
        loop.add_reader(sys.stdin, readable.set)
        try:
            await readable.wait()
        finally:
            loop.remove_reader(sys.stdin)
    return sys.stdin.readline().strip()


def _room(client: EngineClient, prompt: list[int]) -> int:
    """Number of tokens that may follow a prompt. Raises CommandError if there is no room for any."""
    room = client.limits.capacity - len(prompt)
    if not prompt or room < 1:
        raise CommandError(f"{len(prompt)} tokens of text: the model takes between 1 and {len(prompt) + room - 1}")
    return room


async def _generate(
    launch: Launch, client: EngineClient, prompt: list[int], max_tokens: int, temperature: float | None = None
) -> str:
    """Print a completion as it comes, and return it."""
    sampling = launch.sampling
    params = SamplingParams(
        max_tokens=max_tokens,
        temperature=sampling.temperature if temperature is None else temperature,
        top_k=sampling.top_k,
        top_p=sampling.top_p,
        min_p=sampling.min_p,
        repetition_penalty=sampling.repetition_penalty,
        seed=secrets.randbits(63),
        stop_token_ids=drawable(launch.tokenizer.eos_token_ids, client.limits),
    )
    text = ""
    with Generation(client, launch.tokenizer, GenerationRequest(prompt=prompt, params=params)) as generation:
        async for piece in generation.pieces():
            sys.stdout.write(piece.text)
            sys.stdout.flush()
            text += piece.text
    return text
