import asyncio
import gc
import logging
from pathlib import Path

import pytest

from benchmarks.api_host import measure
from benchmarks.waiting import DEVICE_SECONDS
from service.api import sse


async def test_it_ends_without_an_error_once_all_streams_have_ended(
    smollm2: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """However long a busy machine takes for that."""
    notices = sse._departure

    async def notices_late(receive: sse.Receive) -> None:
        await notices(receive)
        await asyncio.sleep(1.5)

    monkeypatch.setattr(sse, "_departure", notices_late)
    monkeypatch.setenv(DEVICE_SECONDS, "0.001")
    try:
        told = await measure(requests=2, seconds=0.2, profile=None)
    finally:
        gc.unfreeze()
    assert told["steps"] > 0
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []
