"""Plain decoding in columns: one token each for requests of which nothing else is wanted.

It does not know which requests a step has, or what a token means for one.
"""

from collections.abc import Mapping, Sequence

from model.contract import INVALID_TOKEN, Decoding
from service.engine.messages import Drawn
from service.engine.request import Request


def next_tokens(requests: Sequence[Request], drawing: Mapping[int, int]) -> Decoding:
    """Plan the next token of requests that own the blocks for it.

    `drawing` has, for each of them that drew in the plan before this one, the index of its draw there.
    """
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


def drawn_news(requests: Sequence[Request], tokens: list[int]) -> Drawn:
    """The news of requests that have just drawn one of `tokens` each, and go on."""
    return Drawn(
        ids=[request.id for request in requests],
        tokens=tokens,
        cached_tokens=[request.cached_tokens or 0 for request in requests],
        queue=[request.queue for request in requests],
        prefill=[request.prefill for request in requests],
        decode=[request.last_drawn - request.first_drawn for request in requests],
    )
