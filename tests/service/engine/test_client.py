import asyncio
import gc
import signal
import subprocess
import sys
import time
import weakref
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest
import uvloop

from model.sampling_params import SamplingParams
from service.engine.client import ChannelClient, CompletionStream
from service.engine.messages import Delta, EngineRequest
from service.engine.status import EngineDead
from service.processes import engine_keeper
from service.processes.engine_config import EngineConfig
from service.processes.engine_keeper import EngineKeeper
from service.processes.restarts import RestartPolicy
from tests.service.engine.fake_loader import BLOCKS, EXIT, HANG, SEGFAULT, command
from tests.service.engine.fakes import output_alone

PATIENCE = 60
"""Seconds; nothing here takes a fraction of it unless it is broken."""

PARAMS = SamplingParams(max_tokens=12)
ENDLESS = SamplingParams(max_tokens=500)
AT_ONCE = RestartPolicy(limit=5, backoff_seconds=0.01)


class KeptClient(ChannelClient):
    """A client in the process that keeps the engine."""

    def __init__(self, config: EngineConfig, **options: Any) -> None:
        super().__init__()
        self.keeper = EngineKeeper(config, self.follow, **options)


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where clients put their temporary files."""
    folder = tmp_path / "t"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    return folder


@pytest.fixture
async def client(config: EngineConfig, temporary: Path) -> AsyncIterator[KeptClient]:
    """A client whose engine is ready. Whatever became of it, it leaves neither a process nor a file."""
    client = KeptClient(config, restart_policy=AT_ONCE)
    await client.keeper.start()
    await client.ready()
    yield client
    await client.keeper.stop()
    check_nothing_left(temporary)


OTHERS: set[psutil.Process] = set()
"""Processes that were there before: servers and engines that tests of other files share."""


@pytest.fixture(autouse=True, scope="module")
def others() -> None:
    OTHERS.update(psutil.Process().children(recursive=True))


def engines() -> list[psutil.Process]:
    """Zombies are among them."""
    return [child for child in psutil.Process().children(recursive=True) if child not in OTHERS]


def check_nothing_left(temporary: Path) -> None:
    assert engines() == []
    assert list(temporary.iterdir()) == []


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not condition():
            await asyncio.sleep(0.005)


async def read(stream: CompletionStream) -> list[Delta]:
    with stream:
        async with asyncio.timeout(PATIENCE):
            return [delta async for delta in stream]


async def check_service(client: KeptClient, prompt: list[int]) -> None:
    deltas = await read(client.submit(EngineRequest(prompt, PARAMS)))
    assert [token for delta in deltas for token in delta.tokens] == output_alone(prompt, PARAMS)[0]
    assert [delta.finish_reason for delta in deltas[:-1]] == [None] * (len(deltas) - 1)
    assert deltas[-1].finish_reason == "length"


async def check_error(stream: CompletionStream, reason: str) -> None:
    last = (await read(stream))[-1]
    assert last.finish_reason == "lost"
    assert last.error is not None
    assert reason in last.error


async def test_tokens_arrive(client: KeptClient) -> None:
    assert client.limits.num_blocks == BLOCKS
    await check_service(client, [1, 2, 3])
    assert client.stats.totals.generated_tokens == PARAMS.max_tokens


async def test_what_the_engine_tells_of_itself(client: KeptClient) -> None:
    assert [process.pid for process in engines()] == [client.pid]
    await check_error(client.submit(EngineRequest([EXIT], PARAMS)), "code 7")
    assert client.pid is None
    await client.ready()
    assert [process.pid for process in engines()] == [client.pid]
    assert client.info is not None
    assert client.info.backend == "fake"


async def test_the_last_delta_tells_how_long_the_request_was_where(client: KeptClient) -> None:
    began = asyncio.get_running_loop().time()
    times = (await read(client.submit(EngineRequest([1, 2, 3], PARAMS))))[-1].times
    assert times is not None
    phases = (times.queue, times.prefill, times.decode)
    assert all(phase is not None and phase >= 0 for phase in phases)
    assert 0 < sum(phase or 0 for phase in phases) < asyncio.get_running_loop().time() - began


async def test_many_streams_at_once(client: KeptClient) -> None:
    await asyncio.gather(*(check_service(client, [n, n + 1]) for n in range(32)))
    assert client.stats.blocks_used == client.stats.running == client.stats.waiting == 0


def test_uvloop(config: EngineConfig, temporary: Path) -> None:
    async def serve() -> None:
        client = KeptClient(config, restart_policy=AT_ONCE)
        await client.keeper.start()
        await client.ready()
        await asyncio.gather(*(check_service(client, [n]) for n in range(8)))
        with pytest.raises(AssertionError, match="code 7"):
            await check_error(client.submit(EngineRequest([EXIT], PARAMS)), "no reason")
        await client.ready()
        await check_service(client, [1])
        await client.keeper.stop()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(asyncio.wait_for(serve(), PATIENCE))
    check_nothing_left(temporary)


async def test_leaving_a_stream_frees_its_blocks_within_two_steps(client: KeptClient, script: Path) -> None:
    command(script, "steps 1")
    with client.submit(EngineRequest([1, 2, 3], ENDLESS)) as stream:
        assert len((await anext(stream)).tokens) == 1
        await until(lambda: client.stats.blocks_used > 0)
    # What was waiting for the next delta elsewhere is released, too.
    assert [delta.finish_reason async for delta in stream] == ["abort"]
    command(script, "steps 2")
    await until(lambda: client.stats.totals.steps == 2 or client.stats.blocks_used == 0)
    command(script, "steps 3")
    await until(lambda: client.stats.blocks_used == 0)
    assert client.stats.running == client.stats.waiting == 0
    command(script, "ok")
    await check_service(client, [1])


async def test_a_stream_read_to_its_end_is_not_cancelled(client: KeptClient) -> None:
    with client.submit(EngineRequest([1], PARAMS)) as stream:
        deltas = [delta async for delta in stream]
    assert deltas[-1].finish_reason == "length"
    assert [delta async for delta in stream] == []


async def test_a_reader_that_never_reads_delays_nobody(client: KeptClient) -> None:
    with client.submit(EngineRequest([1], ENDLESS)) as unread:
        for n in range(8):
            await check_service(client, [n])
        await until(lambda: client.stats.running == 0)
        assert sum(len(delta.tokens) for delta in await read(unread)) == ENDLESS.max_tokens


async def test_the_client_keeps_no_stream_that_is_over(client: KeptClient) -> None:
    with client.submit(EngineRequest([1], ENDLESS)) as left:
        await anext(left)
    over = asyncio.Event()
    finished = client.submit(EngineRequest([2], PARAMS))
    unread = client.submit(EngineRequest([3], PARAMS), ended=over.set)
    await read(finished)
    # The engine may run nothing because the request has yet to reach it.
    await asyncio.wait_for(over.wait(), PATIENCE)
    remains = [weakref.ref(stream) for stream in (left, finished, unread)]
    del left, finished, unread
    gc.collect()
    assert [stream() for stream in remains] == [None] * 3


@pytest.mark.parametrize(("token", "reason"), [(EXIT, "exited with code 7"), (SEGFAULT, "killed by SIGSEGV")])
async def test_a_crash_ends_every_stream_and_the_engine_comes_back(
    client: KeptClient, script: Path, token: int, reason: str
) -> None:
    # No stream may end before the last request is there.
    command(script, "steps 1")
    streams = [client.submit(EngineRequest([n], ENDLESS)) for n in range(4)]
    streams.append(client.submit(EngineRequest([token], PARAMS)))
    command(script, "ok")
    await asyncio.gather(*(check_error(stream, reason) for stream in streams))
    await client.ready()
    assert client.restarts == 1
    await check_service(client, [1])


async def test_a_killed_idle_engine_is_noticed(config: EngineConfig) -> None:
    client = KeptClient(config, restart_policy=RestartPolicy(limit=0))
    await client.keeper.start()
    await client.ready()
    assert client.health().alive
    engines()[0].kill()
    await until(lambda: not client.health().alive)
    assert client.health().state == "dead"
    assert client.health().reason == "the engine was killed by SIGKILL"
    with pytest.raises(EngineDead, match="SIGKILL"):
        client.submit(EngineRequest([1], PARAMS))
    with pytest.raises(EngineDead, match="SIGKILL"):
        await client.ready()
    assert engines() == []
    await client.keeper.stop()


async def test_states_of_a_restart(client: KeptClient, script: Path) -> None:
    command(script, "wait")
    engines()[0].kill()
    await until(lambda: client.health().state == "starting")
    assert client.health().alive
    with pytest.raises(EngineDead, match="loading"):
        client.submit(EngineRequest([1], PARAMS))
    waiting = asyncio.create_task(client.ready())
    command(script, "ok")
    await waiting
    assert client.health().state == "ready"
    await check_service(client, [1])


async def test_restarts_are_limited(config: EngineConfig, temporary: Path) -> None:
    client = KeptClient(config, restart_policy=RestartPolicy(limit=2, backoff_seconds=0.01))
    await client.keeper.start()
    for _ in range(3):
        await client.ready()
        await check_error(client.submit(EngineRequest([EXIT], PARAMS)), "code 7")
    with pytest.raises(EngineDead, match="code 7"):
        await client.ready()
    assert client.restarts == 2
    check_nothing_left(temporary)
    await client.keeper.stop()


async def test_restarts_long_ago_do_not_count(config: EngineConfig) -> None:
    client = KeptClient(config, restart_policy=RestartPolicy(limit=1, window_seconds=0, backoff_seconds=0.01))
    await client.keeper.start()
    for _ in range(3):
        await client.ready()
        await check_error(client.submit(EngineRequest([EXIT], PARAMS)), "code 7")
    await client.ready()
    await client.keeper.stop()


async def test_a_failed_reload_is_tried_again(client: KeptClient, script: Path) -> None:
    command(script, "refuse")
    engines()[0].kill()
    await until(lambda: "cut off" in client.health().reason)
    command(script, "ok")
    await client.ready()
    await check_service(client, [1])


@pytest.mark.parametrize(
    ("order", "reason"),
    [
        ("refuse", "model.gguf is cut off after 12 bytes"),
        ("bug", "KeyError: 'blk.0.attn_q.weight'"),
        ("crash", "the engine exited with code 9"),
    ],
)
async def test_a_failed_first_load_is_final(
    config: EngineConfig, script: Path, temporary: Path, order: str, reason: str
) -> None:
    command(script, order)
    client = KeptClient(config, restart_policy=AT_ONCE)
    await client.keeper.start()
    with pytest.raises(EngineDead) as raised:
        await client.ready()
    assert str(raised.value) == client.health().reason == reason
    assert client.health().state == "dead"
    assert client.restarts == 0
    with pytest.raises(EngineDead, match=reason):
        _ = client.limits
    check_nothing_left(temporary)
    await client.keeper.stop()


async def test_an_engine_that_cannot_be_spawned_is_final(config: EngineConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/nonexistent/python")
    client = KeptClient(config)
    await client.keeper.start()
    with pytest.raises(EngineDead, match="could not be started"):
        await client.ready()


async def test_a_slow_load_is_not_a_hang(config: EngineConfig, script: Path) -> None:
    command(script, "wait")
    client = KeptClient(config, timeout_seconds=0.1)
    await client.keeper.start()
    await asyncio.sleep(1)
    assert client.health().state == "starting"
    command(script, "ok")
    await client.ready()
    assert client.restarts == 0
    await client.keeper.stop()


async def test_a_step_that_hangs_ends_the_engine(config: EngineConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    # How much longer the first step may take is another test's subject.
    monkeypatch.setattr(engine_keeper, "UNSEEN", 1)
    client = KeptClient(config, timeout_seconds=5, restart_policy=AT_ONCE, grace_seconds=2 * PATIENCE)
    await client.keeper.start()
    await client.ready()
    streams = [client.submit(EngineRequest([1], ENDLESS)), client.submit(EngineRequest([HANG], PARAMS))]
    await asyncio.gather(*(check_error(stream, "hung") for stream in streams))
    async with asyncio.timeout(PATIENCE):
        await client.ready()
    await check_service(client, [1])
    await client.keeper.stop()


async def test_an_idle_engine_without_a_heartbeat_is_killed(config: EngineConfig) -> None:
    client = KeptClient(config, timeout_seconds=3, restart_policy=RestartPolicy(limit=0), grace_seconds=2 * PATIENCE)
    await client.keeper.start()
    await client.ready()
    engines()[0].suspend()
    await until(lambda: not client.health().alive)
    assert "hung" in client.health().reason
    await until(lambda: engines() == [])
    await client.keeper.stop()


async def test_a_pause_of_the_client_is_not_taken_for_a_hang(config: EngineConfig) -> None:
    client = KeptClient(config, timeout_seconds=3, restart_policy=AT_ONCE)
    await client.keeper.start()
    await client.ready()
    engine = engines()[0]
    engine.suspend()
    time.sleep(4)
    engine.resume()
    await check_service(client, [1])
    assert client.restarts == 0
    await client.keeper.stop()


async def test_stop_ends_open_streams(client: KeptClient, script: Path) -> None:
    command(script, "steps 1")
    stream = client.submit(EngineRequest([1], ENDLESS))
    await anext(stream)
    command(script, "ok")
    await client.keeper.stop()
    await check_error(stream, "stopped")
    assert client.health().state == "dead"
    with pytest.raises(EngineDead, match="stopped"):
        await client.ready()
    await client.keeper.stop()


@pytest.mark.parametrize("moment", ["unstarted", "spawning", "loading"])
async def test_stop_at_an_early_moment(config: EngineConfig, script: Path, temporary: Path, moment: str) -> None:
    command(script, "wait")
    client = KeptClient(config, grace_seconds=0.1)
    if moment != "unstarted":
        await client.keeper.start()
        waiting = asyncio.create_task(client.ready())
        if moment == "loading":
            await until(lambda: any(temporary.glob("*/engine")))
    await client.keeper.stop()
    check_nothing_left(temporary)
    if moment != "unstarted":
        with pytest.raises(EngineDead, match="stopped"):
            await waiting


async def test_an_engine_that_does_not_leave_is_killed(config: EngineConfig, temporary: Path) -> None:
    client = KeptClient(config, grace_seconds=0.1)
    await client.keeper.start()
    await client.ready()
    engines()[0].suspend()
    await client.keeper.stop()
    check_nothing_left(temporary)


async def test_a_long_temporary_path(config: EngineConfig, temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = temporary / ("x" * 100)
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    client = KeptClient(config)
    await client.keeper.start()
    await client.ready()
    await check_service(client, [1])
    await client.keeper.stop()


PARENT = """
import asyncio, sys
import msgspec
from service.engine.client import ChannelClient
from service.processes.engine_keeper import EngineKeeper
from service.processes.engine_config import EngineConfig

async def main():
    client = ChannelClient()
    keeper = EngineKeeper(msgspec.json.decode(sys.argv[1], type=EngineConfig), client.follow)
    await keeper.start()
    await client.ready()
    print("ready", flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


def test_the_engine_of_a_killed_parent_ends(config: EngineConfig) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", PARENT, msgspec.json.encode(config)], stdout=subprocess.PIPE
    ) as parent:
        assert parent.stdout
        assert parent.stdout.readline() == b"ready\n"
        (engine,) = psutil.Process(parent.pid).children()
        assert engine.is_running()
        parent.send_signal(signal.SIGKILL)
        parent.wait()
    deadline = time.monotonic() + PATIENCE
    # Whoever inherits the orphan may be slow to reap it.
    while engine.is_running() and engine.status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline
        time.sleep(0.01)
