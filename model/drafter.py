"""The draft model: a smaller decoder that guesses the tokens to come, for the larger one to check in the same step.

Source: Leviathan et al., "Fast Inference from Transformers via Speculative Decoding", arXiv 2211.17192. Here a guess is
what the draft model itself would draw with the request's settings and random numbers: wherever it knows the
distribution, it gives the very token that the larger model draws. The draws decide, so a guess changes no answer.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.functional import pad

from kernels.backend import BatchLayout, KVCache
from model.batch import Batch, batch_layout, make_batch
from model.contract import Chunk, Draw, StepPlan
from model.decoder import Decoder
from model.graphs import GraphedDecoder
from model.recorded import RecordedDecoder
from model.sampling.choice import choose
from model.sampling.memory import TokenMemory
from model.sampling.settings import BatchSettings, settings_of
from model.transfer import stage

AnyDecoder = Decoder | GraphedDecoder | RecordedDecoder
"""A decoder, whichever way its forward pass is started."""


class Drafter:
    """Guesses drafts that a plan leaves open, and computes whatever else the plan computes.

    Its cache has the same blocks as the larger model's, and is written wherever that one is: the same block table, the
    same prefix found, and the same fate of wrong drafts hold for both.
    """

    def __init__(self, decoder: AnyDecoder, cache: KVCache, vocab_size: int) -> None:
        """`vocab_size` is the larger model's; the draft model may have fewer logits, or more."""
        self._decoder = decoder
        self._cache = cache
        self._device = decoder.weights.device
        self._vocab_size = vocab_size
        self._memory = TokenMemory(0, decoder.backend, self._device)
        """Empty, because only draws that do not read their output get drafts."""
        self._settings: BatchSettings | None = None

    def fill(self, plan: StepPlan, batch: Batch, drawn: Tensor) -> Tensor:
        """The tokens [tokens] int64 of a plan's batch, with a guess in place of each draft that is left open.

        `drawn` are the previous step's draws, as in `Batch.known_tokens`.
        """
        tokens = batch.known_tokens(drawn)
        order = [index for index, chunk in enumerate(plan.others) if chunk.is_open]
        if not order:
            self._forward(tokens, batch.layout)
            return tokens
        # Chunks with more drafts come first, so that those that get a further one are always the first.
        order.sort(key=lambda index: -len(plan.others[index].draws))
        chunks = [plan.others[index] for index in order]
        known = make_batch(_without_drafts(plan), self._cache.block_size, self._device)
        last = torch.tensor([known.begins[index] + chunk.known - 1 for index, chunk in zip(order, chunks, strict=True)])
        first = torch.tensor([batch.begins[index] + chunk.known for index, chunk in zip(order, chunks, strict=True)])
        last, first = stage([last, first], self._device)
        hidden = self._forward(known.known_tokens(drawn), known.layout).index_select(0, last)
        for place in range(len(chunks[0].draws) - 1):
            chunks = [chunk for chunk in chunks if len(chunk.draws) > place + 1]
            drafts = self._draw(hidden[: len(chunks)], [chunk.draws[place] for chunk in chunks])
            tokens = tokens.scatter(0, first[: len(chunks)] + place, drafts)
            # The last draft is computed too: if it is right, it is in the larger model's cache for good.
            following = [Chunk([0], chunk.stop + place, chunk.blocks) for chunk in chunks]
            hidden = self._forward(drafts, batch_layout(following, self._cache.block_size, self._device))
        return tokens

    def _forward(self, tokens: Tensor, layout: BatchLayout) -> Tensor:
        """Hidden rows [tokens, hidden]. A token that the draft model does not know is any other: it is only a guess."""
        return self._decoder.forward(tokens.clamp(max=self._decoder.spec.vocab_size - 1), layout, self._cache)

    def _draw(self, hidden: Tensor, draws: Sequence[Draw]) -> Tensor:
        """The tokens [draws] int64 that the draft model draws from hidden rows [draws, hidden]; 0 if it finds none."""
        missing = self._vocab_size - self._decoder.spec.vocab_size
        logits = pad(self._decoder.logits(hidden), (0, missing), value=float("-inf"))
        self._settings = settings = settings_of(draws, self._device, self._settings)
        batch = settings.batch(draws)
        return choose(self._decoder.backend, logits, draws, self._memory, settings, batch).tokens.clamp(min=0)


def _without_drafts(plan: StepPlan) -> StepPlan:
    """A plan whose chunks end with their last known token."""
    others = [
        replace(chunk, tokens=chunk.tokens[: chunk.known], draws=chunk.draws[:1]) if chunk.is_open else chunk
        for chunk in plan.others
    ]
    return StepPlan(others, plan.decoding)
