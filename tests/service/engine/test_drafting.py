"""More tokens are guessed where guesses are right, and none under load."""

import pytest

from service.engine.drafts import DraftPolicy, leave_open
from service.engine.request import Request
from service.engine.scheduler import Scheduler
from tests.service.engine.bench import Bench, sizes
from tests.service.engine.fakes import VOCAB_SIZE, next_token, output_alone


def drafting(draft_running: int, lookahead: int = 0) -> Bench:
    """A bench whose every guess is right for the token that the request's first prompt token says, else wrong."""
    bench = Bench(64, 4, lookahead=lookahead)

    def guess(request: Request, most: int) -> list[int]:
        tokens = [*request.tokens(0, request.known)]
        for place in range(most):
            right = next_token(tokens)
            tokens.append(right if place < request.prompt[0] else (right + 1) % VOCAB_SIZE)
        return tokens[request.known :]

    drafts = DraftPolicy(guess=guess, tokens=16, running=draft_running)
    bench.scheduler = Scheduler(bench.pool, token_budget=64, max_running=8, drafts=drafts)
    return bench


def drafted(bench: Bench, steps: int) -> list[list[int]]:
    """Sizes of the chunks of so many steps behind the prompts."""
    bench.step()
    return [sizes(bench.step()[0]) for _ in range(steps)]


def test_right_drafts_lead_to_more_and_wrong_ones_to_fewer() -> None:
    bench = drafting(draft_running=1)
    bench.add([7, 1], max_tokens=60)
    assert drafted(bench, 4) == [[5], [9], [9], [9]]  # Seven of eight are right.
    bench = drafting(draft_running=1)
    bench.add([0, 1], max_tokens=60)
    assert drafted(bench, 3) == [[5], [2], [2]]


@pytest.mark.parametrize("lookahead", [0, 1])
def test_drafting_ends_under_load_and_begins_again(lookahead: int) -> None:
    bench = drafting(draft_running=2, lookahead=lookahead)
    first, second = bench.add([7], max_tokens=60), bench.add([7, 7], max_tokens=60)
    bench.step()
    assert all(size > 1 for size in sizes(bench.start()))
    third = bench.add([7, 7, 7], max_tokens=3)  # While drafts are in flight.
    if lookahead:
        assert sizes(bench.start()) == [3]
        bench.land()
    bench.land()
    while third.blocks or not third.output:
        plan, _ = bench.step()
        assert all(len(chunk.tokens) == 1 for chunk in plan.chunks if chunk.start >= 3)
    assert all(size > 1 for size in sizes(bench.step()[0]))
    bench.finish()
    for request in (first, second, third):
        assert request.output == output_alone(request.prompt, request.params)[0]


def test_drafts_left_open_count_as_the_runner_guessed_them() -> None:
    bench = Bench(64, 4)
    drafts = DraftPolicy(guess=leave_open, tokens=4, running=8)
    bench.scheduler = Scheduler(bench.pool, token_budget=64, max_running=8, drafts=drafts)
    requests = [bench.add([first, 1], max_tokens=40) for first in range(4)]
    bench.finish()
    for request in requests:
        assert request.output == output_alone(request.prompt, request.params)[0]
    counters = bench.scheduler.counters
    assert counters.drafted_tokens / 4 < counters.accepted_tokens < counters.drafted_tokens
