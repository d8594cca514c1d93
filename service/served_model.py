"""The text side of a model: its files, tokenizer, template, names and default sampling.

The server and the terminal commands both start here.
"""

import logging
from dataclasses import dataclass

from model.checkpoint.sampling_defaults import NEUTRAL, SamplingDefaults
from model.checkpoint.source import Source, open_checkpoint
from model.limits import ModelLimits
from service.model_files import sampling_of, served_names
from service.settings import Settings
from service.text.chat import JinjaTemplate
from service.text.interface import ChatTemplate, Tokenizer
from service.text.tokenizer import load_tokenizer

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


def read_served_model(settings: Settings, source: Source) -> ServedModel:
    """Read the model's tokenizer and template. Raises CheckpointError with one line that says what is wrong."""
    checkpoint = open_checkpoint(source.path, weights=settings.load_format != "dummy")
    tokenizer = load_tokenizer(checkpoint.tokenizer)
    return ServedModel(
        model_names=served_names(settings, source),
        tokenizer=tokenizer,
        template=JinjaTemplate.of(tokenizer),
        sampling=sampling_of(settings, source, checkpoint),
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
