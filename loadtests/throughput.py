"""Output tokens a second, TTFT and inter-token latency of any OpenAI-compatible server, at several concurrencies.

    python loadtests/throughput.py http://127.0.0.1:8000

A closed loop: so many clients, each sending its next request when the last one is answered. Prompts are random
words, different in every request, so that a prefix cache finds nothing. Needs httpx and nothing of Headlight.
"""

import argparse
import asyncio
import json
import random
import statistics
import time
from dataclasses import dataclass, field
from itertools import pairwise

import httpx

WORDS = (
    "time year people way day man thing woman life child world school state family student group country problem hand "
    "part place case week company system program question work government number night point home water room mother "
    "area money story fact month lot right study book eye job word business issue side kind head house service friend "
    "father power hour game line end member law car city community name president team minute idea body information "
    "back parent face others level office door health person art war history party result change morning reason"
).split()


@dataclass
class Answer:
    """What one request measured, in seconds."""

    ttft: float
    total: float
    prompt_tokens: int
    output_tokens: int
    gaps: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Workload:
    """What every request of a run asks for."""

    url: str
    model: str
    prompt_tokens: int
    output_tokens: int

    def body(self, words: int, rng: random.Random) -> dict[str, object]:
        return {
            "model": self.model,
            "prompt": " ".join(rng.choices(WORDS, k=words)),
            "max_tokens": self.output_tokens,
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
        }


async def complete(client: httpx.AsyncClient, load: Workload, words: int, rng: random.Random) -> Answer:
    """Send one streamed completion. Raises httpx.HTTPError if it is not answered, ValueError if it is cut short."""
    began = time.perf_counter()
    arrivals: list[float] = []
    usage: dict[str, int] | None = None
    async with client.stream("POST", f"{load.url}/v1/completions", json=load.body(words, rng)) as response:
        if response.is_error:
            await response.aread()
        response.raise_for_status()
        async for line in response.aiter_lines():
            if not line.startswith("data: ") or line == "data: [DONE]":
                continue
            event = json.loads(line[len("data: ") :])
            if "error" in event:
                raise ValueError(f"the server answered with an error: {event['error']}")
            usage = event.get("usage") or usage
            if event.get("choices"):
                arrivals.append(time.perf_counter())
    if usage is None or not arrivals:
        raise ValueError("the server sent no tokens or no usage")
    gaps = [after - before for before, after in pairwise(arrivals)]
    total = time.perf_counter() - began
    return Answer(arrivals[0] - began, total, usage["prompt_tokens"], usage["completion_tokens"], gaps)


async def words_for(client: httpx.AsyncClient, load: Workload) -> int:
    """How many random words make a prompt of about `load.prompt_tokens` on this model's tokenizer."""
    probe = Workload(load.url, load.model, load.prompt_tokens, 1)
    answer = await complete(client, probe, load.prompt_tokens, random.Random(0))
    return max(round(load.prompt_tokens**2 / answer.prompt_tokens), 1)


async def run(
    client: httpx.AsyncClient, load: Workload, words: int, concurrency: int, requests: int, seed: int
) -> dict[str, float]:
    """`requests` completions, `concurrency` at once; the figures of the whole run."""
    rng = random.Random(seed)
    answers: list[Answer] = []
    pending = iter(range(requests))

    async def one_client() -> None:
        for _ in pending:
            answers.append(await complete(client, load, words, rng))

    began = time.perf_counter()
    await asyncio.gather(*(one_client() for _ in range(concurrency)))
    wall = time.perf_counter() - began
    gaps = [gap for answer in answers for gap in answer.gaps]
    return {
        "concurrency": concurrency,
        "requests": requests,
        "prompt_tokens": statistics.mean(answer.prompt_tokens for answer in answers),
        "output_tokens_per_second": sum(answer.output_tokens for answer in answers) / wall,
        "ttft_ms": 1000 * statistics.median(answer.ttft for answer in answers),
        "inter_token_ms": 1000 * statistics.median(gaps) if gaps else 0.0,
        "wall_seconds": wall,
    }


async def measure(args: argparse.Namespace) -> list[dict[str, float]]:
    """Every concurrency in turn, `rounds` times over, so that a slow minute of the machine hits them alike."""
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(timeout=600, limits=limits, trust_env=False) as client:
        url = args.url.rstrip("/").removesuffix("/v1")
        models = (await client.get(f"{url}/v1/models")).raise_for_status().json()
        load = Workload(url, args.model or models["data"][0]["id"], args.prompt_tokens, args.output_tokens)
        words = await words_for(client, load)
        results = []
        for round_ in range(args.rounds):
            for concurrency in args.concurrency:
                requests = max(concurrency * args.requests_per_client, 2)
                results.append(await run(client, load, words, concurrency, requests, seed=1000 * round_ + concurrency))
                print(_row(results[-1]), flush=True)
        return results


def _row(result: dict[str, float]) -> str:
    return (
        f"{result['concurrency']:>4.0f} at once  {result['output_tokens_per_second']:8.1f} tokens/s  "
        f"TTFT {result['ttft_ms']:7.0f} ms  between tokens {result['inter_token_ms']:6.1f} ms  "
        f"({result['requests']:.0f} requests, {result['prompt_tokens']:.0f} prompt tokens)"
    )


def medians(results: list[dict[str, float]]) -> list[dict[str, float]]:
    """One row for each concurrency: the median of every figure over the rounds."""
    levels = dict.fromkeys(result["concurrency"] for result in results)
    rounds = {level: [result for result in results if result["concurrency"] == level] for level in levels}
    return [{key: statistics.median(r[key] for r in rows) for key in rows[0]} for rows in rounds.values()]


def main() -> None:
    """Parse the command line, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url", help="the server's base URL, with or without /v1")
    parser.add_argument("--model", help="model name (default: the first that /v1/models lists)")
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--prompt-tokens", type=int, default=128)
    parser.add_argument("--output-tokens", type=int, default=64)
    parser.add_argument("--requests-per-client", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", metavar="FILE", help="write the medians here as well")
    args = parser.parse_args()
    try:
        results = medians(asyncio.run(measure(args)))
    except httpx.HTTPError as error:
        raise SystemExit(f"no answer from {args.url}: {error}") from None
    except ValueError as error:
        raise SystemExit(str(error)) from None
    print("\nmedians of", args.rounds, "rounds")
    for result in results:
        print(_row(result))
    if args.json:
        with open(args.json, "w") as file:
            json.dump(results, file, indent=2)


if __name__ == "__main__":
    main()
