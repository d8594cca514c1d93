"""The lag of an event loop: how late its tasks run because others hold it."""

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
    """Sleep again and again, and call `observe` with each waking's delay in seconds. Ends when cancelled."""
    while True:
        due = clock() + INTERVAL_SECONDS
        await sleep(INTERVAL_SECONDS)
        observe(max(clock() - due, 0.0))
