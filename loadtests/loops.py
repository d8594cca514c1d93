"""How conversations follow each other: one after another for a user, or at times that know of no user.

Knows no Locust; whoever drives a loop calls `pause` and `turn` in turn, and `stop` at the end.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import gevent
from gevent.pool import Group

from loadtests.client import Abandoned, Client, Target
from loadtests.sse import Answer
from loadtests.workloads import Message

_FOREVER = 1e6


class Asker(Protocol):
    """Source of the requests of users."""

    @property
    def begins(self) -> bool:
        """Whether the next question begins a conversation."""
        ...

    def ask(self) -> tuple[list[Message], int]:
        """(messages, limit of output tokens) of the next question."""
        ...

    def take(self, text: str, tokens: int) -> None:
        """Hear an answer; the conversation then has `tokens` tokens."""
        ...

    def give_up(self) -> None:
        """Begin a new conversation, because a request failed."""
        ...

    def think(self) -> float:
        """Seconds until the next question."""
        ...


class Line:
    """The way to a server, and to those who count what goes over it."""

    def __init__(self, target: Target, asked: Callable[[], None], answered: Callable[[Answer], None]) -> None:
        """`asked` is called as a request is sent, `answered` with its Answer, also if it was abandoned."""
        self.target = target
        self._asked = asked
        self._answered = answered

    def turn(self, client: Client, asker: Asker) -> None:
        """Send the next question and hear the answer. Raises Abandoned if the greenlet is killed meanwhile."""
        messages, max_tokens = asker.ask()
        self._asked()
        try:
            answer, text = client.stream(self.target.route, self.target.request(messages, max_tokens))
        except Abandoned as abandoned:
            self._report(abandoned.args[0])
            raise
        self._report(answer)
        if answer.complete:
            asker.take(text, answer.prompt_tokens + answer.completion_tokens)
        else:
            asker.give_up()

    def _report(self, answer: Answer) -> None:
        answer.model = self.target.model
        self._answered(answer)


class ClosedLoop:
    """A user who waits for the answer, thinks, and asks again."""

    def __init__(self, lines: Sequence[Line], asker: Asker, first: int) -> None:
        """A user whose conversations take the `lines` in turn, from the one with the number `first` on."""
        self._lines = lines
        self._number = first
        self._asker = asker
        self._client = Client(lines[0].target.url)

    def pause(self) -> float:
        """Seconds until the next turn."""
        return self._asker.think()

    def turn(self) -> None:
        """Ask and hear the answer."""
        line = self._lines[self._number % len(self._lines)]
        line.turn(self._client, self._asker)
        if self._asker.begins:
            self._number += 1

    def stop(self, patience: float) -> None:
        """Close the connection."""
        self._client.close()


class OpenLoop:
    """Conversations that begin at given times, whether or not those before have ended."""

    def __init__(self, arrivals: Iterator[tuple[float, Line, Callable[[], Asker]]], late: float = 0.0) -> None:
        """`arrivals` are seconds from `late` seconds ago, in rising order, and who asks then over which line."""
        self._arrivals = arrivals
        self._next = next(arrivals, None)
        self._began = time.perf_counter() - late
        self._conversations = Group()

    def pause(self) -> float:
        """Seconds until the next arrival; very many if there is none."""
        if self._next is None:
            return _FOREVER
        return max(self._began + self._next[0] - time.perf_counter(), 0.0)

    def turn(self) -> None:
        """Begin the next conversation."""
        if self._next is not None:
            self._conversations.spawn(_converse, *self._next[1:])
            self._next = next(self._arrivals, None)

    def stop(self, patience: float) -> None:
        """Wait `patience` seconds for the conversations to end, and abandon what is left."""
        try:
            self._conversations.join(timeout=patience)
        finally:
            self._conversations.kill()


def _converse(line: Line, asker: Callable[[], Asker]) -> None:
    one = asker()
    with Client(line.target.url) as client:
        try:
            line.turn(client, one)
            while not one.begins:
                gevent.sleep(one.think())
                line.turn(client, one)
        except Abandoned:
            return
