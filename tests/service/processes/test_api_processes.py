"""A server whose HTTP side is several processes: one port, one engine, one set of counts and of limits."""

import asyncio
import http.client
import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families

from service.engine.grammar_trial import Trial
from service.engine.messages import Grammar
from service.engine.status import STARTING, EngineStatus
from service.processes.api_keeper import ApiDead, ApiKeeper
from service.processes.orders import ApiConfig, Setup
from service.processes.restarts import RestartPolicy
from service.settings import Settings
from tests.service.servers import PATIENCE, free_port, save_dummy_llama, serving, status, wait_until

PROCESSES = 3
CAPACITY = 5
FLAGS = ("--max-running", "4", "--max-waiting", "1")
LONG = 15_000
"""Tokens; minutes."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The configuration of a small Llama, whose weights are random."""
    folder = tmp_path_factory.mktemp("model")
    save_dummy_llama(folder, LONG + 100)
    return folder


def children(module: str, parent: int | None = None) -> list[psutil.Process]:
    """Those of a process, or of this one, that run a module."""
    found = []
    for child in psutil.Process(parent).children():
        with suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
            if module in child.cmdline():
                found.append(child)
    return found


class Connection:
    """A kept connection, and so to one process."""

    def __init__(self, port: int) -> None:
        self._http = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)

    def get(self, path: str) -> tuple[int, str]:
        self._http.request("GET", path)
        response = self._http.getresponse()
        return response.status, response.read().decode()

    def ask(self, max_tokens: int, **fields: Any) -> None:
        body = {"prompt": "a", "max_tokens": max_tokens, "ignore_eos": True} | fields
        self._http.request("POST", "/v1/completions", json.dumps(body), {"content-type": "application/json"})

    def complete(self, max_tokens: int) -> tuple[int, Any]:
        self.ask(max_tokens)
        response = self._http.getresponse()
        return response.status, json.loads(response.read())

    def stream(self, max_tokens: int) -> http.client.HTTPResponse:
        """An answer that has begun."""
        self.ask(max_tokens, stream=True)
        response = self._http.getresponse()
        assert response.readline().startswith(b"data: {")
        return response

    def close(self) -> None:
        self._http.close()

    def is_with(self, process: psutil.Process) -> bool:
        own = self._http.sock.getsockname()
        return any(tuple(peer.raddr) == own for peer in process.net_connections("tcp"))


class Server:
    """A running server's processes, and connections to them."""

    def __init__(self, url: str, supervisor: "subprocess.Popen[str]", processes: int) -> None:
        self.port = int(url.rpartition(":")[2])
        self.supervisor = supervisor
        self.processes = processes
        self._connections: list[Connection] = []

    @property
    def apis(self) -> list[psutil.Process]:
        return children("service.processes.api_process", self.supervisor.pid)

    @property
    def engine(self) -> psutil.Process:
        (engine,) = children("service.processes.engine_process", self.supervisor.pid)
        return engine

    @property
    def everybody(self) -> list[psutil.Process]:
        supervisor = psutil.Process(self.supervisor.pid)
        return [supervisor, *supervisor.children(recursive=True)]

    def connect(self) -> Connection:
        self._connections.append(Connection(self.port))
        self._connections[-1].get("/health")
        return self._connections[-1]

    def connect_to_each(self) -> list[Connection]:
        """A connection to each API process; the order is that of `apis`."""
        found: dict[int, Connection] = {}
        deadline = time.monotonic() + 60  # A process that replaces another is among `apis` before it listens.
        while time.monotonic() < deadline:
            connection = self.connect()
            process = next(api for api in self.apis if connection.is_with(api))
            found.setdefault(process.pid, connection)
            if len(found) == self.processes:
                return [found[api.pid] for api in self.apis]
        raise AssertionError("the processes do not share the port")

    def close(self) -> None:
        while self._connections:
            self._connections.pop().close()


@contextmanager
def running(model: Path, folder: Path, *flags: str, processes: int = 2) -> Iterator[Server]:
    """A server on the tiny model. Nothing of it may remain, neither a process nor a file."""
    temporary = folder / "t"
    temporary.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", str(temporary))
        command = (str(model), "--backend", "reference", "--dtype", "float32", "--load-format", "dummy")
        command += ("--api-processes", str(processes))
        with serving(*command, *flags, log=folder / "log") as (url, supervisor):
            server = Server(url, supervisor, processes)
            try:
                yield server
            finally:
                server.close()
                everybody = server.everybody if supervisor.poll() is None else []
    assert psutil.wait_procs(everybody, timeout=PATIENCE)[1] == []
    # Orphans end on their own.
    wait_until(lambda: not list(temporary.iterdir()))


@pytest.fixture(scope="module")
def shared(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running(model, tmp_path_factory.mktemp("shared"), *FLAGS, processes=PROCESSES) as server:
        yield server


@pytest.fixture
def server(shared: Server) -> Iterator[Server]:
    """The one that tests share: ready, and without connections."""
    wait_until(lambda: len(shared.apis) == PROCESSES)
    assert all(connection.get("/ready")[0] == 200 for connection in shared.connect_to_each())
    yield shared
    shared.close()


Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def scrape(connection: Connection) -> Samples:
    """Every sample; each family of them is there once."""
    text = connection.get("/metrics")[1]
    names = [line.split()[2] for line in text.splitlines() if line.startswith("# TYPE")]
    assert len(names) == len(set(names))
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    found = {(sample.name, frozenset(sample.labels.items())): sample.value for sample in samples}
    assert len(found) == len(samples)
    return found


def total(samples: Samples, name: str, **labels: str) -> float:
    return sum(
        value for (key, pairs), value in samples.items() if key == name and labels.items() <= dict(pairs).items()
    )


def engine_is_free(connection: Connection) -> bool:
    samples = scrape(connection)
    return not any(total(samples, f"headlight_{name}") for name in ("num_requests_running", "kv_cache_usage_perc"))


def test_what_the_processes_count_adds_up_whichever_is_asked(server: Server) -> None:
    connections = server.connect_to_each()
    before = scrape(connections[0])
    ids = {connection.complete(max_tokens=7)[1]["id"] for connection in connections * 2}
    assert len(ids) == 2 * PROCESSES
    # The engine's last report may be on its way while the answer is.
    for connection in connections:
        wait_until(lambda connection=connection: engine_is_free(connection))
    for samples in map(scrape, connections):
        for name, increase in {
            "headlight_request_success_total": 6,
            "headlight_e2e_request_latency_seconds_count": 6,
            "headlight_inter_token_latency_seconds_count": 36,
            "headlight_request_generation_tokens_sum": 42,
            "headlight_generation_tokens_total": 42,
        }.items():
            assert total(samples, name) - total(before, name) == increase, name
        answered = {"route": "/v1/completions", "status": "200"}
        name = "headlight_http_responses_total"
        assert total(samples, name, **answered) - total(before, name, **answered) == 6
        assert total(samples, "headlight_engine_up") == 1
        pids = {dict(pairs)["process"] for name, pairs in samples if name == "process_resident_memory_bytes"}
        assert pids == {str(slot) for slot in range(PROCESSES)}


def test_the_queue_is_bounded_for_all_processes_together(server: Server) -> None:
    running, asking = server.connect_to_each(), server.connect_to_each()
    streams = [connection.stream(LONG) for connection in [*running, server.connect()]]
    assert len(streams) == CAPACITY - 1
    waiting = server.connect()
    waiting.ask(LONG)  # No answer comes while it waits, nor before its last token.
    wait_until(lambda: total(scrape(asking[0]), "headlight_num_requests_waiting") == 1)
    answers = [connection.complete(max_tokens=1) for connection in asking]
    assert [(status, body["error"]["code"]) for status, body in answers] == [(429, "queue_full")] * PROCESSES
    running[0].close()
    running[1].close()
    wait_until(lambda: asking[2].complete(max_tokens=1)[0] == 200)


def test_a_killed_process_is_replaced_and_the_others_notice_nothing(server: Server) -> None:
    victim, other, _ = server.apis
    engine = server.engine.pid
    doomed, spared, asked = server.connect_to_each()
    before = total(scrape(asked), "headlight_http_responses_total")
    cut, whole = doomed.stream(LONG), spared.stream(100)
    victim.kill()
    with pytest.raises((http.client.IncompleteRead, ConnectionError)):
        cut.read()
    assert whole.read().endswith(b"data: [DONE]\n\n")
    # What its requests had is free again, in the engine and in the queue.
    wait_until(lambda: engine_is_free(asked))
    wait_until(lambda: len(server.apis) == PROCESSES and victim not in server.apis)
    assert other in server.apis
    assert server.engine.pid == engine
    assert [connection.complete(max_tokens=3)[0] for connection in server.connect_to_each()] == [200] * PROCESSES
    samples = scrape(asked)
    assert total(samples, "headlight_http_responses_total") > before
    assert total(samples, "headlight_engine_restarts_total") == 0
    assert server.supervisor.poll() is None


def test_an_engine_that_dies_is_told_to_every_process(server: Server) -> None:
    connections = server.connect_to_each()
    streams = [connection.stream(LONG) for connection in connections]
    server.engine.kill()
    for stream in streams:
        assert b"killed by SIGKILL" in stream.read().splitlines()[-2]
    for connection in server.connect_to_each():
        wait_until(lambda connection=connection: connection.get("/ready")[0] == 200)
        assert connection.complete(max_tokens=3)[0] == 200
        assert total(scrape(connection), "headlight_engine_restarts_total") == 1


def test_nothing_outlives_a_killed_supervisor(server: Server) -> None:
    """The last test of those that share the server."""
    children = server.everybody[1:]
    assert len(children) == PROCESSES + 1
    server.supervisor.kill()
    assert psutil.wait_procs(children, timeout=PATIENCE)[1] == []


def test_a_signal_to_all_drains_them_all(model: Path, tmp_path: Path) -> None:
    """As a service manager sends it, to each process."""
    with running(model, tmp_path, *FLAGS, "--drain-seconds", "100") as server:
        connections = server.connect_to_each()
        streams = [connection.stream(80) for connection in connections]
        for process in server.everybody:
            process.send_signal(signal.SIGTERM)
        assert [stream.read()[-14:] for stream in streams] == [b"data: [DONE]\n\n"] * server.processes
        assert server.supervisor.wait(PATIENCE) == 0


def test_a_second_signal_ends_it_at_once(model: Path, tmp_path: Path) -> None:
    with running(model, tmp_path, *FLAGS) as server:
        server.connect().stream(LONG)
        server.supervisor.send_signal(signal.SIGINT)
        waiting = server.connect()
        wait_until(lambda: waiting.get("/ready")[0] == 503)
        assert "draining" in waiting.get("/ready")[1]
        began = time.monotonic()
        server.supervisor.send_signal(signal.SIGINT)
        assert server.supervisor.wait(PATIENCE) == 0
        assert time.monotonic() - began < 25  # Of the 30 that draining would have taken.


def test_a_signal_that_comes_before_the_supervisor_can_hear_it_ends_the_server(model: Path) -> None:
    """The process that was called goes on as a program that holds little, and is found in lists as what was called."""
    command = (sys.executable, "-m", "service.cli", "serve", str(model), "--load-format", "dummy", "--port", "0")
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        process = psutil.Process(server.pid)
        wait_until(lambda: "service.processes.supervisor_process" in process.cmdline(), every=0.001)
        server.terminate()
        assert "headlight serve" in " ".join(process.cmdline())
        assert server.wait(PATIENCE) == 0


def test_packages_of_the_working_folder_do_not_stand_for_the_servers(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("service", "model", "kernels"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise SystemExit('a package of somebody else')")
    monkeypatch.chdir(tmp_path)
    port = free_port()
    # A command that was installed starts without the working folder, as this one does.
    command = (sys.executable, "-P", "-m", "service.cli", "serve", str(model), "--load-format", "dummy")
    with subprocess.Popen([*command, "--port", str(port)], stdout=subprocess.DEVNULL) as server:
        wait_until(lambda: server.poll() is not None or status(f"http://127.0.0.1:{port}/ready") == 200)
        assert server.poll() is None
        server.terminate()
        assert server.wait(PATIENCE) == 0
    assert Trial()(Grammar("regex", "a", "structured_outputs"))


def test_what_keeps_the_processes_from_starting_is_one_plain_line(model: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    for file in model.iterdir():
        (broken / file.name).write_bytes(b"{}" if file.name == "tokenizer.json" else file.read_bytes())
    flags = ["--load-format", "dummy", "--port", "0", "--api-processes", "2"]
    command = [sys.executable, "-m", "service.cli", "serve", str(broken), *flags]
    result = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert result.returncode == 1
    assert result.stderr.count("\n") == 1, result.stderr
    assert "tokenizer.json" in result.stderr


async def test_a_process_that_hangs_is_replaced_and_one_that_dies_again_and_again_is_given_up(
    model: Path, tmp_path: Path
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        settings = Settings(model=str(model), load_format="dummy", port=port).revealed()
        config = ApiConfig(settings, "toy", str(model), None, listener.fileno())
        setup = Setup(config, str(tmp_path), slot=0, started=0)
        policy = RestartPolicy(limit=1, backoff_seconds=0.01)
        status = EngineStatus(STARTING, 0)
        keeper = ApiKeeper(setup, status, drain_seconds=0, timeout_seconds=5, restart_policy=policy)
        run = asyncio.create_task(keeper.run())
        first = await serving_process(port)
        first.suspend()
        second = await serving_process(port, after=first)
        assert not first.is_running()
        second.kill()
        with pytest.raises(ApiDead, match="API process 0 was killed by SIGKILL"):
            await run


async def serving_process(port: int, after: psutil.Process | None = None) -> psutil.Process:
    """This process's child, once it answers HTTP."""
    async with asyncio.timeout(PATIENCE):
        while True:
            found = children("service.processes.api_process")
            if found and found != [after]:
                async with httpx.AsyncClient() as client:
                    assert (await client.get(f"http://127.0.0.1:{port}/health", timeout=PATIENCE)).status_code == 200
                return found[0]
            await asyncio.sleep(0.05)
