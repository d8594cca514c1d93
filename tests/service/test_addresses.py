"""Where the server listens, and where it says that it does."""

import json
import shlex
import socket
from typing import Any

import pytest

from service.cli import _listen, main
from service.command_error import CommandError
from service.processes.start import banner
from service.settings import load_settings


@pytest.mark.parametrize(
    ("host", "family", "shown"),
    [
        ("127.0.0.1", socket.AF_INET, "127.0.0.1"),
        ("localhost", socket.AF_INET, "127.0.0.1"),
        ("0.0.0.0", socket.AF_INET, "127.0.0.1"),
        ("::1", socket.AF_INET6, "[::1]"),
        ("[::1]", socket.AF_INET6, "[::1]"),
        ("::", socket.AF_INET6, "[::1]"),
        ("[::]", socket.AF_INET6, "[::1]"),
        ("0:0:0:0:0:0:0:1", socket.AF_INET6, "[::1]"),
        ("::ffff:127.0.0.1", socket.AF_INET6, "[::ffff:127.0.0.1]"),
    ],
)
def test_whoever_goes_where_it_says_arrives(host: str, family: int, shown: str) -> None:
    settings = load_settings(host=host, port=0)
    with _listen(settings.host, settings.port) as listener:
        assert listener.family == family
        url = f"http://{shown}:{listener.getsockname()[1]}"
        assert f" {url}/v1\n" in banner("toy", listener, with_key=False)
        socket.create_connection((shown.strip("[]"), listener.getsockname()[1]), timeout=5).close()


def test_an_interface_in_an_address_is_written_as_urls_write_it() -> None:
    class Listener:
        def getsockname(self) -> tuple[Any, ...]:
            return "fe80::1%eth0", 8000, 0, 2

    assert " http://[fe80::1%25eth0]:8000/docs\n" in banner("toy", Listener(), with_key=False)  # type: ignore[arg-type]


@pytest.mark.parametrize("with_key", [False, True])
def test_the_example_asks_with_a_key_where_one_is_needed(with_key: bool) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        _, found, command = banner("toy", listener, with_key).partition("curl ")
    words = shlex.split(found + command)
    headers = [words[index + 1] for index, word in enumerate(words) if word == "-H"]
    assert headers == ["Content-Type: application/json", "Authorization: Bearer YOUR_API_KEY"][: 1 + with_key]
    assert json.loads(words[-1])["messages"]


@pytest.mark.parametrize("host", ["no-such-host.invalid", "[::1", "::1]", "a" * 70, "a..b", "203.0.113.1", "1.2.3.4.5"])
def test_where_it_cannot_listen_is_one_line(host: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(CommandError, match="cannot listen on"):
        _listen(host, 0)
    assert main(["serve", "--host", host, "--port", "0"]) == 1
    told = capsys.readouterr().err
    assert host in told
    assert told.count("\n") == 1
