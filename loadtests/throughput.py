"""Output tokens a second, TTFT and inter-token latency of any OpenAI-compatible server, at several concurrencies.

    python -m loadtests.throughput http://127.0.0.1:8000

The load is a closed loop: a fixed number of clients, each of which sends its next request when the last one is
answered, all with the same lengths. The figures compare servers and versions; for what users would see, run the load
test. Prompts are random words, different in every request, so that a prefix cache finds nothing. With --repeats 4 the
words repeat so often, and a model copies them on: what guessing of tokens (`--draft-tokens`) is for. With --schema the
answers are JSON by a schema, and end when that is whole.
"""

import argparse
import json
import random
import statistics
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from gevent.pool import Group

from loadtests.client import Client, ServerError, Target
from loadtests.sse import Answer
from loadtests.workloads import words

Schema = dict[str, Any]
"""A JSON schema."""


def closed_loop(
    target: Target, prompts: Iterable[str], output_tokens: int, concurrency: int, schema: Schema | None = None
) -> tuple[list[Answer], float]:
    """Complete every prompt greedily, `concurrency` at once; returns (answers, seconds for all of them).

    With a schema, prompts are messages of a chat. Failed requests have an answer too, with its `error`.
    """
    answers: list[Answer] = []
    pending = iter(prompts)

    def one_client() -> None:
        for prompt in pending:
            path, body = _request(target, prompt, output_tokens, schema)
            # Each request gets a new connection: llama.cpp's server closes some after a stream although it announced
            # to keep them, and a request that is sent on one meanwhile is lost.
            with Client(target.url) as client:
                answers.append(client.stream(path, body)[0])

    began = time.perf_counter()
    clients = Group()
    for _ in range(concurrency):
        clients.spawn(one_client)
    clients.join(raise_error=True)
    return answers, time.perf_counter() - began


def _request(target: Target, prompt: str, output_tokens: int, schema: Schema | None) -> tuple[str, dict[str, Any]]:
    """The route and the body of a request for a greedy answer."""
    if schema is None:
        return "/v1/completions", target.completion(prompt, output_tokens) | {"temperature": 0}
    # Without ignore_eos, which contradicts a text that has to end.
    body = replace(target, ignore_eos=False).chat([{"role": "user", "content": prompt}], output_tokens)
    form = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}
    return "/v1/chat/completions", body | {"temperature": 0, "response_format": form}


def prompt(rng: random.Random, tokens: int, repeats: int) -> str:
    """About so many tokens of random words, the same ones `repeats` times."""
    return "\n".join([words(rng, max(tokens // repeats, 1))] * repeats)


def run(
    target: Target,
    prompt_tokens: int,
    output_tokens: int,
    concurrency: int,
    requests: int,
    repeats: int = 1,
    schema: Schema | None = None,
) -> dict[str, float]:
    """The figures of a run of `requests` completions, `concurrency` at once. Raises ServerError if one fails.

    `prompt_tokens` is the mean over requests; the other keys name their units.
    """
    rng = random.Random()
    prompts = [prompt(rng, prompt_tokens, repeats) for _ in range(requests)]
    answers, wall = closed_loop(target, prompts, output_tokens, concurrency, schema)
    if failed := [answer.error for answer in answers if answer.error is not None]:
        raise ServerError(f"{len(failed)} of {requests} requests failed, the first with: {failed[0]}")
    return {
        "concurrency": concurrency,
        "requests": requests,
        "prompt_tokens": statistics.mean(answer.prompt_tokens for answer in answers),
        "output_tokens_per_second": sum(answer.completion_tokens for answer in answers) / wall,
        "ttft_ms": 1000 * statistics.median(answer.ttft or 0.0 for answer in answers),
        "inter_token_ms": 1000 * statistics.median(answer.seconds_per_token or 0.0 for answer in answers),
        "wall_seconds": wall,
    }


def measure(args: argparse.Namespace) -> list[dict[str, float]]:
    """The figures of every concurrency in every round.

    Concurrencies take turns, so that a slow minute of the machine affects all of them alike.
    """
    with Client(args.url) as client:
        target = client.discover(args.model)
    results = []
    for _ in range(args.rounds):
        for concurrency in args.concurrency:
            requests = max(concurrency * args.requests_per_client, 2)
            lengths = args.prompt_tokens, args.output_tokens
            results.append(run(target, *lengths, concurrency, requests, args.repeats, args.schema))
            print(_row(results[-1]), flush=True)
    return results


def _row(result: dict[str, float]) -> str:
    return (
        f"{result['concurrency']:>4.0f} at once  {result['output_tokens_per_second']:8.1f} tokens/s  "
        f"TTFT {result['ttft_ms']:7.0f} ms  between tokens {result['inter_token_ms']:6.1f} ms  "
        f"({result['requests']:.0f} requests, {result['prompt_tokens']:.0f} prompt tokens)"
    )


def medians(results: list[dict[str, float]]) -> list[dict[str, float]]:
    """The median of every figure over the rounds, for each concurrency."""
    levels = dict.fromkeys(result["concurrency"] for result in results)
    rounds = {level: [result for result in results if result["concurrency"] == level] for level in levels}
    return [{key: statistics.median(r[key] for r in rows) for key in rows[0]} for rows in rounds.values()]


def _read_schema(name: str) -> Schema:
    """The JSON schema in a file. Raises ArgumentTypeError."""
    try:
        schema = json.loads(Path(name).read_text())
    except (OSError, ValueError) as error:
        raise argparse.ArgumentTypeError(f"{name}: {error}") from None
    if not isinstance(schema, dict):
        raise argparse.ArgumentTypeError(f"{name} is not a JSON object")
    return schema


def main() -> None:
    """Parse the command line, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url", help="the server's base URL, with or without /v1")
    parser.add_argument("--model", help="model name (default: the first that /v1/models lists)")
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--prompt-tokens", type=int, default=128)
    parser.add_argument("--output-tokens", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=1, help="times that the words of a prompt are repeated")
    parser.add_argument("--schema", metavar="FILE", type=_read_schema, help="JSON schema of the answers")
    parser.add_argument("--requests-per-client", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", metavar="FILE", help="write the medians here as well")
    args = parser.parse_args()
    try:
        results = medians(measure(args))
    except ServerError as error:
        raise SystemExit(str(error)) from None
    print("\nmedians of", args.rounds, "rounds")
    for result in results:
        print(_row(result))
    if args.json:
        with open(args.json, "w") as file:
            json.dump(results, file, indent=2)


if __name__ == "__main__":
    main()
