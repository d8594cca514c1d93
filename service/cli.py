"""The command line: headlight serve | chat | complete | batch | inspect | fetch | models.

Every setting is a flag of the same name.
"""

import argparse
import asyncio
import json
import re
import socket
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from model.checkpoint.errors import CheckpointError
from model.checkpoint.source import list_aliases, resolve
from service.command_error import CommandError
from service.engine.status import EngineDead
from service.exit_status import exit_status
from service.settings import BATCH_SETTINGS, ENGINE_SETTINGS, LOOK_SETTINGS, Settings, SettingsError, load_settings

_SAMPLING = {
    "max_tokens": "tokens to generate at most",
    "temperature": "0 is greedy",
    "top_k": "draw from the k likeliest tokens",
    "top_p": "draw from the likeliest tokens that hold this much probability",
    "min_p": "leave out tokens below this share of the likeliest one's probability",
    "seed": "same seed, same text",
    "stop": "string that ends the text; may be given several times",
}
"""Fields of a request that are flags of chat and complete, and their descriptions."""
_LOOKS = {
    "reduction": "one map for each layer: mean or max over the heads that are named, or rollout of all",
    "top_keys": "only so many heaviest keys of each row of attention",
    "residual": "norms of the residual stream",
    "position_encoding": "rotary angles, learned rows or ALiBi slopes of the positions",
    "details": "bytes of each token, and its place in the text",
    "spellings": "tokens of the text in other spellings",
    "temperature": "0 is greedy (default: 0)",
    "top_k": "top-k, as in a request",
    "top_p": "top-p, as in a request",
    "min_p": "min-p, as in a request",
    "seed": "seed, as in a request",
}
"""Fields of a request to look inside that are flags of the same name, and their descriptions."""
_SWITCHES = ("residual", "position_encoding", "details", "spellings")
"""Flags among them that take no value."""
_DRAWS = ("top_k", "top_p", "min_p", "seed")
"""Fields that mean nothing where the likeliest token is taken."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status of the process."""
    arguments = vars(_parser().parse_args(argv))
    run = arguments.pop("run")
    return exit_status(lambda: run(**arguments), CheckpointError, SettingsError, CommandError, EngineDead)


def serve(**flags: Any) -> None:
    """Serve a model over HTTP until a signal ends it."""
    from service.processes.start import run_server

    settings = load_settings(**flags)
    # Before anything slow: an unavailable port should not cost a download to find out.
    with _listen(settings.host, settings.port) as listener:
        run_server(settings, listener)


def chat(system: str, **flags: Any) -> None:
    """Talk with a model in the terminal."""
    from service.terminal import chat_in_terminal

    sampling = _sampling(flags)
    asyncio.run(chat_in_terminal(load_settings(**flags), system, **sampling))


def complete(text: str, **flags: Any) -> None:
    """Continue a text and print what comes."""
    from service.terminal import complete_in_terminal

    sampling = _sampling(flags)
    if sampling.keys().isdisjoint(_DRAWS):
        sampling.setdefault("temperature", 0.0)
    asyncio.run(complete_in_terminal(load_settings(**flags), text, **{"max_tokens": 64} | sampling))


def batch(requests: Path, results: Path, **flags: Any) -> None:
    """Answer a file of requests in OpenAI's batch form; the same command goes on where a stopped one was."""
    from service.batch import run_batch

    try:
        asyncio.run(run_batch(load_settings(**flags), requests, results))
    except KeyboardInterrupt:
        print("headlight: stopped; the same command goes on from here", file=sys.stderr)
        raise


def inspect(
    text: str,
    *,
    chat: bool,
    system: str | None,
    attention: str | None,
    positions: str | None,
    lens: bool,
    embedding: bool,
    distribution: bool,
    top: float | str,
    max_tokens: float | str | None,
    fields: str | None,
    npz: str | None,
    html: str | None,
    **flags: Any,
) -> None:
    """Look inside the model while it reads a text."""
    from service.terminal import inspect_in_terminal

    told = [{"role": "system", "content": system}] if system is not None else []
    messages = [*told, {"role": "user", "content": text}]
    further = _further(fields)
    # Without positions the distribution is that of the next token, which therefore has to be drawn.
    draws = distribution and positions is None and "settings" not in further
    body = {
        **({"messages": messages} if chat or told else {"prompt": text}),
        "attention": _heads(attention),
        "positions": _positions(positions),
        "lens": top if lens else None,
        "embedding": top if embedding else None,
        "embedding_vectors": embedding,
        "distribution": top if distribution else None,
        "max_tokens": 1 if draws and max_tokens is None else max_tokens,
        **{name: flags.pop(name) for name in _LOOKS},
    }
    given = {name: value for name, value in body.items() if value is not None and value is not False}
    if twice := given.keys() & further.keys():
        raise CommandError(f"fields: {', '.join(sorted(twice))} cannot be given twice")
    asyncio.run(inspect_in_terminal(load_settings(**flags), given | further, npz=npz, html=html))


def _heads(written: str | None) -> list[list[int]] | str | None:
    """Heads that are written as LAYER.HEAD, with commas between them."""
    if written is None or written == "all":
        return written
    if not re.fullmatch(r"\d{1,6}\.\d{1,6}(,\d{1,6}\.\d{1,6})*", written, re.ASCII):
        raise CommandError(f"attention: {written!r} is not LAYER.HEAD, such as 3.5 or 3.5,4.0, or all")
    return [[int(number) for number in name.split(".")] for name in written.split(",")]


def _positions(written: str | None) -> list[int] | None:
    """Positions that are written as numbers and ranges, with commas between them."""
    if written is None:
        return None
    if not re.fullmatch(r"\d{1,6}(-\d{1,6})?(,\d{1,6}(-\d{1,6})?)*", written, re.ASCII):
        raise CommandError(f"positions: {written!r} are not numbers or ranges, such as 0,3-5")
    ends = [[int(end) for end in part.split("-")] for part in written.split(",")]
    if any(pair[0] > pair[-1] for pair in ends):
        raise CommandError(f"positions: {written!r} has a range that ends before it begins")
    return [position for pair in ends for position in range(pair[0], pair[-1] + 1)]


def _further(written: str | None) -> dict[str, Any]:
    """Further fields of a request, written as a JSON object."""
    if written is None:
        return {}
    try:
        fields = json.loads(written)
    except (ValueError, RecursionError) as error:
        raise CommandError(f"fields: not JSON: {error}") from None
    if not isinstance(fields, dict):
        raise CommandError('fields: not a JSON object, such as {"typical_p": 0.9}')
    return fields


def fetch(**flags: Any) -> None:
    """Bring a model to this machine, and a draft model if one is set, if they are not there, and print their paths."""
    settings = load_settings(**flags)
    for name in (settings.model, settings.draft_model):
        if name is not None:
            print(resolve(name, settings.home_path).path)


def models(**flags: Any) -> None:
    """Print the aliases, and what else MODEL may be."""
    for status in list_aliases(load_settings(**flags).home_path):
        state = "on this machine" if status.cached else "fetched when first used"
        print(f"{status.alias:<28}{status.size / 1e6:>7.0f} MB  {state}")
    print("\nMODEL may also be a GGUF file, a local Hugging Face folder, or a hub id such as org/name.")


def _sampling(flags: dict[str, Any]) -> dict[str, Any]:
    """The fields of a request among the flags, which are taken out of them. Raises CommandError and OSError."""
    fields = {name: flags.pop(name) for name in _SAMPLING if name in flags}
    if (path := flags.pop("schema", None)) is not None:
        fields["response_format"] = {"type": "json_schema", "json_schema": {"name": "schema", "schema": _json(path)}}
    return fields


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise CommandError(f"{path}: not JSON: {error}") from None


def _listen(host: str, port: int) -> socket.socket:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        # A name such as localhost may stand for IPv4 and IPv6 addresses; IPv4 is what most clients try.
        family, kind, protocol, _, address = min(found, key=lambda entry: entry[0] != socket.AF_INET)
        listener = socket.socket(family, kind, protocol)
    except (OSError, UnicodeError) as error:
        raise CommandError(f"cannot listen on {host}: {getattr(error, 'strerror', None) or 'no such host'}") from None
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(address)
        listener.listen(2048)
    except OSError as error:
        listener.close()
        raise CommandError(
            f"cannot listen on {host}:{port}: {error.strerror}; choose another port with --port"
        ) from None
    return listener


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="headlight", description="An LLM inference server you can look inside of.")
    commands = parser.add_subparsers(required=True, metavar="command")
    # Everybody on the machine can read a command line, so keys come by the environment or a file.
    every = tuple(name for name in Settings.model_fields if name not in ("model", "api_keys"))

    command = _command(commands, "serve", serve, every)
    _add_model(command, positional=True)

    command = _command(commands, "chat", chat, ENGINE_SETTINGS)
    _add_model(command, positional=True)
    command.add_argument("--system", default="", help="system message to begin with")
    _add_sampling(command, max_tokens="what the context holds", temperature="the model's")

    command = _command(commands, "complete", complete, ENGINE_SETTINGS)
    command.add_argument("text", help="what to continue")
    _add_model(command, positional=False)
    draws = ", ".join(f"--{name.replace('_', '-')}" for name in _DRAWS)
    _add_sampling(command, max_tokens="64", temperature=f"0, or the model's with any of {draws}")

    command = _command(commands, "batch", batch, BATCH_SETTINGS)
    command.add_argument("requests", type=Path, help="file to read, a request as JSON in each line")
    command.add_argument("results", type=Path, help="file to write, a result in each line; those it has are kept")
    _add_model(command, positional=False)

    command = _command(commands, "inspect", inspect, (*ENGINE_SETTINGS, *LOOK_SETTINGS))
    command.add_argument("text", help="what the model reads")
    _add_model(command, positional=False)
    command.add_argument("--chat", action="store_true", help="the text is a user's message")
    command.add_argument("--system", help="system message before it; goes with --chat or alone")
    command.add_argument("--attention", metavar="LAYER.HEAD", help="weights of heads, such as 3.5 or 3.5,4.0, or all")
    command.add_argument("--positions", metavar="LIST", help="positions to look at, such as 0,3-5 (default: all)")
    command.add_argument("--lens", action="store_true", help="likeliest tokens if the model ended after each layer")
    command.add_argument("--embedding", action="store_true", help="embeddings: norms, nearest tokens, a picture")
    command.add_argument("--distribution", action="store_true", help="stages of the next token's distribution")
    command.add_argument("--top", type=_number, default=5, help="likeliest tokens of each (default: 5)")
    for name, text in _LOOKS.items():
        flag = f"--{name.replace('_', '-')}"
        if name in _SWITCHES:
            command.add_argument(flag, action="store_true", help=text)
        else:
            command.add_argument(flag, type=str if name == "reduction" else _number, metavar="VALUE", help=text)
    command.add_argument("--max-tokens", type=_number, help="tokens to generate (default: 1 with --distribution, or 0)")
    command.add_argument(
        "--fields", metavar="JSON", help="further fields of a request to /v1/inspect, such as settings"
    )
    command.add_argument("--npz", metavar="FILE", help="write the arrays to a file of NumPy's instead")
    command.add_argument("--html", metavar="FILE", help="write a page that needs no server instead")

    command = _command(commands, "fetch", fetch, ("home", "draft_model"))
    _add_model(command, positional=True)

    _command(commands, "models", models, ("home",))
    return parser


def _command(commands: Any, name: str, run: Any, settings: Sequence[str]) -> argparse.ArgumentParser:
    # Without abbreviations: --api-keys KEY would be taken for --api-keys-file, and an error would print the key.
    command: argparse.ArgumentParser = commands.add_parser(
        name, help=run.__doc__, description=run.__doc__, allow_abbrev=False
    )
    command.set_defaults(run=run)
    for setting in settings:
        field = Settings.model_fields[setting]
        default = "" if field.default is None else f" (default: {field.default})"
        flag = "--" + setting.replace("_", "-")
        # Values stay text here; Settings validates flags and environment variables alike.
        command.add_argument(flag, default=argparse.SUPPRESS, metavar="VALUE", help=f"{field.description}{default}")
    return command


def _add_model(command: argparse.ArgumentParser, *, positional: bool) -> None:
    field = Settings.model_fields["model"]
    text = f"{field.description} (default: {field.default})"
    if positional:
        command.add_argument("model", nargs="?", default=argparse.SUPPRESS, metavar="MODEL", help=text)
    else:
        command.add_argument("--model", default=argparse.SUPPRESS, metavar="MODEL", help=text)


def _add_sampling(command: argparse.ArgumentParser, **defaults: str) -> None:
    """Flags that are fields of a request, where their values are checked."""
    for name, text in _SAMPLING.items():
        default = f" (default: {defaults[name]})" if name in defaults else ""
        flag, read = "--" + name.replace("_", "-"), str if name == "stop" else _number
        action = "append" if name == "stop" else "store"
        command.add_argument(
            flag, type=read, action=action, default=argparse.SUPPRESS, metavar="VALUE", help=text + default
        )
    command.add_argument(
        "--schema", type=Path, default=argparse.SUPPRESS, metavar="FILE", help="JSON schema that the text has to fit"
    )


def _number(value: str) -> float | str:
    """A number if it is one; other text stays as it is, and the schema of requests refuses it."""
    for read in (int, float):
        with suppress(ValueError):
            return read(value)
    return value


if __name__ == "__main__":
    sys.exit(main())
