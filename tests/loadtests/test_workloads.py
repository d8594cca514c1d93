import random
import statistics
from itertools import pairwise

import pytest

from loadtests.workloads import WORKLOADS, LogNormal, User


def user(workload: str = "chat", seed: int = 0, run: str = "a", name: str = "0", context: int | None = 8192) -> User:
    return User(WORKLOADS[workload], seed, run, name, context)


def tokens_of(messages: list[dict[str, str]]) -> int:
    return sum(len(message["content"].split()) for message in messages)


def requests(one: User, count: int = 30) -> list[tuple[list[dict[str, str]], int, float]]:
    """What it asks for, and how long it thinks, while every answer is as long as it may be."""
    asked = []
    for _ in range(count):
        messages, output = one.ask()
        asked.append((messages, output, one.think()))
        one.take("answer " * output, tokens_of(messages) + output)
    return asked


def lengths(asked: list[tuple[list[dict[str, str]], int, float]]) -> list[tuple[int, int, int, float]]:
    return [(len(m), len(m[-1]["content"].split()), output, think) for m, output, think in asked]


def test_lengths_come_from_the_seed_and_words_from_the_run() -> None:
    asked = requests(user())
    assert requests(user()) == asked
    assert lengths(requests(user(run="b"))) == lengths(asked)
    assert requests(user(run="b"))[0][0] != asked[0][0]
    assert lengths(requests(user(seed=1))) != lengths(asked)
    assert lengths(requests(user(name="1"))) != lengths(asked)


def test_lengths_follow_the_published_means() -> None:
    """ShareGPT's 161 and 338 tokens; the clipped tail may take a little off."""
    rng = random.Random(0)
    mix = WORKLOADS["mix"]
    assert statistics.mean(mix.prompt.draw(rng) for _ in range(20_000)) == pytest.approx(161, rel=0.05)
    assert statistics.mean(mix.output.draw(rng) for _ in range(20_000)) == pytest.approx(338, rel=0.05)


def test_a_log_normal_has_its_median_and_its_bounds() -> None:
    rng = random.Random(0)
    draws = [LogNormal(100, 1.0, 20, 400).draw(rng) for _ in range(10_000)]
    assert statistics.median(draws) == pytest.approx(100, rel=0.05)
    assert (min(draws), max(draws)) == (20, 400)


def test_a_chat_carries_its_history_until_a_new_one_begins() -> None:
    asked = requests(user(), 200)
    sizes = [len(messages) for messages, _, _ in asked]
    assert sizes.count(1) > 20
    assert max(sizes) > 5
    for (before, _, _), (after, _, _) in pairwise(asked):
        if len(after) > 1:
            assert after[: len(before)] == before
            assert after[len(before)]["role"] == "assistant"
            assert len(after) == len(before) + 2


def test_a_failed_request_ends_its_conversation() -> None:
    one = user()
    for _ in range(20):
        one.ask()
        one.give_up()
        assert len(one.ask()[0]) == 1
        one.give_up()


def test_all_users_share_the_system_prompt_and_nothing_else() -> None:
    first, second = (user("shared", name=name).ask()[0] for name in "01")
    assert first[0] == second[0]
    assert len(first[0]["content"].split()) == 1000
    assert first[1] != second[1]
    assert user("shared", run="b").ask()[0][0] != first[0]


@pytest.mark.parametrize("workload", sorted(WORKLOADS))
@pytest.mark.parametrize("context", [2048, 8192])
def test_nothing_asks_for_more_than_the_context(workload: str, context: int) -> None:
    for messages, output, _ in requests(user(workload, context=context), 100):
        assert output > 0
        assert tokens_of(messages) > 0
        assert tokens_of(messages) + output < context


def test_scaled_lengths() -> None:
    rng = random.Random(0)
    tenth = WORKLOADS["mix"].scaled(0.1)
    assert statistics.mean(tenth.prompt.draw(rng) for _ in range(20_000)) == pytest.approx(16.1, rel=0.05)
    assert WORKLOADS["shared"].scaled(0.1).system == 100
