"""The pace of a server, measured by a few requests before a test, and the lengths that fit into the test's time.

The requests warm the server up as well. Knows neither Locust nor shapes.
"""

import math
import random
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import gevent

from loadtests.client import Abandoned, Client, Target
from loadtests.dataset import Dataset
from loadtests.sse import Answer
from loadtests.workloads import Workload, words

PROMPT_TOKENS = 64
OUTPUT_TOKENS = 8
PATIENCE_SECONDS = 30.0
"""The longest time that the requests get. The answers until then have to be enough."""
AT_MOST = 8
"""The largest number of requests that are sent at once."""
_LEAST_OUTPUT_TOKENS = 4
"""The mean length of a completion that scaling never goes below: a shorter one has too few gaps to be measured."""


@dataclass(frozen=True, slots=True)
class Pace:
    """Costs of a token, in seconds, while as many requests are answered as were sent at once."""

    per_prompt_token: float
    per_output_token: float

    def seconds(self, prompt_tokens: float, output_tokens: float) -> float:
        """The seconds that a request of these lengths takes."""
        return prompt_tokens * self.per_prompt_token + output_tokens * self.per_output_token

    def describe(self) -> str:
        """The pace in words."""
        prompt, output = 1 / self.per_prompt_token, 1 / self.per_output_token
        return f"a request has {prompt:.0f} tokens of its prompt read a second, then gets {output:.1f} tokens/s"


def probe(target: Target, at_once: int) -> list[Answer]:
    """The answers to `at_once` small requests, but at most AT_MOST. They are abandoned after PATIENCE_SECONDS."""
    rng = random.Random()
    prompts = [words(rng, PROMPT_TOKENS) for _ in range(min(at_once, AT_MOST))]
    requests = [gevent.spawn(_ask, target, prompt) for prompt in prompts]
    gevent.joinall(requests, timeout=PATIENCE_SECONDS)
    gevent.killall(requests)
    return [request.value for request in requests if isinstance(request.value, Answer)]


def _ask(target: Target, prompt: str) -> Answer:
    with Client(target.url) as client:
        try:
            body = target.request([{"role": "user", "content": prompt}], OUTPUT_TOKENS)
            return client.stream(target.route, body)[0]
        except Abandoned as abandoned:
            answer: Answer = abandoned.args[0]
            return answer


def pace_of(answers: Sequence[Answer]) -> Pace | None:
    """The pace that the probe's answers show; None if all of them failed.

    An answer that was abandoned shows the least that a token costs.
    """
    answers = [answer for answer in answers if answer.error is None]
    if not answers:
        return None
    firsts = [answer.seconds if answer.ttft is None else answer.ttft for answer in answers]
    prompt = statistics.median(firsts) / PROMPT_TOKENS
    gaps = [gap for answer in answers for gap in answer.gaps]
    return Pace(prompt, statistics.mean(gaps) if gaps else prompt)


def turn_seconds(source: Workload | Dataset, pace: Pace, max_context: int | None) -> float:
    """The mean seconds of a turn: its answer and the thinking after it. Histories are taken to be cached."""
    room = max_context or math.inf
    prompt, output, think = source.means
    return pace.seconds(min(prompt, room), min(output, room)) + think


def fitting_scale(workload: Workload, pace: Pace, max_context: int | None, budget: float) -> float:
    """The largest factor, of at most 1, with which a turn takes no more than `budget` seconds, in two digits.

    It is never so small that completions have fewer than a handful of tokens.
    """
    least = min(_LEAST_OUTPUT_TOKENS / workload.output.mean, 1.0)
    scale = min(max(budget / turn_seconds(workload, pace, max_context), least), 1.0)
    unit = 10.0 ** (math.floor(math.log10(scale)) - 1)
    return math.floor(scale / unit) * unit
