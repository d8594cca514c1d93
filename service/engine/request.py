"""One request as the engine sees it: what is known of it, what is computed, and which blocks hold that.

Knows nothing of the queue it stands in, of how blocks are found, or of text.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from model.contract import Draw, SamplingParams


@dataclass(slots=True, eq=False)
class Request:
    """A prompt that grows by one token a draw.

    The known tokens are the prompt and the output; the first `computed` of them have their keys and
    values in `blocks`. Being behind is all there is to prefill, to decoding and to recomputation.
    """

    id: int
    prompt: Sequence[int]
    params: SamplingParams
    cache_salt: str = ""
    output: list[int] = field(default_factory=list)
    computed: int = 0
    blocks: list[int] = field(default_factory=list)
    chain: list[bytes] = field(default_factory=list)
    """The keys of the leading full blocks, as far as anybody asked for them; the pool appends."""
    published: int = 0
    """How many leading blocks were found in the prefix cache or offered to it."""
    cached_tokens: int | None = None
    """Prompt tokens found in the prefix cache when first admitted; None before that."""
    counted: int = 0
    """How far into the prompt the statistics have got; recomputation does not count again."""
    cancelled: bool = False
    """Cancelled while a step runs on its blocks: it ends when the step does."""
    draw: Draw = field(init=False)
    """One for all steps: it refers to `prompt` and `output` and copies neither."""

    def __post_init__(self) -> None:
        self.draw = Draw(self.params, self.prompt, self.output)

    @property
    def known(self) -> int:
        """Tokens in prompt and output."""
        return len(self.prompt) + len(self.output)

    @property
    def behind(self) -> int:
        """Known tokens that are not computed yet; 1 while decoding."""
        return self.known - self.computed

    def tokens(self, start: int, stop: int) -> Sequence[int]:
        """The known tokens at positions start to stop - 1."""
        boundary = len(self.prompt)
        if start >= boundary:
            return self.output[start - boundary : stop - boundary]
        if stop <= boundary:
            return self.prompt[start:stop]
        return [*self.prompt[start:], *self.output[: stop - boundary]]
