"""Wishes of a chunk beside draws: the part of its request's wishes that concerns its own tokens."""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import replace
from typing import TypedDict

from model.contract import Draw, Scores
from model.inspection import InspectionRequest
from service.engine.request import Request


class Wishes(TypedDict, total=False):
    """Fields of a `Chunk`."""

    next: int | None
    scores: Scores | None
    pooled: tuple[int, int] | None
    inspect: InspectionRequest | None
    trials: Sequence[Draw]


def wishes(request: Request, start: int, stop: int) -> Wishes:
    """The wishes at positions `start` to `stop` - 1 that have not been fulfilled by an earlier chunk."""
    wanted, prompt = request.wanted, request.prompt
    begin = max(start, request.collected)
    if wanted.first(len(prompt)) is None or begin >= stop:
        return {}
    found: Wishes = {"next": prompt[stop] if stop < len(prompt) else None}
    if wanted.prompt_logprobs is not None and begin < min(stop, len(prompt) - 1):
        found["scores"] = Scores(begin - start, wanted.prompt_logprobs)
    if pooled := _pooled(request, begin, stop):
        found["pooled"] = (pooled[0] - start, pooled[1] - start)
    if wanted.inspect is not None and (positions := _inspected(wanted.inspect, len(prompt), begin, stop)):
        found["inspect"] = replace(wanted.inspect, positions=positions, settings=())
        if wanted.inspect.settings:
            found["trials"] = _trials(wanted.inspect, prompt, begin, stop)
    return found


def _pooled(request: Request, begin: int, stop: int) -> tuple[int, int] | None:
    """The positions among `begin` to `stop` - 1 whose hidden rows the embedding needs."""
    last = len(request.prompt) - 1
    ends = {"first": (0, 1), "last": (last, last + 1), "mean": (0, last + 1), None: (0, 0)}
    first, end = ends[request.wanted.pooling]
    begin, stop = max(begin, first), min(stop, end)
    return (begin, stop) if begin < stop else None


def _trials(asked: InspectionRequest, prompt: Sequence[int], begin: int, stop: int) -> list[Draw]:
    """The trial draws at positions `begin` to `stop` - 1, each as the first of a prompt that ends at its position."""
    named = asked.positions[bisect_left(asked.positions, begin) : bisect_left(asked.positions, stop)]
    pairs = [(position, params) for position in named for params in asked.settings]
    return [
        Draw(params, prompt[: position + 1], (), 0, row, candidates=asked.distribution)
        for row, (position, params) in enumerate(pairs)
    ]


def _inspected(asked: InspectionRequest, prompt: int, begin: int, stop: int) -> list[int]:
    """The positions among `begin` to `stop` - 1 that an inspection request names, in a prompt of so many tokens."""
    named = asked.positions[bisect_left(asked.positions, begin) : bisect_left(asked.positions, stop)]
    if not asked.generated:
        return [*named]
    return sorted({*named, *range(max(begin, prompt - 1), stop)})
