"""Each line of a chat changes its messages, or is refused and changes nothing."""

import re

import pytest

from service.command_error import CommandError
from service.conversation import COMMANDS, Messages, changed, system_message

HISTORY = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "one"},
    {"role": "assistant", "content": "first"},
    {"role": "user", "content": "two"},
    {"role": "assistant", "content": "second"},
]


def told(messages: Messages) -> list[str]:
    return [message["content"] for message in messages]


@pytest.mark.parametrize(
    ("line", "left", "answers"),
    [
        ("three", ["Be brief.", "one", "first", "two", "second", "three"], True),
        ("//three", ["Be brief.", "one", "first", "two", "second", "/three"], True),
        ("/undo", ["Be brief.", "one", "first"], False),
        ("/retry", ["Be brief.", "one", "first", "two"], True),
        ("/edit 2 other", ["Be brief.", "other"], True),
        ("/edit 3 other words", ["Be brief.", "one", "other words"], False),
        ("/edit 1 Be long.", ["Be long."], False),
        ("/system Be long.", ["Be long.", "one", "first", "two", "second"], False),
        ("/system", ["one", "first", "two", "second"], False),
        ("/clear", ["Be brief."], False),
        ("/help", told(HISTORY), False),
        ("/history", told(HISTORY), False),
    ],
)
def test_what_a_line_leaves_of_the_history(line: str, left: list[str], answers: bool) -> None:
    change = changed(HISTORY, line)
    assert (told(change.messages), change.answers) == (left, answers)
    roles = {message["content"]: message["role"] for message in HISTORY}
    assert all(roles.get(message["content"], message["role"]) == message["role"] for message in change.messages)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("/nothing", "no command /nothing"),
        ("/usr/bin/env is what?", "//"),
        ("/edit", "wants the number"),
        ("/edit 0 x", "wants the number"),
        ("/edit 6 x", "wants the number"),
        ("/edit 2", "wants the number"),
        ("/edit -1 x", "wants the number"),
    ],
)
def test_what_cannot_be_followed_says_why(line: str, words: str) -> None:
    with pytest.raises(CommandError, match=re.escape(words)):
        changed(HISTORY, line)


@pytest.mark.parametrize("line", ["/undo", "/retry"])
def test_there_has_to_be_a_question(line: str) -> None:
    with pytest.raises(CommandError, match="no message of yours"):
        changed(system_message("Be brief."), line)


def test_help_tells_of_every_command() -> None:
    said = changed([], "/help").says
    assert [line.split()[0] for line in said.splitlines()] == [*COMMANDS]
    assert all(command.does in said for command in COMMANDS.values())


def test_the_history_is_numbered_as_edit_counts() -> None:
    assert changed(HISTORY, "/history").says.splitlines()[1] == "2 user: one"
    assert changed([], "/history").says == "There are no messages."
