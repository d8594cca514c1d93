"""Headlight beside other servers, on one machine, with the same weights and the same requests.

    python -m loadtests.compare --rounds 3 --json build/compare/results.json

Starts each installed peer of peers.toml, one at a time, and measures: seconds from its start until it is ready, time to
first token of single requests, output tokens a second of closed loops (prefill included) at several concurrencies, and
resident memory after the last loop. Every peer has a turn in every round, so that a slow minute of the machine doesn't
affect one peer alone. Medians over the rounds are compared. If it is terminated, it shows what it has until then.

Prompts are random words. They differ between the requests of a round, so that a prefix cache finds nothing, but every
peer gets the same ones.
"""

import argparse
import json
import math
import os
import random
import signal
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from loadtests import machine
from loadtests.client import ServerError
from loadtests.peers import HERE, LIMIT_SECONDS, Peer, Session, load_peers, started
from loadtests.workloads import words

OURS = "headlight"
_TTFT_OUTPUT_TOKENS = 8
"""Output tokens of the requests for TTFT. They are a server's first requests, and should warm up decoding as well."""

Figures = dict[str, float]
"""Column's key -> value."""


@dataclass(frozen=True, slots=True)
class Plan:
    """The requests that every peer gets in every round."""

    concurrency: Sequence[int] = (1, 8, 32)
    """Clients of each closed loop."""
    prompt_tokens: int = 128
    output_tokens: int = 64
    requests_per_client: int = 2
    least_requests: int = 6
    """The least number of requests of a closed loop, for loops with few clients."""
    ttft_requests: int = 7
    seed: int = 0

    def requests(self, concurrency: int) -> int:
        """The number of requests of a closed loop with `concurrency` clients."""
        return max(concurrency * self.requests_per_client, self.least_requests)

    def prompts(self, round_number: int, part: str, count: int) -> list[str]:
        """`count` prompts: the same for every peer, different in every part and every round."""
        rng = random.Random(f"{self.seed}/{round_number}/{part}")
        return [words(rng, self.prompt_tokens) for _ in range(count)]


@dataclass(frozen=True, slots=True)
class Column:
    """A column of the table."""

    key: str
    title: str
    more_is_better: bool = False
    digits: int = 0

    def best(self, figures: Mapping[str, float]) -> str:
        """The name of the peer with the best of `figures`, peer -> figure."""
        return (max if self.more_is_better else min)(figures, key=figures.__getitem__)


def columns(plan: Plan) -> list[Column]:
    """The columns of the table, from left to right."""
    loads = [Column(_load_key(level), f"tokens/s, {level} at once", True, 1) for level in plan.concurrency]
    return [
        *loads,
        Column("ttft_ms", "TTFT alone, ms"),
        Column("ready_seconds", "start to ready, s", digits=1),
        Column("memory_mb", "memory, MB"),
    ]


def _load_key(concurrency: int) -> str:
    return f"tokens_per_second_{concurrency}"


@dataclass(slots=True)
class Turn:
    """One peer in one round: its figures or, if it failed, those measured before that."""

    peer: str
    round: int
    figures: Figures = field(default_factory=dict)
    error: str | None = None


def round_numbers(rounds: int, seconds: float, clock: Callable[[], float] = time.monotonic) -> Iterator[int]:
    """1, 2 ... `rounds`, until the next one, if it took as long as the longest so far, would end after `seconds`."""
    began, longest = clock(), 0.0
    for number in range(1, rounds + 1):
        now = clock()
        if number > 1 and now - began + longest > seconds:
            return
        yield number
        longest = max(longest, clock() - now)


def take_turns(
    peers: Sequence[Peer],
    variables: Mapping[str, str],
    plan: Plan,
    rounds: Iterable[int],
    logs: Path,
    limit: float = LIMIT_SECONDS,
) -> Iterator[Turn]:
    """The turns of every peer, round after round, of at most `limit` seconds each.

    A peer that fails loses the rest of that turn; the others go on.
    """
    for number in rounds:
        for peer in peers:
            turn = Turn(peer.name, number)
            try:
                peer.prepare(variables, logs / f"{peer.name}-make.log")
                with started(peer, variables, logs / f"{peer.name}-{number}.log", limit) as (session, seconds):
                    turn.figures["ready_seconds"] = seconds
                    for key, value in measure(session, plan, number):
                        turn.figures[key] = value
            except ServerError as error:
                turn.error = str(error)
            yield turn


def measure(session: Session, plan: Plan, round_number: int) -> Iterator[tuple[str, float]]:
    """(key, figure) for each figure of a peer that has just started, as soon as it is measured.

    Raises ServerError if a request fails.
    """
    firsts = [
        session.run([prompt], _TTFT_OUTPUT_TOKENS, 1).ttft_seconds[0]
        for prompt in plan.prompts(round_number, "ttft", plan.ttft_requests)
    ]
    yield "ttft_ms", 1000 * statistics.median(firsts)
    for level in plan.concurrency:
        prompts = plan.prompts(round_number, f"{level} at once", plan.requests(level))
        load = session.run(prompts, plan.output_tokens, level)
        yield _load_key(level), sum(load.output_tokens) / load.seconds
        yield f"prompt_tokens_{level}", statistics.mean(load.prompt_tokens)
    yield "memory_mb", session.resident_bytes() / 1e6


def medians(turns: Sequence[Turn]) -> dict[str, Figures]:
    """Peer -> median of each figure over the turns that have it."""
    result: dict[str, Figures] = {}
    for name in dict.fromkeys(turn.peer for turn in turns):
        own = [turn.figures for turn in turns if turn.peer == name]
        keys = dict.fromkeys(key for figures in own for key in figures)
        result[name] = {key: statistics.median(f[key] for f in own if key in f) for key in keys}
    return result


def beside_best(table: Mapping[str, Figures], plan: Plan) -> dict[str, dict[str, Any]]:
    """Column's key -> the best peer, its figure, and Headlight's figure divided by it.

    Columns that Headlight or every peer lacks are left out.
    """
    result = {}
    for column in columns(plan):
        peers = {name: row[column.key] for name, row in table.items() if name != OURS and column.key in row}
        ours = table.get(OURS, {}).get(column.key)
        if peers and ours is not None:
            best = column.best(peers)
            result[column.key] = {"peer": best, "figure": peers[best], "ratio": ours / peers[best]}
    return result


def text_table(turns: Sequence[Turn], peers: Sequence[Peer], plan: Plan) -> str:
    """A Markdown table with a row of medians for each peer, then the best peer and Headlight's ratio to it."""
    table, shown = medians(turns), columns(plan)
    best = beside_best(table, plan)
    silent = {peer.name for peer in peers if peer.ready is None}
    rows = [["", *(f"{column.title} {'↑' if column.more_is_better else '↓'}" for column in shown)]]
    rows.append(["---"] * len(rows[0]))
    for name in table:
        cells = [_cell([turn for turn in turns if turn.peer == name], column) for column in shown]
        rows.append([f"{name} (no HTTP)" if name in silent else name, *cells])
    if best:
        rows.append(["best peer", *(best[c.key]["peer"] if c.key in best else "" for c in shown)])
        rows.append([f"{OURS} / best", *(f"{best[c.key]['ratio']:.2f}" if c.key in best else "" for c in shown)])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _cell(turns: Sequence[Turn], column: Column) -> str:
    """The median as text, with the number of rounds if some are missing."""
    values = [turn.figures[column.key] for turn in turns if column.key in turn.figures]
    if not values:
        return "failed"
    missing = f" ({len(values)} of {len(turns)})" if len(values) < len(turns) else ""
    return f"{statistics.median(values):.{column.digits}f}{missing}"


def report(turns: Sequence[Turn], plan: Plan, about: Mapping[str, Any]) -> dict[str, Any]:
    """All results for JSON: `about` the run, its plan, every turn, medians and ratios. Units are part of the keys."""
    table = medians(turns)
    return {
        **about,
        "plan": {name: getattr(plan, name) for name in Plan.__slots__},
        "medians": table,
        "beside_best": beside_best(table, plan),
        "turns": [
            {"peer": turn.peer, "round": turn.round, "error": turn.error, "figures": turn.figures} for turn in turns
        ],
    }


def choose(
    peers: Sequence[Peer], variables: Mapping[str, str], only: Sequence[str]
) -> tuple[list[Peer], dict[str, str]]:
    """(peers to measure, name -> reason for each skipped one), of those in `only` and in its order, or of all.

    Raises ServerError for a name that is no peer's.
    """
    named = {peer.name: peer for peer in peers}
    if unknown := set(only) - named.keys():
        raise ServerError(f"no peer is called {', '.join(sorted(unknown))}")
    wanted = [named[name] for name in dict.fromkeys(only or named)]
    skipped = {peer.name: reason for peer in wanted if (reason := peer.missing(variables)) is not None}
    return [peer for peer in wanted if peer.name not in skipped], skipped


def main() -> int:
    """Parse the command line, measure, print; the exit status is 1 if a turn failed, 2 for an unknown peer."""
    args = _parser().parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # So that the running peer ends as well.
    plan = Plan(
        tuple(args.concurrency),
        args.prompt_tokens,
        args.output_tokens,
        args.requests_per_client,
        args.least_requests,
        args.ttft_requests,
        args.seed,
    )
    all_peers, variables = load_peers(args.peers, args.logs)
    try:
        peers, skipped = choose(all_peers, variables, args.only)
    except ServerError as error:
        print(f"compare: {error}", file=sys.stderr)
        return 2
    about = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine.describe() | {"load_before": round(os.getloadavg()[0], 2)},
        "versions": {peer.name: peer.installed_version(variables) for peer in peers},
        "skipped": skipped,
    }
    _print_about(about)
    args.logs.mkdir(parents=True, exist_ok=True)
    turns: list[Turn] = []
    try:
        rounds = round_numbers(args.rounds, 60 * args.minutes)
        for turn in take_turns(peers, variables, plan, rounds, args.logs, args.turn_seconds):
            turns.append(turn)
            print(_line(turn, plan), flush=True)
            if args.json:  # After every turn: a run takes long, and may be interrupted.
                args.json.parent.mkdir(parents=True, exist_ok=True)
                args.json.write_text(json.dumps(report(turns, plan, about), indent=2) + "\n")
    finally:
        done = max((turn.round for turn in turns), default=0)
        print(f"\nmedians of {done} rounds; arrows say whether more or less is better\n")
        print(text_table(turns, peers, plan), flush=True)
    return int(not turns or any(turn.error for turn in turns))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m loadtests.compare", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--peers", type=Path, default=HERE / "peers.toml", metavar="FILE", help="what to start")
    parser.add_argument("--only", type=_names, default=[], metavar="NAME,NAME", help="these peers alone, in this order")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--minutes", type=float, default=math.inf, help="begin no round that would end later than this")
    parser.add_argument(
        "--turn-seconds", type=float, default=LIMIT_SECONDS, help="for a peer in a round; then it is killed"
    )
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--prompt-tokens", type=int, default=128)
    parser.add_argument("--output-tokens", type=int, default=64)
    parser.add_argument("--requests-per-client", type=int, default=2)
    parser.add_argument("--least-requests", type=int, default=6, help="of a closed loop with few clients")
    parser.add_argument("--ttft-requests", type=int, default=7, help="that are sent alone, before the loops")
    parser.add_argument("--seed", type=int, default=0, help="of the prompts")
    parser.add_argument(
        "--logs", type=Path, default=Path("build/compare"), help="folder for what the peers write and need"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything here as well")
    return parser


def _names(text: str) -> list[str]:
    return [name for name in text.split(",") if name]


def _print_about(about: Mapping[str, Any]) -> None:
    for name, value in about["machine"].items():
        print(f"{name}: {' '.join(value) if isinstance(value, list) else value}")
    for name, version in about["versions"].items():
        print(f"{name}: {version}")
    for name, reason in about["skipped"].items():
        print(f"{name} skipped: {reason}")
    print(flush=True)


def _line(turn: Turn, plan: Plan) -> str:
    figures = [
        f"{column.title}: {turn.figures[column.key]:.{column.digits}f}"
        for column in columns(plan)
        if column.key in turn.figures
    ]
    return f"round {turn.round}  {turn.peer}  " + "; ".join(
        [*figures, *([f"FAILED: {turn.error}"] if turn.error else [])]
    )


if __name__ == "__main__":
    sys.exit(main())
