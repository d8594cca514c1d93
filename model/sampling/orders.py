"""The orders in which filters are applied, and which of them are left to the backend."""

from collections.abc import Callable, Mapping

from model.sampling_params import FilterOrder, SamplingParams

Asks = Callable[[SamplingParams], bool]
"""Whether a draw by these settings asks for something."""

ORDERS: Mapping[FilterOrder, tuple[str, ...]] = {
    "transformers": ("top_n_sigma", "temperature", "typical_p", "top_k", "top_p", "min_p"),
    "vllm": ("top_n_sigma", "temperature", "typical_p", "min_p", "top_k", "top_p"),
    "llama.cpp": ("top_n_sigma", "top_k", "typical_p", "top_p", "min_p", "temperature"),
}
"""Each filter sees what those before it have kept, at the temperature if that came before it.

transformers itself has typical-p last and no top-n-sigma; vLLM has neither of the two.
"""

BACKEND = ("temperature", "top_k", "top_p", "min_p")
"""The stages that a backend applies when it draws, in its order."""

ASKED: Mapping[str, Asks] = {
    "temperature": lambda params: params.temperature != 1,
    "top_n_sigma": lambda params: params.top_n_sigma > 0 and params.temperature > 0,
    "typical_p": lambda params: params.typical_p < 1 and params.temperature > 0,
    "top_k": lambda params: params.top_k > 0 and params.temperature > 0,
    "top_p": lambda params: params.top_p < 1 and params.temperature > 0,
    "min_p": lambda params: params.min_p > 0 and params.temperature > 0,
}
"""Whether a draw asks for a stage. A greedy one asks for its temperature alone."""


def _ahead(order: tuple[str, ...]) -> tuple[str, ...]:
    """The part of an order before the longest end that the backend has in the same order."""
    for begin in range(len(order)):
        rest = iter(BACKEND)
        if all(stage in rest for stage in order[begin:]):
            return order[:begin]
    return order


_AHEAD = {name: _ahead(order) for name, order in ORDERS.items()}
"""The stages of each order that come before the backend's."""


def _ahead_of_backend(stage: str) -> Asks:
    asked, orders = ASKED[stage], frozenset(name for name, ahead in _AHEAD.items() if stage in ahead)
    if stage != "temperature":
        return lambda params: params.filter_order in orders and asked(params)
    # The backend divides by the temperature at no cost, unless a transform has to come after it.
    later = {
        name: [ASKED[other] for other in ahead[ahead.index(stage) + 1 :]]
        for name, ahead in _AHEAD.items()
        if name in orders
    }

    def warmed(params: SamplingParams) -> bool:
        for asks in later.get(params.filter_order, ()):
            if asks(params):
                return params.temperature != 1
        return False

    return warmed


TRANSFORMED: Mapping[str, Asks] = {stage: _ahead_of_backend(stage) for stage in ASKED}
"""Whether a draw asks for a stage that is a transform of its logits, so that the backend must not apply it."""
