"""The moments of one completion: reported to the metrics as they happen, kept for the log and the trace."""

from collections.abc import Callable
from types import TracebackType
from typing import Self

from service.engine.messages import RequestTimes
from service.generation import Generation, GenerationRefused
from service.observability.metrics import Metrics


class Timeline:
    """Measures a completion between entering and leaving its `with`."""

    def __init__(self, generation: Generation, metrics: Metrics, *, began: float, clock: Callable[[], float]) -> None:
        """`generation` has just been submitted for a request that arrived at `began`, in seconds on `clock`."""
        self.prompt_tokens = len(generation.request.sent.prompt)
        self.tokens = 0
        self.finish_reason: str | None = None
        self.submitted = clock()
        self.first_token: float | None = None
        self.last_token: float | None = None
        self.ended: float | None = None
        self._generation = generation
        self._metrics = metrics
        self._began = began
        self._clock = clock

    @property
    def cached_tokens(self) -> int:
        """Prompt tokens that were found in the prefix cache."""
        return self._generation.cached_tokens

    @property
    def times(self) -> RequestTimes:
        """Durations of the completion's phases in the engine."""
        return self._generation.times

    def __enter__(self) -> Self:
        return self

    def token(self, finish_reason: str | None) -> None:
        """Note that a token has come; the last one has a finish reason."""
        now = self._clock()
        if self.last_token is None:
            self.first_token = now
            self._metrics.first_token.observe(now - self._began)
        else:
            self._metrics.between_tokens.observe(now - self.last_token)
        self.last_token = now
        self.tokens += 1
        if finish_reason is not None:
            self.end(finish_reason)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if isinstance(error, GenerationRefused):
            # A refused completion counts as rejected, not as ended.
            self.finish_reason = "refused"
        elif self.finish_reason is None:
            # An exit without an error, or by a cancellation (which is no Exception), means that the client left.
            self.end("error" if isinstance(error, Exception) else "abort")

    def end(self, reason: str) -> None:
        """Note that the completion has ended, without a further token."""
        self.finish_reason, self.ended = reason, self._clock()
        metrics, times = self._metrics, self.times
        metrics.count_completion(reason)
        metrics.latency.observe(self.ended - self._began)
        metrics.prompt_tokens.observe(self.prompt_tokens)
        metrics.generation_tokens.observe(self.tokens)
        metrics.max_tokens.observe(self._generation.request.sent.params.max_tokens)
        if self.tokens > 1 and self.first_token is not None and self.last_token is not None:
            metrics.time_per_token.observe((self.last_token - self.first_token) / (self.tokens - 1))
        for histogram, seconds in (
            (metrics.queue_time, times.queue),
            (metrics.inference_time, None if times.prefill is None else times.prefill + (times.decode or 0.0)),
            (metrics.prefill_time, times.prefill),
            (metrics.decode_time, times.decode),
        ):
            if seconds is not None:
                histogram.observe(seconds)
