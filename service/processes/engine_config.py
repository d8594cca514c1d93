"""The configuration of an engine process. The supervisor makes it of the settings, which the engine never loads."""

from typing import TYPE_CHECKING

import msgspec

from model.runner_config import RunnerConfig
from service.engine.callers import NO_LIMITS, CallerLimits
from service.engine.event_publisher import EventsConfig
from service.observability.logs import LogFormat

if TYPE_CHECKING:
    from model.checkpoint.source import Source
    from service.settings import Settings


class EngineConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Configuration of an engine process. It travels as JSON on the command line, so it holds no secrets."""

    runner: RunnerConfig
    draft_tokens: int
    draft_running: int
    caller_limits: CallerLimits = NO_LIMITS
    events: EventsConfig | None = None
    """The publisher of the prefix cache's events; None: nobody is told of them."""
    log_level: str = "info"
    log_format: LogFormat = "text"
    loader: str = "model.loading.load:load_runner"
    """A loader's module:function, from a RunnerConfig to a Runner; imported in the engine process alone."""


def engine_config(settings: "Settings", source: "Source") -> EngineConfig:
    """The engine's configuration for the model `source`."""
    return EngineConfig(
        runner=settings.runner(str(source.path), None if source.draft is None else str(source.draft)),
        caller_limits=CallerLimits(
            running=settings.max_running_per_key,
            waiting=settings.max_waiting_per_key,
            tokens_per_minute=settings.tokens_per_minute_per_key,
        ),
        draft_tokens=settings.most_drafts,
        draft_running=settings.draft_running,
        events=_events(settings),
        log_level=settings.log_level,
        log_format=settings.log_format,
    )


def _events(settings: "Settings") -> EventsConfig | None:
    if settings.kv_events_endpoint is None:
        return None
    return EventsConfig(
        endpoint=settings.kv_events_endpoint,
        replay_endpoint=settings.kv_events_replay_endpoint,
        topic=settings.kv_events_topic or "",
        form=settings.kv_events_form,
    )
