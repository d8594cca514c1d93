"""One request among several looks inside, in every other round, and only the others are measured."""

import argparse

from loadtests.client import Client
from loadtests.inspecting import INSPECT, measure
from tests.loadtests.fake_server import fake_server


def test_one_of_the_requests_looks_inside_in_every_other_round() -> None:
    with fake_server() as server:
        with Client(server.url) as client:
            target = client.discover(None)
        before = len(server.bodies)
        args = argparse.Namespace(others=3, output_tokens=5, rounds=2, inspect='{"lens": 1}')
        found = measure(target, args)
        rounds = [server.bodies[start : start + 4] for start in range(before, len(server.bodies), 4)]
    fields = [[body["inspect"] for body in bodies if "inspect" in body] for bodies in rounds]
    assert fields == [[{"lens": 1}], [], [{"lens": 1}], [], [{"lens": 1}]]
    assert found.keys() == {"without", "with"}
    assert all(0 < row["median"] <= row["p99"] and row["mean"] > 0 for row in found.values())
    assert INSPECT["attention"] == "all"
