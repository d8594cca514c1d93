"""A model's files: where they are, and what they recommend. Their tokenizer is read by `served_model.py`.

The supervisor needs no more of a model than this, and so loads no library for text.
"""

import logging
from typing import TYPE_CHECKING

from model.checkpoint.sampling_defaults import NEUTRAL, SamplingDefaults
from model.checkpoint.source import Source, open_checkpoint, resolve
from service.settings import Settings, listed

if TYPE_CHECKING:
    from model.checkpoint.checkpoint import Checkpoint

MOST_SHOWN = 20
"""Number of recommendations that one log line shows at most."""

log = logging.getLogger(__name__)


def served_names(settings: Settings, source: Source) -> tuple[str, ...]:
    """Names that requests may give the model: those of the settings, or else its own."""
    return listed(settings.served_model_name) or (source.name,)


def locate(settings: Settings) -> Source:
    """Find or fetch the model. Raises CheckpointError with one line that says what is wrong."""
    source = resolve(settings.model, settings.home_path)
    # Before anything slow: a broken file should not cost the start of a process to find out.
    sampling = sampling_of(settings, source, open_checkpoint(source.path, weights=settings.load_format != "dummy"))
    if sampling.not_applied:
        # Logged here, once, and not where the defaults are used, which is in every API process.
        shown = ", ".join(sampling.not_applied[:MOST_SHOWN])
        count = len(sampling.not_applied)
        log.warning("%s: %d recommendations on sampling are not applied: %s", source.path, count, shown)
    return source


def sampling_of(settings: Settings, source: Source, checkpoint: "Checkpoint") -> SamplingDefaults:
    """Sampling of requests that do not say how to sample: neutral, or as the model's makers recommend."""
    if settings.sampling_defaults == "neutral":
        return NEUTRAL
    return source.sampling or checkpoint.sampling_defaults
