"""The places of tokens in a text, as [start, end) in characters.

Each span begins where the one before it ended, so the slices of a text join to the text. A character that several
tokens make up together is in the span of the last of them, as in a stream; the spans of the others are empty.
"""

import codecs
from collections.abc import Sequence
from itertools import pairwise

from service.text.interface import Tokenizer

Span = tuple[int, int]


def spans_of(tokenizer: Tokenizer, tokens: Sequence[int]) -> list[Span]:
    """The places of tokens in the text that they decode to, special tokens included."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    ends, end = [], 0
    for token in tokens:
        end += len(decoder.decode(tokenizer.token_bytes(token)))
        ends.append(end)
    length = end + len(decoder.decode(b"", final=True))
    # A whole text lacks the space that some tokenizers put before its first word.
    left_out = length - len(tokenizer.decode(tokens, skip_special_tokens=False))
    return joined([end - left_out for end in ends], length - left_out)


def ends_of(overlapping: Sequence[Span], start: int, left_out: int) -> list[int]:
    """The ends of a piece's tokens in the text, from spans in the piece in which tokens of one character overlap.

    The piece begins at `start`, and in it are `left_out` characters that the text lacks there.
    """
    ends = [min(stop, following) for (_, stop), (following, _) in pairwise(overlapping)]
    ends += [stop for _, stop in overlapping[-1:]]
    return [start + end - left_out for end in ends]


def joined(ends: Sequence[int], length: int) -> list[Span]:
    """The spans with these ends, in order; the last one ends with the text, which has `length` characters."""
    bounds = [0]
    for end in ends:
        bounds.append(min(max(bounds[-1], end), length))
    if ends:
        bounds[-1] = length
    return [*pairwise(bounds)]
