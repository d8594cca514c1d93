"""How late an event loop is: what its tasks wait for each other."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import NoReturn

INTERVAL_SECONDS = 0.25


async def watch_loop(
    observe: Callable[[float], object],
    clock: Callable[[], float] = time.perf_counter,
    sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
) -> NoReturn:
    """Sleep again and again, and tell `observe` by how many seconds each waking was late. Ends when cancelled."""
    while True:
        due = clock() + INTERVAL_SECONDS
        await sleep(INTERVAL_SECONDS)
        observe(max(clock() - due, 0.0))
