"""Workloads: conversations of random words whose lengths follow published distributions.

Lengths depend on the seed alone, so that two runs have the same ones. Words depend on the run as well, so that a second
run against the same server doesn't find the first one's prompts in the prefix cache. Knows no server and no Locust.
"""

import math
import random
from dataclasses import dataclass, replace

Message = dict[str, str]
"""A message of a chat: its role and its content."""

# Each word is one token, with the space before it, in the vocabularies of today's models.
WORDS = (
    "time year people way day man thing woman life child world school state family student group country problem hand "
    "part place case week company system program question work government number night point home water room mother "
    "area money story fact month lot right study book eye job word business issue side kind head house service friend "
    "father power hour game line end member law car city community name president team minute idea body information "
    "back parent face others level office door health person art war history party result change morning reason"
).split()


@dataclass(frozen=True, slots=True)
class LogNormal:
    """Log-normally distributed lengths in tokens, clipped to the range from `low` to `high`."""

    median: float
    sigma: float
    low: int
    high: int

    @property
    def mean(self) -> float:
        """The mean, without regard to the clipping."""
        return self.median * math.exp(self.sigma**2 / 2)

    def draw(self, rng: random.Random) -> int:
        return min(max(round(rng.lognormvariate(math.log(self.median), self.sigma)), self.low), self.high)

    def scaled(self, factor: float) -> "LogNormal":
        low, high = (max(round(bound * factor), 1) for bound in (self.low, self.high))
        return LogNormal(self.median * factor, self.sigma, low, high)


@dataclass(frozen=True, slots=True)
class Workload:
    """A kind of user."""

    purpose: str
    prompt: LogNormal
    """The length of one turn's prompt, without the conversation before it."""
    output: LogNormal
    think: float
    """The mean of the exponentially distributed seconds between an answer and the next question."""
    turns: float = 1.0
    """The mean of the geometrically distributed number of turns of a conversation."""
    system: int = 0
    """Tokens of a system prompt that all users share."""

    def scaled(self, factor: float) -> "Workload":
        """The workload with all lengths multiplied, for models and machines that are too small for the original.

        Thinking times are multiplied as well: less text is read faster, and as many users stay busy as before.
        """
        prompt, output, think = self.prompt.scaled(factor), self.output.scaled(factor), self.think * factor
        return replace(self, prompt=prompt, output=output, think=think, system=round(self.system * factor))

    @property
    def means(self) -> tuple[float, float, float]:
        """The mean tokens of a turn's prompt and completion, and the mean seconds of thinking."""
        return self.prompt.mean, self.output.mean, self.think

    def user(self, seed: int, run: str, name: str, max_context: int | None) -> "User":
        """A user of this kind."""
        return User(self, seed, run, name, max_context)


# A log-normal has median = mean / exp(sigma^2 / 2), and its 90th percentile is median * exp(1.2816 sigma). From there:
#
#   mix       means 161 and 338 tokens: ShareGPT in Kwon et al., "Efficient Memory Management for Large Language Model
#             Serving with PagedAttention" (SOSP 2023), figure 11. Spread, by median and 90th percentile (1730 and 5696;
#             415 and 834): openchat_sharegpt4 in Agrawal et al., "Taming Throughput-Latency Tradeoff in LLM Inference
#             with Sarathi-Serve" (OSDI 2024), table 2. Clipped at 1024 each, where vLLM's benchmark drops samples.
#   chat      means 69.5 and 214.5 tokens: Zheng et al., "LMSYS-Chat-1M" (ICLR 2024), table 1; spread as above. Four
#             turns where its users took two, since this workload is to test histories.
#   document  medians 7059 and 208, 90th percentiles 12985 and 371: arxiv_summarization in Agrawal et al., table 2.
#   shared    turns like chat's first, behind a thousand tokens of instructions.
WORKLOADS = {
    "mix": Workload(
        purpose="single requests with ShareGPT-like lengths",
        prompt=LogNormal(105, 0.93, 4, 1024),
        output=LogNormal(291, 0.54, 4, 1024),
        think=1.0,
    ),
    "chat": Workload(
        purpose="short conversations that carry their history",
        prompt=LogNormal(45, 0.93, 4, 512),
        output=LogNormal(185, 0.54, 4, 512),
        think=5.0,
        turns=4.0,
    ),
    "document": Workload(
        purpose="a long document, a short answer",
        prompt=LogNormal(7059, 0.48, 1000, 30_000),
        output=LogNormal(208, 0.45, 16, 1024),
        think=5.0,
    ),
    "shared": Workload(
        purpose="short questions behind one long system prompt",
        prompt=LogNormal(45, 0.93, 4, 512),
        output=LogNormal(185, 0.54, 4, 512),
        think=1.0,
        system=1000,
    ),
}

_MARGIN = 64
"""Tokens reserved for the chat template."""


def words(rng: random.Random, count: int) -> str:
    """`count` random words, which are about as many tokens."""
    return " ".join(rng.choices(WORDS, k=count))


class User:
    """One simulated user: asks, takes the answer, thinks, asks again."""

    def __init__(self, workload: Workload, seed: int, run: str, name: str, max_context: int | None) -> None:
        """Create a user whose lengths and times depend on `seed` and `name`, and whose words depend on `run` as well.

        `max_context` is in tokens, or None if it is unknown.
        """
        self._workload = workload
        self._max_context = max_context or 2**31
        self._lengths = random.Random(f"{seed}/{name}")
        self._words = random.Random(f"{seed}/{run}/{name}")
        system = words(random.Random(f"{seed}/{run}"), workload.system)
        self._opening = [{"role": "system", "content": system}] if system else []
        self._begin()

    @property
    def begins(self) -> bool:
        """Whether the next question begins a conversation."""
        return len(self._messages) == len(self._opening)

    def ask(self) -> tuple[list[Message], int]:
        """(messages, limit of output tokens) of the next request."""
        prompt, output = self._workload.prompt.draw(self._lengths), self._workload.output.draw(self._lengths)
        output = min(output, self._max_context // 4)
        room = self._max_context - _MARGIN - output
        if self._tokens + prompt > room:
            self._begin()
        prompt = max(min(prompt, room - self._tokens), 1)
        self._messages.append({"role": "user", "content": words(self._words, prompt)})
        return list(self._messages), output

    def take(self, text: str, tokens: int) -> None:
        """Add the answer's text to the conversation, which then has `tokens` tokens."""
        self._messages.append({"role": "assistant", "content": text})
        self._tokens = tokens
        if self._lengths.random() < 1 / self._workload.turns:
            self._begin()

    def give_up(self) -> None:
        """Begin a new conversation, because a request failed."""
        self._begin()

    def think(self) -> float:
        """Seconds until the next question."""
        return self._lengths.expovariate(1 / self._workload.think)

    def _begin(self) -> None:
        self._messages = list(self._opening)
        self._tokens = self._workload.system
