import random

from hypothesis import given
from hypothesis import strategies as st

from model.contract import SamplingParams
from service.engine.drafts import WIDTH, look_up
from service.engine.request import Request


def request(prompt: list[int], output: list[int]) -> Request:
    return Request(1, prompt, SamplingParams(max_tokens=100), output=output)


def test_what_followed_the_same_tokens_last_time_is_guessed() -> None:
    assert look_up(request([1, 2, 3, 4, 5, 6, 9, 1, 2, 3, 7, 8, 0], [1, 2, 3]), 2) == [7, 8]


def test_a_guess_goes_from_the_prompt_into_the_output() -> None:
    assert look_up(request([1, 2, 3, 4], [5, 6, 1, 2, 3]), 5) == [4, 5, 6, 1, 2]


def test_nothing_is_guessed_without_an_earlier_occurrence() -> None:
    assert list(look_up(request([1, 2, 3], []), 4)) == []
    assert list(look_up(request([1, 2], [1]), 4)) == []
    assert list(look_up(request([1, 2, 3, 4, 5, 6], []), 4)) == []


def slowly(tokens: list[int], most: int) -> list[int]:
    """The guess by its definition."""
    for stop in range(len(tokens) - 1, WIDTH - 1, -1):
        if tokens[stop - WIDTH : stop] == tokens[-WIDTH:]:
            return tokens[stop : stop + most]
    return []


@given(st.integers(0, 2**32), st.integers(1, 30), st.integers(1, 5))
def test_guesses_follow_a_growing_output(seed: int, length: int, most: int) -> None:
    rng = random.Random(seed)
    prompt = [rng.randrange(3) for _ in range(length)]
    output: list[int] = []
    growing = request(prompt, output)
    for _ in range(20):
        assert list(look_up(growing, most)) == slowly([*prompt, *output], most)
        output += [rng.randrange(3) for _ in range(rng.randint(1, 3))]
