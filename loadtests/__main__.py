"""`make loadtest`: starts a server on a free port, tests it, and stops it. The exit status is the verdict.

It is 0 if all goals are met, 1 if one is missed, and 2 if there were too few samples to tell.
With --host another server is tested, and none is started. The server reads its settings from HEADLIGHT_* variables.
"""

import argparse
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from loadtests.client import Client, ServerError

LOCUSTFILE = Path(__file__).with_name("locustfile.py")
START_SECONDS = 900.0
"""The time limit for a server to become ready; it may have a model to download."""


def main() -> int:
    """Parse the command line, run, return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m loadtests", description=__doc__)
    parser.add_argument("--host", default="", help="URL of a server to test (default: start one)")
    parser.add_argument("--model", default="", help="model to serve, or the host's to test (default: its own)")
    parser.add_argument("--users", type=int, default=4, help="users at most (default: 4)")
    parser.add_argument("--duration", default="2m", help="of the whole test: 90s, 2m, 1h30m (default: 2m)")
    parser.add_argument("--results", type=Path, default=Path("build/loadtest"), help="folder for what comes out")
    arguments, more = parser.parse_known_args()  # Unknown options belong to the locustfile.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # So that the server ends as well.
    arguments.results.mkdir(parents=True, exist_ok=True)
    common = ["-u", str(arguments.users), "-t", arguments.duration, "--results", str(arguments.results), *more]
    if arguments.host:
        return run_locust(arguments.host, [*common, "--model-name", arguments.model])
    try:
        with serving(arguments.model, arguments.results / "server.log") as url:
            return run_locust(url, common)
    except ServerError as error:
        print(f"loadtest: {error}", file=sys.stderr)
        return 1


def run_locust(url: str, options: list[str]) -> int:
    """Run the locustfile without an interface; returns its exit status.

    Locust runs in its own process, because it replaces the sockets of the process it is in.
    """
    command = [sys.executable, "-m", "locust", "-f", str(LOCUSTFILE), "--headless", "--only-summary", "--host", url]
    command.append("--skip-log-setup")  # The test says itself what it does, and Locust only what goes wrong.
    with subprocess.Popen([*command, *options]) as process:
        try:
            return process.wait()
        except KeyboardInterrupt:
            return process.wait()  # Locust was interrupted as well, and writes its results.
        finally:
            process.terminate()


@contextmanager
def serving(model: str, log: Path) -> Iterator[str]:
    """Start a server, wait until it is ready, yield its URL, and stop it.

    Raises ServerError with the last line of the server's log if it doesn't start.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    command = [sys.executable, "-m", "service.cli", "serve", *([model] if model else []), "--port", port]
    url = f"http://127.0.0.1:{port}"
    # The server gets its own session, so that an interrupt in the terminal ends the test first and the server after it.
    with log.open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, start_new_session=True)
    print(f"starting a server on port {port}, which says in {log} what it does ...", flush=True)
    try:
        wait_until_ready(url, process, log)
        yield url
    finally:
        process.terminate()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()


def wait_until_ready(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    """Poll /ready. Raises ServerError if the server ends before it is ready, or takes more than START_SECONDS."""
    deadline = time.monotonic() + START_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        try:
            with Client(url) as client:
                client.get("/ready")
        except ServerError:
            time.sleep(0.2)
        else:
            return
    lines = log.read_text(errors="replace").strip().splitlines()
    raise ServerError(f"the server did not start: {lines[-1] if lines else 'it said nothing'}")


if __name__ == "__main__":
    sys.exit(main())
