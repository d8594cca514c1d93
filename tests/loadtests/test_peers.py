import os
import signal
import sys
import time
from pathlib import Path

import psutil
import pytest

from loadtests.client import ServerError
from loadtests.machine import PROC
from loadtests.peers import HERE, Load, Peer, load_peers, started

ROOT = HERE.parent
VARIABLES = {"PYTHON": sys.executable, "ROOT": str(ROOT)}
PIPED = ("${PYTHON}", "${ROOT}/tests/loadtests/fake_peer.py")


def served(**options: object) -> Peer:
    """The fake server as a peer with HTTP."""
    code = (
        f"from tests.loadtests.fake_server import FakeServer; FakeServer(port=${{PORT}}, **{options}).serve_forever()"
    )
    return Peer("served", ("${PYTHON}", "-c", code), ready="/v1/models", environment={"PYTHONPATH": "${ROOT}"})


def piped(**environment: str) -> Peer:
    return Peer("piped", PIPED, environment=environment)


@pytest.mark.parametrize("peer", [served(), piped()], ids=lambda peer: peer.name)
def test_a_peer_is_started_loaded_and_stopped(peer: Peer, tmp_path: Path) -> None:
    before = children()
    with started(peer, VARIABLES, tmp_path / "log") as (session, seconds):
        load = session.run(["a b c", "d e f"], 4, 2)
        (child,) = children() - before
        assert session.resident_bytes() > 1_000_000
    assert 0 < seconds < 60
    assert (list(load.output_tokens), list(load.prompt_tokens)) == ([4, 4], [3, 3])
    assert all(ttft > 0 for ttft in load.ttft_seconds)
    assert child not in children()


def children() -> set[int]:
    """The processes that this one has started and that have not ended."""
    return {child.pid for child in psutil.Process().children()}


def test_what_a_peer_has_started_ends_with_it(tmp_path: Path) -> None:
    code = (
        "import subprocess; child = subprocess.Popen(['sleep', '600']); "
        f"open({str(tmp_path / 'pid')!r}, 'w').write(str(child.pid)); print('{{}}', flush=True); input()"
    )
    with started(Peer("parent", ("${PYTHON}", "-c", code)), VARIABLES, tmp_path / "log"):
        grandchild = int((tmp_path / "pid").read_text())
        os.kill(grandchild, 0)
    deadline = time.monotonic() + 10
    while alive(grandchild):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def alive(pid: int) -> bool:
    try:
        return (PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize(
    ("peer", "reason"),
    [
        (served(cached=2), "4 of 6 prompt tokens were in a cache"),
        (served(dies_after=1), "2 of 2 requests failed"),
        (piped(FAKE_PEER_SHORT="1"), "2 of 2 requests were cut short: 3 tokens instead of 4"),
        (piped(FAKE_PEER_DIES="1"), "broke off; exit status 1; out of ideas"),
    ],
)
def test_an_answer_that_would_flatter_is_refused(peer: Peer, reason: str, tmp_path: Path) -> None:
    with (
        started(peer, VARIABLES, tmp_path / "log") as (session, _),
        pytest.raises(ServerError, match=reason),
    ):
        session.run(["a b c", "d e f"], 4, 2)


def test_a_few_cached_tokens_are_chance() -> None:
    load = Load(1.0, [0.1], [128], [64], cached_tokens=1)
    load.check(1, 64)
    with pytest.raises(ServerError, match="no answer"):
        load.check(2, 64)


@pytest.mark.parametrize("peer", [served(pace=60), Peer("stuck", ("sleep", "600"))], ids=lambda peer: peer.name)
def test_a_peer_that_takes_too_long_is_killed(peer: Peer, tmp_path: Path) -> None:
    began = time.monotonic()
    with (
        pytest.raises(ServerError, match=r"took longer than 2 s: .*ended by SIGKILL"),
        started(peer, VARIABLES, tmp_path / "log", limit=2) as (session, _),
    ):
        session.run(["a b c"], 4, 1)
    assert time.monotonic() - began < 30


@pytest.mark.parametrize("ready", ["/health", None])
@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("import sys; sys.exit('no such model')", "exit status 1; no such model"),
        (f"import os; os.kill(os.getpid(), {signal.SIGILL:d})", "ended by SIGILL; it said nothing"),
    ],
)
def test_a_peer_that_does_not_start_says_how_it_ended(
    code: str, reason: str, ready: str | None, tmp_path: Path
) -> None:
    peer = Peer("broken", ("${PYTHON}", "-c", code), ready=ready)
    with (
        pytest.raises(ServerError, match=reason),
        started(peer, VARIABLES, tmp_path / "log"),
    ):
        pass


def test_a_command_that_is_not_there_does_not_start(tmp_path: Path) -> None:
    with (
        pytest.raises(ServerError, match="absent did not start"),
        started(Peer("absent", ("/no/such/program",)), VARIABLES, tmp_path / "log"),
    ):
        pass


def maker(code: str) -> Peer:
    return Peer("maker", ("true",), makes="${MADE}/weights", make=("${PYTHON}", "-c", code, "${TARGET}"))


def test_a_file_is_made_once(tmp_path: Path) -> None:
    variables = VARIABLES | {"MADE": str(tmp_path)}
    peer = maker("import sys, time; open(sys.argv[1], 'w').write(str(time.time_ns()))")
    peer.prepare(variables, tmp_path / "log")
    made = (tmp_path / "weights").read_text()
    peer.prepare(variables, tmp_path / "log")
    assert (tmp_path / "weights").read_text() == made


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("import sys; open(sys.argv[1], 'w').write('a part'); sys.exit('disk full')", "exit status 1; disk full"),
        ("pass", "weights was not made: exit status 0; it said nothing"),
    ],
)
def test_a_part_of_a_file_is_not_taken_for_the_whole(code: str, reason: str, tmp_path: Path) -> None:
    with pytest.raises(ServerError, match=reason):
        maker(code).prepare(VARIABLES | {"MADE": str(tmp_path)}, tmp_path / "log")
    assert not (tmp_path / "weights").exists()


def test_a_peer_is_installed_if_all_that_it_names_is_there(tmp_path: Path) -> None:
    peer = Peer("some", ("${PEER_A}",), environment={"X": "${PEER_B}"}, make=("${PEER_C}",))
    there = {"PEER_A": sys.executable, "PEER_B": str(tmp_path), "PEER_C": "true"}
    assert peer.missing(there) is None
    for name in there:
        assert peer.missing({key: value for key, value in there.items() if key != name}) == f"{name} is not set"
        assert peer.missing(there | {name: "/no/such"}) == f"{name}: there is no /no/such"


def test_versions_are_one_line() -> None:
    def version(code: str) -> str:
        return Peer("some", (), version=("${PYTHON}", "-c", code)).installed_version(VARIABLES)

    assert version("print('1.2'); print('with 3')") == "1.2; with 3"
    assert version("import sys; print('0.5', file=sys.stderr)") == "0.5"
    assert version("pass") == "unknown"
    assert Peer("some", ()).installed_version(VARIABLES) == "unknown"


def test_the_peers_of_the_repository_name_only_variables_that_exist(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PEER_LLAMA_SERVER", "/somewhere/llama-server")
    peers, variables = load_peers(HERE / "peers.toml", tmp_path)
    assert peers[0].name == "headlight"
    assert variables["PEER_LLAMA_SERVER"] == "/somewhere/llama-server"
    without_defaults = ("PORT", "TARGET", "PEER_SAFETENSORS", "PEER_OPENVINO_PYTHON", "PEER_IK_LLAMA_SERVER")
    known = {*variables, *without_defaults}
    for peer in peers:
        for word in (*peer.command, *peer.version, *peer.make, peer.makes or "", *peer.environment.values()):
            for name in known:
                word = word.replace(f"${{{name}}}", "")
            assert "$" not in word
