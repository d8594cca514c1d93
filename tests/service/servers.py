"""Real server processes for tests that speak HTTP to them."""

import json
import os
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO
from urllib.parse import urlsplit

import pytest

from tests.byte_tokenizer import save_byte_tokenizer

PATIENCE = 120.0
"""Seconds for what takes two or three on a machine that does nothing else."""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def save_dummy_llama(folder: Path, context: int) -> None:
    """The configuration of a small Llama for `context` tokens, and a tokenizer; its weights are to be random."""
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": 300,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": context,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
    }
    (folder / "config.json").write_text(json.dumps(config))
    save_byte_tokenizer(folder)


@contextmanager
def serving(*flags: str, log: Path | None = None) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """A server process that is ready, and its URL. `flags` may begin with the model; `log` gets what it writes."""
    port = free_port()
    command = [sys.executable, "-m", "service.cli", "serve", *flags, "--port", str(port), "--cache-memory", "256MB"]
    with (
        # Not a pipe, which would hold up the server once it is full.
        open(log, "w+") if log else TemporaryFile("w+") as output,
        subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, text=True) as process,
    ):
        try:
            url = f"http://127.0.0.1:{port}"
            _wait_until_ready(url, process, output)
            yield url, process
        finally:
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()


def _wait_until_ready(url: str, process: subprocess.Popen[str], output: IO[str]) -> None:
    """Fail with what the server wrote if it ends or takes too long: all tests that share it get this one message."""
    deadline = time.monotonic() + PATIENCE
    while process.poll() is None and time.monotonic() < deadline:
        if status(f"{url}/ready") == 200:
            return
        time.sleep(0.1)  # The answers are not free either, and a start takes seconds.
    ended = process.poll() is not None
    problem = f"ended with status {process.returncode}" if ended else f"was not ready within {PATIENCE:.0f} s"
    # The server goes on writing at the place that it shares with `output`.
    said = os.pread(output.fileno(), 2**20, 0).decode(errors="replace")
    pytest.fail(f"the server {problem}: {shlex.join(process.args)}\nIt wrote:\n{said or 'nothing'}", pytrace=False)


def status(url: str) -> int:
    """The status of an answer; 0 if there is none."""
    return get(url)[0]


def get(url: str) -> tuple[int, str]:
    """The status and the text of an answer; 0 and nothing if there is none.

    For what is asked again and again until it is so: httpx alone would take 30 ms of a core each time, to read
    certificates that nothing here needs.
    """
    parts = urlsplit(url)
    connection = HTTPConnection(parts.netloc, timeout=30)
    try:
        connection.request("GET", f"{parts.path}?{parts.query}" if parts.query else parts.path)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    except (OSError, HTTPException):
        return 0, ""
    finally:
        connection.close()


def wait_until(condition, every: float = 0.02) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(every)
