"""The command line: headlight serve | chat | complete | fetch | models.

Every setting is a flag of the same name. Every failure ends in one plain line and a status other than 0.
"""

import argparse
import asyncio
import socket
import sys
from collections.abc import Sequence
from typing import Any

from model.checkpoint.errors import CheckpointError
from model.checkpoint.source import list_aliases, resolve
from service.command_error import CommandError
from service.engine.status import EngineDead
from service.processes.api_keeper import ApiDead
from service.processes.supervisor import run_server
from service.settings import ENGINE_SETTINGS, Settings, SettingsError, load_settings


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status of the process."""
    arguments = vars(_parser().parse_args(argv))
    run = arguments.pop("run")
    try:
        return int(run(**arguments) or 0)
    except (CheckpointError, SettingsError, CommandError, EngineDead, ApiDead) as error:
        return _failed(str(error))
    except OSError as error:
        return _failed(f"{error.filename}: {error.strerror}" if error.filename and error.strerror else str(error))
    except MemoryError:
        return _failed("this machine's memory is full")
    except KeyboardInterrupt:
        return 130


def _failed(reason: str) -> int:
    print(f"headlight: {reason}", file=sys.stderr)
    return 1


def serve(**flags: Any) -> None:
    """Serve a model over HTTP until a signal ends it."""
    settings = load_settings(**flags)
    # Before anything slow: an unavailable port should not cost a download to find out.
    with _listen(settings.host, settings.port) as listener:
        run_server(settings, listener)


def chat(system: str | None, **flags: Any) -> None:
    """Talk with a model in the terminal."""
    from service.terminal import chat_in_terminal

    asyncio.run(chat_in_terminal(load_settings(**flags), system))


def complete(text: str, max_tokens: float | str, temperature: float | str, **flags: Any) -> None:
    """Continue a text and print what comes."""
    from service.terminal import complete_in_terminal

    asyncio.run(complete_in_terminal(load_settings(**flags), text, max_tokens=max_tokens, temperature=temperature))


def fetch(**flags: Any) -> None:
    """Bring a model to this machine, if it is not there, and print its path."""
    settings = load_settings(**flags)
    print(resolve(settings.model, settings.home_path).path)


def models(**flags: Any) -> None:
    """Print the aliases, and what else MODEL may be."""
    for status in list_aliases(load_settings(**flags).home_path):
        state = "on this machine" if status.cached else "fetched when first used"
        print(f"{status.alias:<28}{status.size / 1e6:>7.0f} MB  {state}")
    print("\nMODEL may also be a GGUF file, a local Hugging Face folder, or a hub id such as org/name.")


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
    command.add_argument("--system", help="system message to begin with")

    command = _command(commands, "complete", complete, ENGINE_SETTINGS)
    command.add_argument("text", help="what to continue")
    _add_model(command, positional=False)
    command.add_argument("--max-tokens", type=_number, default=64, help="tokens to generate (default: 64)")
    command.add_argument("--temperature", type=_number, default=0.0, help="0 is greedy (default: 0)")

    command = _command(commands, "fetch", fetch, ("home",))
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


def _number(value: str) -> float | str:
    """A number if it is one; other text stays as it is, and the schema of requests refuses it."""
    try:
        return float(value)
    except ValueError:
        return value


if __name__ == "__main__":
    sys.exit(main())
