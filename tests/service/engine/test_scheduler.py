"""A request ends as it should, and a plan costs little."""

import pytest

from service.engine.messages import Delta
from tests.service.engine.bench import Bench, untimed
from tests.service.engine.fakes import next_token


def test_a_request_that_left_itself_nothing_to_draw_is_refused() -> None:
    bench = Bench(8, 4)
    bench.add([1, 2], bad_words=((3,),))
    bench.runner.poisoned_chunks = {0}
    _, (delta,) = bench.step()
    assert delta.finish_reason == "refused"
    assert delta.refusal is not None
    assert delta.refusal.code == "nothing_to_draw"
    assert bench.pool.used == 0


def test_a_plan_copies_nothing_that_grows_with_the_context() -> None:
    bench = Bench(32, 4)
    request = bench.add([1] * 50, max_tokens=20)
    for _ in range(10):
        bench.step()
    (chunk,) = bench.start().chunks
    assert len(chunk.tokens) == 1
    assert chunk.blocks is request.blocks
    (draw,) = chunk.draws
    assert draw.prompt is request.prompt
    assert draw.output is request.output


@pytest.mark.parametrize("max_tokens", [1, 8])
def test_a_stop_token_ends_the_request_even_where_the_length_would(max_tokens: int) -> None:
    bench = Bench(8, 4)
    stop = next_token([1, 2])
    bench.add([1, 2], max_tokens=max_tokens, stop_token_ids=(stop,))
    assert untimed(bench.finish()) == [Delta(0, [stop], None, finish_reason="stop")]


def test_cancelling_frees_blocks_at_once() -> None:
    bench = Bench(8, 4, max_running=1)
    bench.add([1, 2])
    bench.add([3, 4])
    bench.step()
    for id in (0, 1):
        assert untimed([bench.scheduler.cancel(id)]) == [Delta(id, [], None, finish_reason="abort")]
        assert bench.scheduler.cancel(id) is None
    assert bench.pool.used == 0
    assert not bench.scheduler.has_work
