"""A server that does not start says why, in the message of every test that shares it."""

import pytest

from tests.service import servers
from tests.service.servers import serving

Failed = pytest.fail.Exception


def test_a_server_that_ends_tells_why() -> None:
    with pytest.raises(Failed) as failure, serving("no-such-model-at-all"):
        raise AssertionError("it cannot be ready")
    message = str(failure.value)
    assert message.startswith("the server ended with status 1: ")
    assert "serve no-such-model-at-all" in message
    assert "no-such-model-at-all" in message.partition("It wrote:")[2]


def test_a_server_that_takes_too_long_shows_how_far_it_came(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(servers, "PATIENCE", 0.0)
    with pytest.raises(Failed, match=r"^the server was not ready within 0 s: ") as failure, serving("no-such-model"):
        raise AssertionError("it cannot be ready")
    assert "It wrote:" in str(failure.value)
