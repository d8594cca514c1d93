"""The conversation of a chat in the terminal, and the commands that change it.

It knows nothing of the model, nor of how lines are read.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from service.command_error import CommandError

Message = Mapping[str, str]
"""A message in OpenAI's form: its role and its content."""
Messages = Sequence[Message]


@dataclass(frozen=True, slots=True)
class Change:
    """The outcome of a line."""

    messages: Messages
    says: str = ""
    """Text to show."""
    answers: bool = False
    """Whether the model is to answer the messages."""


@dataclass(frozen=True, slots=True)
class Command:
    """A line that begins with a slash."""

    takes: str
    """The words that follow its name."""
    does: str
    run: Callable[[Messages, str], Change]


def changed(messages: Messages, line: str) -> Change:
    """The outcome of a line: a message, or a command. Raises CommandError for a command that cannot be followed."""
    if line.startswith("//"):
        line = line[1:]
    elif line.startswith("/"):
        name, _, rest = line.partition(" ")
        if name not in COMMANDS:
            raise CommandError(f"there is no command {name}; /help lists them, and // begins a message with a slash")
        return COMMANDS[name].run(messages, rest.strip())
    return _asked(messages, line)


def system_message(text: str) -> Messages:
    """The beginning of a conversation with this system message, which may be empty."""
    return [{"role": "system", "content": text}] if text else []


def _asked(messages: Messages, text: str) -> Change:
    return Change([*messages, {"role": "user", "content": text}], answers=True)


def _help(messages: Messages, rest: str) -> Change:
    lines = [f"{f'{name} {command.takes}':<16}{command.does}" for name, command in COMMANDS.items()]
    return Change(messages, "\n".join(lines))


def _history(messages: Messages, rest: str) -> Change:
    lines = [f"{number} {message['role']}: {message['content']}" for number, message in enumerate(messages, 1)]
    return Change(messages, "\n".join(lines) or "There are no messages.")


def _edit(messages: Messages, rest: str) -> Change:
    number, _, text = rest.partition(" ")
    if not (number.isdecimal() and 1 <= int(number) <= len(messages) and text.strip()):
        raise CommandError("/edit wants the number of a message, as /history has them, and its new text")
    before, role = messages[: int(number) - 1], messages[int(number) - 1]["role"]
    return Change([*before, {"role": role, "content": text.strip()}], answers=role == "user")


def _undo(messages: Messages, rest: str) -> Change:
    return Change(messages[: _last_question(messages)])


def _retry(messages: Messages, rest: str) -> Change:
    return Change(messages[: _last_question(messages) + 1], answers=True)


def _last_question(messages: Messages) -> int:
    """The index of the last message of the user's. Raises CommandError if there is none."""
    found = [index for index, message in enumerate(messages) if message["role"] == "user"]
    if not found:
        raise CommandError("there is no message of yours yet")
    return found[-1]


def _system(messages: Messages, rest: str) -> Change:
    return Change([*system_message(rest), *(message for message in messages if message["role"] != "system")])


def _clear(messages: Messages, rest: str) -> Change:
    return Change([message for message in messages if message["role"] == "system"])


COMMANDS: Mapping[str, Command] = {
    "/help": Command("", "these commands; a message that begins with a slash is written with two", _help),
    "/history": Command("", "the messages so far, numbered", _history),
    "/edit": Command("N TEXT", "put TEXT in place of message N and drop what follows; yours is answered", _edit),
    "/retry": Command("", "answer your last message again, which with --seed gives the same", _retry),
    "/undo": Command("", "drop your last message and its answer", _undo),
    "/system": Command("TEXT", "set the system message, or without TEXT drop it", _system),
    "/clear": Command("", "drop all messages but the system's", _clear),
}
"""The commands by their names, in the order in which they are listed."""
