"""A replayed forward pass is the decoder's own, also for those who look at it, for batches of any size."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from kernels.backend import AttentionOptions, LayerCache, SamplingBatch
from kernels.cpu.backend import CpuBackend
from model.batch import batch_layout
from model.checkpoint.source import open_checkpoint
from model.contract import Chunk
from model.decoder import Decoder, Rows
from model.families.reader import read_spec
from model.loading.cache import make_cache
from model.loading.dummy import dummy_weights
from model.recorded import HEAD_ROWS, KEPT_ROWS, RecordedDecoder
from model.runner import ModelRunner
from tests.dummies import drawn_one_by_one
from tests.model.loading.test_load import CONFIG

CPU = torch.device("cpu")


class Notes:
    """A probe that keeps a copy of everything that belongs to some tokens."""

    def __init__(self, places: Tensor) -> None:
        self.places = places
        self.queries: list[tuple[int, Tensor]] = []
        self.streams: list[Tensor] = []

    def attention(self, layer: int, q: Rows, cache: LayerCache, options: AttentionOptions) -> None:
        """See `Probe.attention`."""
        self.queries.append((layer, q.at(self.places)))

    def stream(self, residual: Rows) -> None:
        """See `Probe.stream`."""
        self.streams.append(residual.at(self.places))


@pytest.mark.parametrize("softcap", [None, 3.0])
def test_a_replayed_pass_goes_on_to_logits_and_draws_of_the_rows_that_are_chosen(
    softcap: float | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config.json").write_text(json.dumps({**CONFIG, "max_position_embeddings": 256}))
    spec = replace(read_spec(open_checkpoint(tmp_path, weights=False), None), logit_softcap=softcap)
    backend = CpuBackend(2)
    decoder = Decoder(spec, dummy_weights(spec, backend, torch.float32, CPU), backend)
    cache = make_cache(spec, blocks=10, block_size=16, dtype=torch.bfloat16, device=CPU)
    recorded = RecordedDecoder(decoder, backend, cache, 80)
    layout, tokens = batch_layout([Chunk([*range(1, 41)], 0, (0, 1, 2))], 16, CPU), torch.arange(1, 41)
    hidden = decoder.forward(tokens, layout, cache)
    for rows in ([39], [3, 0, 38], [row % 40 for row in range(HEAD_ROWS)], [], [7, 7]):
        chosen = torch.tensor(rows, dtype=torch.int64)
        expected = decoder.logits(hidden.index_select(0, chosen))
        settings = sampling(len(rows))
        tokens_drawn = backend.sample(expected.clone(), settings)
        with monkeypatch.context() as patched:
            patched.delattr(Decoder, "logits")  # Nothing is left to the decoder's own calls.
            passed = recorded.run(tokens, layout, cache, rows=chosen)
            further = recorded.run(tokens, layout, cache, rows=chosen, sampling=settings)
        assert torch.equal(passed.hidden[:40], hidden)
        assert passed.logits is not None
        assert torch.equal(passed.logits, expected)
        assert passed.drawn is None
        if softcap is None:
            assert further.drawn is not None
            assert torch.equal(further.drawn, tokens_drawn)
        else:
            assert further.logits is not None
            assert torch.equal(further.logits, expected)
        # A pass that chooses nothing computes none of it.
        passed.logits.fill_(5.0)
        recorded._head.fill_(5.0)
        assert torch.equal(recorded.forward(tokens, layout, cache), hidden)
        assert bool((recorded._head == 5.0).all())
    many = torch.arange(HEAD_ROWS + 1) % 40
    logits = recorded.run(tokens, layout, cache, rows=many, sampling=sampling(len(many))).logits
    assert logits is not None
    assert torch.equal(logits, decoder.logits(hidden.index_select(0, many)))


def sampling(rows: int) -> SamplingBatch:
    """Different settings for each row, some of them greedy."""
    row = torch.arange(rows)
    return SamplingBatch(
        temperature=(row % 3).float(),
        top_k=5 * (row % 2),
        top_p=torch.full((rows,), 0.9),
        min_p=torch.zeros(rows),
        seed=row + 7,
        counter=row + 1,
    )


@pytest.mark.parametrize(
    ("sizes", "places"),
    [
        ((1,), [0]),
        ((1, 1, 1, 9), [0, 2, 11]),
        ((60,), [*range(59, -1, -1)]),
        ((1, KEPT_ROWS), [3, 0, KEPT_ROWS]),
        ((1, KEPT_ROWS), [*range(KEPT_ROWS + 1)]),
    ],
)
def test_a_replayed_pass_shows_all_that_the_decoder_would(
    sizes: tuple[int, ...], places: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config.json").write_text(json.dumps({**CONFIG, "max_position_embeddings": 256}))
    spec = read_spec(open_checkpoint(tmp_path, weights=False), None)
    backend = CpuBackend(2)
    decoder = Decoder(spec, dummy_weights(spec, backend, torch.float32, CPU), backend)
    cache = make_cache(spec, blocks=5 * len(sizes), block_size=16, dtype=torch.bfloat16, device=CPU)
    recorded = RecordedDecoder(decoder, backend, cache, 80)
    chunks = [Chunk([*range(1, size + 1)], 3, tuple(range(5 * n, 5 * n + 5))) for n, size in enumerate(sizes)]
    layout, tokens = batch_layout(chunks, 16, CPU), torch.cat([torch.arange(1, size + 1) for size in sizes])
    expected, found = Notes(torch.tensor(places)), Notes(torch.tensor(places))
    for layer in cache.layers:
        layer.keys.zero_()
        layer.values.zero_()
    hidden = decoder.forward(tokens, layout, cache, expected)
    if len(places) <= KEPT_ROWS:
        monkeypatch.delattr(Decoder, "forward")  # Nothing is left to the decoder's own calls.
    assert torch.equal(recorded.forward(tokens, layout, cache), hidden)
    assert torch.equal(recorded.forward(tokens, layout, cache, found), hidden)
    assert len(found.queries) == len(spec.layers)
    assert len(found.streams) == 2 * len(spec.layers) + 1
    for (layer, q), (same, theirs) in zip(found.queries, expected.queries, strict=True):
        assert layer == same
        assert torch.equal(q, theirs)
    for residual, stream in zip(found.streams, expected.streams, strict=True):
        assert torch.equal(residual, stream)


def test_a_pass_that_draws_by_itself_leaves_draws_to_masks_that_are_late(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({**CONFIG, "max_position_embeddings": 256}))
    spec = read_spec(open_checkpoint(tmp_path, weights=False), None)
    backend = CpuBackend(2)
    decoder = Decoder(spec, dummy_weights(spec, backend, torch.float32, CPU), backend)
    cache = make_cache(spec, blocks=10, block_size=16, dtype=torch.bfloat16, device=CPU)
    runner = ModelRunner(RecordedDecoder(decoder, backend, cache, 80), cache, 64)
    assert drawn_one_by_one(runner, [30, 7, 96, 0, 30]) == [30, 7, 96, 0, 30]
