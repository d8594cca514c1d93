"""The cost to the others where one of several decoding requests looks inside, as their time between tokens.

    python -m loadtests.inspecting http://127.0.0.1:8000

Rounds with one request that looks inside, and without, take turns; all decode at once and are equally long. The figures
are of the others alone.
"""

import argparse
import json
import random
import statistics
from typing import Any

from gevent.pool import Group

from loadtests.client import Client, ServerError, Target
from loadtests.sse import Answer
from loadtests.workloads import words

INSPECT = {"attention": "all", "reduction": "mean", "residual": True, "lens": 5, "distribution": 5}
PROMPT_TOKENS = 128


def neighbours(target: Target, others: int, output_tokens: int, inspect: dict[str, Any] | None) -> list[Answer]:
    """The answers of `others` requests beside one more, which looks inside unless `inspect` is None."""
    rng = random.Random()
    answers: dict[int, Answer] = {}

    def decode(place: int) -> None:
        body = target.completion(words(rng, PROMPT_TOKENS), output_tokens) | {"temperature": 0}
        if place == 0 and inspect is not None:
            body["inspect"] = inspect
        with Client(target.url) as client:
            answers[place] = client.stream("/v1/completions", body)[0]

    group = Group()
    for place in range(others + 1):
        group.spawn(decode, place)
    group.join(raise_error=True)
    if failed := [answer.error for answer in answers.values() if answer.error is not None]:
        raise ServerError(f"{len(failed)} requests failed, the first with: {failed[0]}")
    return [answer for place, answer in answers.items() if place]


def figures(answers: list[Answer]) -> dict[str, float]:
    """Milliseconds between tokens: the mean, the median and the 99th percentile."""
    gaps = sorted(1000 * gap for answer in answers for gap in answer.gaps)
    mean, median, last = statistics.fmean(gaps), statistics.median(gaps), gaps[int(0.99 * (len(gaps) - 1))]
    return {"mean": mean, "median": median, "p99": last}


def measure(target: Target, args: argparse.Namespace) -> dict[str, dict[str, float]]:
    """The figures of all rounds together, without an inspection and with one."""
    fields = {"without": None, "with": json.loads(args.inspect)}
    answers: dict[str, list[Answer]] = {name: [] for name in fields}
    neighbours(target, args.others, args.output_tokens, fields["with"])  # Compiles what is compiled when first used.
    for _ in range(args.rounds):
        for name, inspect in fields.items():
            answers[name] += neighbours(target, args.others, args.output_tokens, inspect)
    return {name: figures(found) for name, found in answers.items()}


def main() -> None:
    """Parse the command line, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url", help="the server's base URL, with or without /v1")
    parser.add_argument("--model", help="model name (default: the first that /v1/models lists)")
    parser.add_argument("--others", type=int, default=7, help="requests beside the one that looks inside")
    parser.add_argument("--output-tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--inspect", default=json.dumps(INSPECT), help="the field inspect, as JSON")
    args = parser.parse_args()
    try:
        with Client(args.url) as client:
            target = client.discover(args.model)
        found = measure(target, args)
    except ServerError as error:
        raise SystemExit(str(error)) from None
    for name, row in found.items():
        told = ", ".join(f"{key} {value:7.2f}" for key, value in row.items())
        print(f"{name:8} inspect: {told} ms between tokens")
    growth = {key: 100 * (found["with"][key] / found["without"][key] - 1) for key in found["with"]}
    print("growth: " + ", ".join(f"{key} {percent:+.1f}%" for key, percent in growth.items()))


if __name__ == "__main__":
    main()
