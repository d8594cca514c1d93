"""From settings to what a server has of its model: the files, the tokenizer, its names, how its makers sample.

The server and the terminal commands start alike; what they do with the parts is theirs.
"""

import logging
from dataclasses import dataclass

from model.checkpoint.checkpoint import Checkpoint
from model.checkpoint.sampling_defaults import NEUTRAL, SamplingDefaults
from model.checkpoint.source import Source, open_checkpoint, resolve
from service.settings import Settings, listed
from service.text.chat import ChatTemplate
from service.text.tokenizer import Tokenizer, load_tokenizer

MOST_SHOWN = 20
"""Of a file's recommendations, in one line of the log."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Launch:
    """A model that is on this machine, as far as it concerns text."""

    model_names: tuple[str, ...]
    """What it may be called, the usual name first."""
    tokenizer: Tokenizer
    template: ChatTemplate | None
    sampling: SamplingDefaults = NEUTRAL
    """For requests that do not say how to sample."""

    @property
    def model_name(self) -> str:
        """What it is called in answers, metrics and logs."""
        return self.model_names[0]


def served_names(settings: Settings, source: Source) -> tuple[str, ...]:
    """What the model may be called: the names it was given, or its own."""
    return listed(settings.served_model_name) or (source.name,)


def locate(settings: Settings) -> Source:
    """Find or fetch the model. Raises CheckpointError with one line that says what is wrong."""
    source = resolve(settings.model, settings.home_path)
    # Before anything slow: a file that is none should not cost the start of a process to find out.
    sampling = _sampling(settings, source, open_checkpoint(source.path, weights=settings.load_format != "dummy"))
    if sampling.not_applied:
        # Here and not where it is used, which is in every API process.
        shown = ", ".join(sampling.not_applied[:MOST_SHOWN])
        count = len(sampling.not_applied)
        log.warning("%s: %d recommendations on sampling are not applied: %s", source.path, count, shown)
    return source


def prepare(settings: Settings, source: Source) -> Launch:
    """Read the model's tokenizer. Raises CheckpointError with one line that says what is wrong."""
    checkpoint = open_checkpoint(source.path, weights=settings.load_format != "dummy")
    tokenizer = load_tokenizer(checkpoint.tokenizer)
    return Launch(
        model_names=served_names(settings, source),
        tokenizer=tokenizer,
        template=ChatTemplate.of(tokenizer),
        sampling=_sampling(settings, source, checkpoint),
    )


def _sampling(settings: Settings, source: Source, checkpoint: Checkpoint) -> SamplingDefaults:
    """For requests that do not say how to sample."""
    if settings.sampling_defaults == "neutral":
        return NEUTRAL
    return source.sampling or checkpoint.sampling_defaults
