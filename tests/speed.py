"""Limits of time that hold on a machine of any speed: what takes the processor twice as long there may take twice as
long, and waiting is not counted.
"""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

REFERENCE_SECONDS = 0.03
"""The yardstick's time on the machine that limits are said for: a quiet core of 3 GHz."""


def yardstick() -> None:
    """A fixed piece of work of the kind that a server does in Python: numbers, texts, lists, memory."""
    for _ in range(4):
        texts = [str(number) for number in json.loads(json.dumps(list(range(25_000))))]
        sorted(texts)


def slowness() -> float:
    """How many times as long as on the machine that limits are said for the yardstick takes now, and at least 1."""
    began = time.process_time()
    yardstick()
    return max(1.0, (time.process_time() - began) / REFERENCE_SECONDS)


@contextmanager
def work_within(seconds: float) -> Iterator[None]:
    """Fails where its block takes more of this process's time, threads included.

    The yardstick is taken before and after, since a machine that others use as well changes its speed.
    """
    before = slowness()
    began = time.process_time()
    yield
    spent = time.process_time() - began
    assert spent < seconds * max(before, slowness())


@asynccontextmanager
async def turns_of_the_loop(told: list[float]) -> AsyncIterator[None]:
    """Adds to `told` the process's seconds from each turn of the event loop to the next."""

    async def beat() -> None:
        last = time.process_time()
        while True:
            await asyncio.sleep(0)
            now = time.process_time()
            told.append(now - last)
            last = now

    task = asyncio.create_task(beat())
    try:
        yield
    finally:
        task.cancel()
