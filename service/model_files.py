"""A model's files: where they are, and what they recommend. Their tokenizer is read by `served_model.py`.

The supervisor needs no more of a model than this, and so loads no library for text.
"""

import logging
from dataclasses import replace
from typing import TYPE_CHECKING

from model.checkpoint.errors import CheckpointError
from model.checkpoint.sampling_defaults import NEUTRAL, SamplingDefaults
from model.checkpoint.source import Source, open_checkpoint, resolve
from model.checkpoint.vocabularies import first_difference
from service.settings import Settings, listed

if TYPE_CHECKING:
    from pathlib import Path

    from model.checkpoint.checkpoint import Checkpoint

MOST_SHOWN = 20
"""Number of recommendations that one log line shows at most."""

log = logging.getLogger(__name__)


def served_names(settings: Settings, source: Source) -> tuple[str, ...]:
    """Names that requests may give the model: those of the settings, or else its own."""
    return listed(settings.served_model_name) or (source.name,)


def locate(settings: Settings) -> Source:
    """Find or fetch the model, and its draft model. Raises CheckpointError with one line that says what is wrong."""
    source = resolve(settings.model, settings.home_path)
    # Before anything slow: a broken file should not cost the start of a process to find out.
    checkpoint = _open(settings, source)
    sampling = sampling_of(settings, source, checkpoint)
    if sampling.not_applied:
        # Logged here, once, and not where the defaults are used, which is in every API process.
        shown = ", ".join(sampling.not_applied[:MOST_SHOWN])
        count = len(sampling.not_applied)
        log.warning("%s: %d recommendations on sampling are not applied: %s", source.path, count, shown)
    return source if settings.draft_model is None else replace(source, draft=_locate_draft(settings, checkpoint))


def _locate_draft(settings: Settings, checkpoint: "Checkpoint") -> "Path":
    """The draft model of a model, whose vocabulary it has to have. Raises CheckpointError."""
    draft = resolve(settings.draft_model or "", settings.home_path)
    if difference := first_difference(_open(settings, draft).tokenizer, checkpoint.tokenizer):
        raise CheckpointError(f"{draft.path}: a draft model needs the vocabulary of the model, and here {difference}")
    return draft.path


def _open(settings: Settings, source: Source) -> "Checkpoint":
    return open_checkpoint(source.path, weights=settings.load_format != "dummy")


def sampling_of(settings: Settings, source: Source, checkpoint: "Checkpoint") -> SamplingDefaults:
    """Sampling of requests that do not say how to sample: neutral, or as the model's makers recommend."""
    if settings.sampling_defaults == "neutral":
        return NEUTRAL
    return source.sampling or checkpoint.sampling_defaults
