"""The context that routes work with, built once by the composition root and passed to them by FastAPI."""

import asyncio
from dataclasses import dataclass, field
from typing import Annotated

from fastapi import Depends, Request

from model.checkpoint.sampling_defaults import SamplingDefaults
from service.api.admission import Admission
from service.api.errors import ApiError
from service.engine.interface import EngineClient
from service.engine.status import EngineDead
from service.observability.metrics import Metrics
from service.settings import Settings
from service.text.interface import ChatTemplate, Tokenizer


@dataclass(frozen=True, slots=True, kw_only=True)
class JobContext:
    """The parts with which a body is made a job for the engine."""

    settings: Settings
    model_names: tuple[str, ...]
    """Names that requests may give the model; answers use the first."""
    client: EngineClient
    tokenizer: Tokenizer
    template: ChatTemplate | None
    """None for a model without a chat template, which takes no chat requests."""
    sampling: SamplingDefaults
    """Sampling of requests that do not say how to sample."""
    long_texts: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held while a thread works on a very long text."""

    @property
    def token_bound(self) -> int:
        """One more than the highest token id that this server can name: the tokenizer's, or that of padded logits."""
        try:
            return max(self.tokenizer.vocab_size, self.client.limits.vocab_size)
        except EngineDead:
            return self.tokenizer.vocab_size

    @property
    def model_name(self) -> str:
        """The model's name in answers."""
        return self.model_names[0]

    def check_model(self, name: str | None) -> None:
        """Raise ApiError with 404 for a model that isn't the served one."""
        if name is not None and name not in self.model_names:
            raise ApiError(
                404,
                f"The model {name!r:.128} does not exist; this server serves {', '.join(map(repr, self.model_names))}.",
                param="model",
                code="model_not_found",
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Context(JobContext):
    """The parts of a running server."""

    admission: Admission
    metrics: Metrics
    started: int
    """Start of the server, in Unix seconds."""
    large_bodies: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held while a large body is read in a thread."""

    @property
    def max_model_len(self) -> int | None:
        """Most tokens of a prompt and its completion; None while the model is loading."""
        return self.client.limits.capacity if self.client.health().state == "ready" else None

    def check_ready(self) -> None:
        """Raise ApiError: 503 while the engine is loading, draining or dead, 429 while the queue is full."""
        self.admission.check()
        health = self.client.health()
        if health.state == "starting":
            raise ApiError(503, "The model is loading.", code="model_loading", retry_after=2)
        if health.state == "dead":
            raise ApiError(503, "The engine is not running.", code="engine_unavailable", retry_after=10)


def _context(request: Request) -> Context:
    context: Context = request.app.state.context
    return context


Served = Annotated[Context, Depends(_context)]
