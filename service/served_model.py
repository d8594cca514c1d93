"""The text side of a model: its files, tokenizer, template, names and default sampling.

The server and the terminal commands both start here.
"""

import logging
from dataclasses import dataclass

from model.checkpoint.checkpoint import Checkpoint
from model.checkpoint.sampling_defaults import NEUTRAL, SamplingDefaults
from model.checkpoint.source import Source, open_checkpoint, resolve
from model.limits import ModelLimits
from service.settings import Settings, listed
from service.text.chat import JinjaTemplate
from service.text.interface import ChatTemplate, Tokenizer
from service.text.tokenizer import load_tokenizer

MOST_SHOWN = 20
"""Number of recommendations that one log line shows at most."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A model on this machine, without its weights: all that turning text into tokens and back needs."""

    model_names: tuple[str, ...]
    """Names that requests may give the model; answers use the first."""
    tokenizer: Tokenizer
    template: ChatTemplate | None
    sampling: SamplingDefaults = NEUTRAL
    """Sampling of requests that do not say how to sample."""

    @property
    def model_name(self) -> str:
        """The name in answers, metrics and logs."""
        return self.model_names[0]


def served_names(settings: Settings, source: Source) -> tuple[str, ...]:
    """Names that requests may give the model: those of the settings, or else its own."""
    return listed(settings.served_model_name) or (source.name,)


def locate(settings: Settings) -> Source:
    """Find or fetch the model. Raises CheckpointError with one line that says what is wrong."""
    source = resolve(settings.model, settings.home_path)
    # Before anything slow: a broken file should not cost the start of a process to find out.
    sampling = _sampling(settings, source, open_checkpoint(source.path, weights=settings.load_format != "dummy"))
    if sampling.not_applied:
        # Logged here, once, and not where the defaults are used, which is in every API process.
        shown = ", ".join(sampling.not_applied[:MOST_SHOWN])
        count = len(sampling.not_applied)
        log.warning("%s: %d recommendations on sampling are not applied: %s", source.path, count, shown)
    return source


def read_served_model(settings: Settings, source: Source) -> ServedModel:
    """Read the model's tokenizer and template. Raises CheckpointError with one line that says what is wrong."""
    checkpoint = open_checkpoint(source.path, weights=settings.load_format != "dummy")
    tokenizer = load_tokenizer(checkpoint.tokenizer)
    return ServedModel(
        model_names=served_names(settings, source),
        tokenizer=tokenizer,
        template=JinjaTemplate.of(tokenizer),
        sampling=_sampling(settings, source, checkpoint),
    )


def check_ends(served: ServedModel, limits: ModelLimits) -> None:
    """Log the tokens that should end a completion and that the loaded model cannot draw."""
    ends = sorted(token for token in served.tokenizer.eos_token_ids if token >= limits.vocab_size)
    if ends:
        log.warning(
            "the model's files end completions with tokens %s, which it cannot draw: its logits have %d columns",
            ", ".join(map(str, ends)),
            limits.vocab_size,
        )


def _sampling(settings: Settings, source: Source, checkpoint: Checkpoint) -> SamplingDefaults:
    """Sampling of requests that do not say how to sample: neutral, or as the model's makers recommend."""
    if settings.sampling_defaults == "neutral":
        return NEUTRAL
    return source.sampling or checkpoint.sampling_defaults
