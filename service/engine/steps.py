"""Steps: a plan for the runner, made of the next tokens of requests, and the requests whose tokens they are.

Nothing here knows why a request is in a step, or what becomes of the draws.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from model.contract import INVALID_TOKEN, LATE, Chunk, Decoding, Draw, StepPlan
from service.engine.request import Request
from service.engine.wishes import wishes


@dataclass(frozen=True, slots=True)
class Step:
    """A plan that has not landed yet, with its requests: those that decode plainly, and that of each other chunk."""

    plan: StepPlan
    plain: Sequence[Request]
    others: Sequence[Request]
    draws: Mapping[int, int]
    """The index of each drawing request's first draw in the plan, by the request's id."""

    @property
    def requests(self) -> Sequence[Request]:
        """All requests, in the order of the plan's chunks."""
        return [*self.plain, *self.others]

    @property
    def late(self) -> list[tuple[Request, Chunk, Draw]]:
        """The draws whose masks are LATE, with their requests and chunks."""
        pairs = zip(self.others, self.plan.others, strict=True)
        return [(request, chunk, draw) for request, chunk in pairs for draw in chunk.draws if draw.allowed is LATE]

    def apart(self) -> "list[Step]":
        """The same again, as one step for each request that has not ended, unless its chunk is void.

        Promised tokens that a chunk waited for must be known by now, and so must all masks.
        """
        steps = []
        for request, chunk in zip(self.requests, self.plan.chunks, strict=True):
            if request.void:
                request.void = False
            elif not request.ended:
                tokens = [*request.tokens(chunk.start, chunk.stop), *request.drafts]
                # The failed step may have counted its draws' tokens already.
                draws = [replace(draw, fresh=True) for draw in chunk.draws]
                again = replace(chunk, tokens=tokens, follows=None, draws=draws)
                steps.append(Step(StepPlan([again]), [], [request], {request.id: 0}))
        return steps


def next_step(plain: Sequence[Request], shares: Sequence[tuple[Request, int]], before: Step | None) -> Step:
    """Plan the next token of requests that decode plainly, and so many of the others' as each one's share.

    All own the blocks for them. `before` is the step in flight, if there is one.
    """
    drawing = before.draws if before is not None else {}
    decoding = _decoding(plain, drawing)
    draws = {request.id: index for index, request in enumerate(plain)}
    drawn = len(plain)
    chunks = []
    for request, count in shares:
        chunk = _chunk(request, count, drawing)
        if chunk.draws:
            draws[request.id] = drawn
        drawn += len(chunk.draws)
        chunks.append(chunk)
    return Step(StepPlan(chunks, decoding), plain, [request for request, _ in shares], draws)


def _decoding(requests: Sequence[Request], drawing: Mapping[int, int]) -> Decoding:
    """Plan the next token of each request, in columns. `drawing` is as `Step.draws` of the step before."""
    columns = Decoding(
        tokens=[INVALID_TOKEN if request.promised else request.output[-1] for request in requests],
        starts=[request.computed for request in requests],
        blocks=[request.blocks for request in requests],
        follows=[drawing[request.id] if request.promised else None for request in requests],
        params=[request.params for request in requests],
        prompts=[request.prompt for request in requests],
        outputs=[request.output for request in requests],
        indices=[len(request.output) + request.promised for request in requests],
        rows=[request.row for request in requests],
    )
    for request in requests:
        request.computed += 1
        request.promised += 1
    return columns


def _chunk(request: Request, count: int, drawing: Mapping[int, int]) -> Chunk:
    """Plan the next `count` tokens of a request. Only this slice of its known tokens is copied."""
    start, stop = request.computed, request.computed + count
    # A promised token is alone in its chunk: it was promised only because all tokens before it were planned.
    follows = drawing[request.id] if request.promised and stop > request.known else None
    tokens = [*request.tokens(start, stop), *request.drafts] if follows is None else [INVALID_TOKEN]
    draws = request.draws() if stop == request.length and request.params.max_tokens else ()
    chunk = Chunk(tokens, start, request.blocks, draws, follows)
    if request.wishes:
        chunk = replace(chunk, **wishes(request, start, stop))
    request.computed = stop
    if chunk.draws:
        request.promised += 1
        request.fresh = False
    return chunk
