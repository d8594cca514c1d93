"""`python -m benchmarks.api_host`: CPU time of an API process for each step of the engine, whose device only waits.

Everything is real but the device: the engine's process, its socket, detokenising, the events and the connections to
clients, which read in a process of their own. CPU time of the processes is counted and not the clock on the wall.
"""

import argparse
import asyncio
import cProfile
import gc
import os
import pstats
import socket
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec
import uvloop

from benchmarks.waiting import CONTEXT, DEVICE_SECONDS
from service.api.admission import Admission
from service.api.places import Places
from service.api.server import Server
from service.app import create_app
from service.engine.client import ChannelClient
from service.model_files import locate
from service.observability.metrics import Metrics
from service.processes.engine_config import engine_config
from service.processes.engine_keeper import EngineKeeper
from service.served_model import read_served_model
from service.settings import Settings


async def measure(requests: int, seconds: float, profile: cProfile.Profile | None) -> dict[str, float]:
    """CPU milliseconds of both processes for each step with so many streamed chats, over so many seconds."""
    settings = Settings(
        served_model_name="measured", max_running=requests, token_budget=4096, max_waiting=0, request_timeout=600
    )
    source = locate(settings)
    config = msgspec.structs.replace(engine_config(settings, source), loader="benchmarks.waiting:load")
    client = ChannelClient()
    keeper = EngineKeeper(config, client.follow)
    await keeper.start()
    await client.ready()
    with TemporaryDirectory() as folder, socket.socket() as listener:
        admission = Admission(settings.max_open, Places(Path(folder) / "places", slot=0, slots=1))
        served = read_served_model(settings, source)
        app = create_app(settings, served, client, admission, Metrics(client, "measured"), started=0)
        server = Server(app, settings, admission, client, alive=lambda: None)
        listener.bind(("127.0.0.1", 0))
        listener.listen(1024)
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        port = str(listener.getsockname()[1])
        gc.freeze()
        command = [sys.executable, "-m", "benchmarks.streams", port, str(requests), str(CONTEXT - 512)]
        with subprocess.Popen(command) as clients:
            while client.stats.running < requests or client.stats.totals.generated_tokens < 20 * requests:
                await asyncio.sleep(0.1)
                if clients.poll() is not None:
                    raise SystemExit("the clients ended before their streams")
            before, api, engine = client.stats.totals, time.process_time(), cpu_seconds(client.pid)
            with profile or nullcontext():
                await asyncio.sleep(seconds)
            steps = client.stats.totals.steps - before.steps
            tokens = client.stats.totals.generated_tokens - before.generated_tokens
            told = {
                "steps": steps,
                "completions": tokens / steps,
                "api_ms": 1000 * (time.process_time() - api) / steps,
                "engine_ms": 1000 * (cpu_seconds(client.pid) - engine) / steps,
            }
            clients.kill()
        server.drain()  # Which waits until it has seen that the clients left.
        await serving
    await keeper.stop()
    return told


def cpu_seconds(pid: int | None) -> float:
    """CPU seconds of a process of this machine so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def main() -> None:
    """Parse the command line, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, nargs="+", default=[1, 8, 32, 128])
    parser.add_argument("--seconds", type=float, default=5.0, help="time to count CPU time in")
    parser.add_argument("--device-ms", type=float, default=8.0, help="time that the device takes for a step")
    parser.add_argument("--profile", action="store_true", help="print what the API process's time went to")
    args = parser.parse_args()
    os.environ[DEVICE_SECONDS] = str(args.device_ms / 1000)
    for requests in args.requests:
        profile = cProfile.Profile() if args.profile else None
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            told = runner.run(measure(requests, args.seconds, profile))
        print(f"{requests:>4} streams: " + "  ".join(f"{name} {value:.3f}" for name, value in told.items()), flush=True)
        if profile is not None:
            pstats.Stats(profile).sort_stats("tottime").print_stats(40)


if __name__ == "__main__":
    main()
