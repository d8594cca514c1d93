"""An answer in Locust's own statistics: a request is one request there, whatever number of tokens it had.

Latencies within an answer have rows of their own, which Locust's total, its rates and its charts leave out.
"""

from locust.env import Environment

from loadtests.sse import Answer

FIRST_TOKEN, PER_TOKEN = "time to first token", "time per output token"
"""The rows beside that of the requests: a sample for each answer, in milliseconds."""


def show(environment: Environment, answer: Answer, route: str) -> None:
    """Add an answer of `route` to the statistics, as long as it took from the request to the last event.

    An abandoned answer adds no request, but the latencies that it had by then.
    """
    if not answer.abandoned:
        environment.events.request.fire(
            request_type="POST",
            name=route,
            response_time=1000 * answer.seconds,
            response_length=answer.length,
            exception=Exception(answer.error) if answer.error else None,
            context={},
        )
    if answer.error is None:
        _add(environment, FIRST_TOKEN, answer.ttft)
        _add(environment, PER_TOKEN, answer.seconds_per_token)


def _add(environment: Environment, name: str, seconds: float | None) -> None:
    if seconds is not None:
        # Through the event it would count as a request.
        environment.stats.get(name, "latency").log(round(1000 * seconds), 0)
