"""A replica set in miniature: two servers behind nginx are restarted one after the other, and nobody notices.

What Kubernetes does with a pod is done here by hand, in its order: off the load balancer's list, a pause for the news
to spread (preStop), SIGTERM, the drain, a new server, and back on the list once /ready says so.
"""

import asyncio
import json
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import httpx
import pytest

from tests.deploy.tools import tool
from tests.service.servers import PATIENCE, free_port, get, save_dummy_llama, status, wait_until

CONFIG = Path(__file__).parent / "nginx.conf"
USERS = 4
TOKENS = 60
LAST_TOKENS = 400
PRE_STOP_SECONDS = 1.0
DRAIN_SECONDS = 20
TEARDOWN_SECONDS = 15


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The configuration of a small Llama, whose weights are random."""
    folder = tmp_path_factory.mktemp("model")
    save_dummy_llama(folder, 512)
    return folder


class Replica:
    """A server on a port of its own, which its successors take over."""

    def __init__(self, model: Path, log: Path) -> None:
        self._port = free_port()
        flags = ["--load-format", "dummy", "--threads", "1", "--cache-memory", "16MB", "--port", str(self._port)]
        flags += ["--drain-seconds", str(DRAIN_SECONDS), "--served-model-name", "tiny"]
        self._command = [sys.executable, "-m", "service.cli", "serve", str(model), *flags]
        self._log = log
        self.address = f"127.0.0.1:{self._port}"

    def start(self) -> None:
        with self._log.open("a") as log:
            self.process = subprocess.Popen(self._command, stdout=log, stderr=log)

    def status(self) -> int:
        """Of /ready; 0 if nobody answers."""
        return status(f"http://{self.address}/ready")

    def ready(self) -> bool:
        """The test fails if the process has ended."""
        assert self.process.poll() is None, self._log.read_text()
        return self.status() == 200

    def running(self) -> float:
        """Completions in the batch, by its own account."""
        answered, text = get(f"http://{self.address}/metrics")
        assert answered == 200
        return sum(
            float(line.split()[-1]) for line in text.splitlines() if line.startswith("headlight_num_requests_running{")
        )


class Balancer:
    """nginx before those replicas that are on its list."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.socket = str(folder / "nginx.sock")
        # What it includes lies beside it.
        config = shutil.copy(CONFIG, folder)
        self._command = [tool("nginx"), "-p", str(folder), "-c", str(config), "-e", str(folder / "error.log")]

    def set(self, *replicas: Replica) -> None:
        """Send requests to these; those that are on their way go on where they are."""
        (self._folder / "upstream.conf").write_text("".join(f"server {replica.address};\n" for replica in replicas))
        if (self._folder / "nginx.pid").exists():
            subprocess.run([*self._command, "-s", "reload"], cwd=self._folder, check=True)

    @contextmanager
    def running(self) -> Iterator[None]:
        with subprocess.Popen(self._command, cwd=self._folder) as process:
            try:
                wait_until(lambda: process.poll() is not None or (self._folder / "nginx.pid").exists())
                assert process.poll() is None, (self._folder / "error.log").read_text()
                yield
            finally:
                process.terminate()


class Users:
    """Clients that ask one thing after the other, every second time as a stream."""

    def __init__(self, socket: str) -> None:
        self.answers: Counter[str] = Counter()
        self._socket = socket
        self._leave = asyncio.Event()

    @asynccontextmanager
    async def at_work(self) -> AsyncIterator[None]:
        """They finish what they have begun, and what went wrong for one of them is raised."""
        transport = httpx.AsyncHTTPTransport(uds=self._socket)
        async with (
            httpx.AsyncClient(transport=transport, base_url="http://headlight", timeout=PATIENCE) as client,
            asyncio.TaskGroup() as tasks,
        ):
            for number in range(USERS):
                tasks.create_task(self._visit(client, number))
            yield
            self._leave.set()

    async def _visit(self, client: httpx.AsyncClient, number: int) -> None:
        while not self._leave.is_set():
            number += 1
            await complete(client, TOKENS, stream=number % 2 == 0)
            self.answers["streamed" if number % 2 == 0 else "whole"] += 1


async def complete(client: httpx.AsyncClient, tokens: int, *, stream: bool) -> None:
    """Ask for a completion, which has to come and to be whole."""
    request = {"prompt": "a", "max_tokens": tokens, "ignore_eos": True, "stream": stream}
    answer = await client.post("/v1/completions", json=request)
    assert answer.status_code == 200, answer.text
    last = answer.text
    if stream:
        events = [line.removeprefix("data: ") for line in answer.text.splitlines() if line]
        assert events[-1] == "[DONE]"
        last = events[-2]
    assert json.loads(last)["choices"][0]["finish_reason"] == "length"


async def restart(replica: Replica, others: list[Replica], balancer: Balancer) -> None:
    """One replica's share of a rolling restart, while a request is under way in it."""
    balancer.set(*others)
    await asyncio.sleep(PRE_STOP_SECONDS)
    async with httpx.AsyncClient(base_url=f"http://{replica.address}", timeout=PATIENCE) as client:
        last = asyncio.create_task(complete(client, LAST_TOKENS, stream=True))
        await asyncio.to_thread(wait_until, lambda: replica.running() > 0)
        asked = time.monotonic()
        replica.process.send_signal(signal.SIGTERM)
        await asyncio.to_thread(wait_until, lambda: replica.status() != 200)
        await last
    assert await asyncio.to_thread(replica.process.wait) == 0
    assert time.monotonic() - asked < DRAIN_SECONDS + TEARDOWN_SECONDS
    replica.start()
    await asyncio.to_thread(wait_until, replica.ready)
    balancer.set(*others, replica)


async def test_a_rolling_restart_under_load_fails_no_request(model: Path, tmp_path: Path) -> None:
    balancer = Balancer(tmp_path)
    replicas = [Replica(model, tmp_path / f"{name}.log") for name in ("first", "second")]
    try:
        for replica in replicas:
            replica.start()
        await asyncio.to_thread(wait_until, lambda: all(replica.ready() for replica in replicas))
        balancer.set(*replicas)
        with balancer.running():
            users = Users(balancer.socket)
            async with users.at_work():
                for replica in replicas:
                    before = users.answers.total()
                    await restart(replica, [other for other in replicas if other is not replica], balancer)
                    # Whoever came meanwhile was served by the other.
                    assert users.answers.total() > before
        assert min(users.answers["streamed"], users.answers["whole"]) > 0
    finally:
        for replica in replicas:
            replica.process.kill()
            replica.process.wait()
