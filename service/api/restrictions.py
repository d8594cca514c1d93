"""The tokens that a request leaves to be drawn: allowed_token_ids and bad_words, as vLLM has them."""

from model.limits import ModelLimits
from service.api.context import JobContext
from service.api.errors import refusal
from service.api.prompts import off_loop
from service.api.schemas.generation import GenerationBody


def allowed_mask(tokens: list[int] | None, limits: ModelLimits) -> bytes | None:
    """The mask of `allowed_token_ids`, as in `SamplingParams.allowed`. The ids lie in the vocabulary."""
    if tokens is None:
        return None
    mask = bytearray(-(-limits.vocab_size // 8))
    for token in tokens:
        mask[token // 8] |= 1 << token % 8
    return bytes(mask)


async def bad_words(body: GenerationBody, context: JobContext) -> tuple[tuple[int, ...], ...]:
    """The token sequences of `bad_words`: each word as a text begins with it, and as it stands behind a space.

    Raises ApiError.
    """
    words = [word.lstrip() for word in body.bad_words]
    if not all(words):
        raise refusal("bad_words", "has a string that is empty or of spaces alone")
    longest, most = max(map(len, words), default=0), context.settings.max_stop_length
    if longest > most:
        raise refusal("bad_words", f"{longest} characters in a string are more than the {most} that this server allows")

    def encode() -> tuple[tuple[int, ...], ...]:
        texts = [text for word in words for text in (word, f" {word}")]
        sequences = [context.tokenizer.encode(text, add_special_tokens=False, parse_special=True) for text in texts]
        return tuple(dict.fromkeys(map(tuple, sequences)))

    sequences = await off_loop(context, 2 * sum(map(len, words)), encode)
    if any(token >= context.client.limits.vocab_size for sequence in sequences for token in sequence):
        raise refusal("bad_words", "has a word with a token that the model cannot draw")
    return tuple(sequence for sequence in sequences if sequence)
