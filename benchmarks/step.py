"""Layers of a decoding step, whose kernels follow on one another in each way that could be chosen: a table.

A launch's cost shows only between kernels that need each other's results, so that whole layers are measured.
"""

from dataclasses import replace
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks.bench import Bench
from benchmarks.end_to_end import CONTEXT, llama_spec
from benchmarks.matmul import FORMS, floor_of
from benchmarks.report import MICROSECONDS, Row
from benchmarks.variants import SMOKE_CASES
from kernels.backend import Fp8Weight, Linear, QuantizedWeight
from kernels.gpu.backend import TritonBackend
from kernels.gpu.decode import DECODING, Decoding
from kernels.gpu.launch import JitLauncher, device_target
from kernels.gpu.matmul import PROJECTING, Projecting
from kernels.gpu.matvec import RowTiling
from model.batch import batch_layout
from model.contract import Chunk
from model.decoder import Decoder
from model.loading.cache import make_cache
from model.loading.dummy import dummy_weights
from model.weights import DecoderWeights

SECTION = "step variants"
LAYERS = 4
"""Layers of the decoder that is measured; each has more weights than a cache holds."""
SEQUENCES = (1, 8, 32)
WEIGHTS = ("dense", "W4", "FP8 blocks")
"""Forms of the projections: the model's dtype, or one of FORMS."""


class Way(NamedTuple):
    """A choice of how kernels follow on one another."""

    decoding: Decoding = DECODING
    projecting: Projecting = PROJECTING
    dependent: bool = False
    """See `kernels.gpu.dependent`. The interpreter of a smoke run knows nothing of it."""

    def backend(self, device: torch.device) -> TritonBackend:
        """A backend that launches kernels in this way."""
        dependent = self.dependent and device.type == "cuda"
        launch = JitLauncher(device_target(device), dependent=dependent)
        return TritonBackend(launch, decoding=self.decoding, projecting=self.projecting)


WAYS = {
    "served": Way(),
    "early": Way(dependent=True),
    "attention folded": Way(Decoding(folded=True)),
    "products folded": Way(projecting=Projecting(folded=True)),
    "both folded": Way(Decoding(folded=True), Projecting(folded=True)),
    "both folded, early": Way(Decoding(folded=True), Projecting(folded=True), dependent=True),
    "by rows": Way(projecting=Projecting(rows=RowTiling())),
    "all of it": Way(Decoding(folded=True), Projecting(folded=True, rows=RowTiling()), dependent=True),
}


@torch.inference_mode()
def measure_step_variants(bench: Bench) -> None:
    """Measure a few layers of a decoding step, from the embedding to the final norm, in every way."""
    layers = min(LAYERS, bench.sizes.layers)
    spec = llama_spec(replace(bench.sizes, layers=layers))
    weights = dummy_weights(spec, bench.backend, bench.sizes.dtype, bench.device)
    cases = [(count, form) for count in SEQUENCES for form in WEIGHTS]
    for count, form in cases[:SMOKE_CASES] if bench.report.smoke else cases:
        decoder = Decoder(spec, _in_form(bench, weights, form), bench.backend)
        bench.attempt(f"{SECTION}: {count} x {form}", partial(_measure_ways, bench, decoder, count, form))


def _in_form(bench: Bench, weights: DecoderWeights, form: str) -> DecoderWeights:
    """The weights, with other numbers in projections of another form."""
    if form not in FORMS:
        return weights

    def other(linear: Linear) -> Linear:
        assert isinstance(linear.weight, Tensor)
        out, width = linear.weight.shape
        return bench.backend.pack(FORMS[form](out, width, bench.device), None)

    layers = [
        replace(
            layer,
            qkv=other(layer.qkv),
            attention_output=other(layer.attention_output),
            up=other(layer.up),
            down=other(layer.down),
        )
        for layer in weights.layers
    ]
    return replace(weights, layers=layers)


def _measure_ways(bench: Bench, decoder: Decoder, count: int, form: str) -> None:
    sizes, spec, weights = bench.sizes, decoder.spec, decoder.weights
    sequences, context = sizes.sequences(count), sizes.tokens(CONTEXT)
    width = -(-context // sizes.block_size)
    blocks = torch.randperm(sequences * width).view(sequences, width).tolist()
    chunks = [Chunk([0], context - 1, own) for own in blocks]
    layout = batch_layout(chunks, sizes.block_size, bench.device)
    cache = make_cache(
        spec, blocks=sequences * width, block_size=sizes.block_size, dtype=sizes.dtype, device=bench.device
    )
    tokens = torch.randint(0, spec.vocab_size, (sequences,), device=bench.device)
    cached = 2 * sequences * context * len(spec.layers) * spec.kv_heads * spec.head_dim * sizes.dtype.itemsize
    floor = bench.rates.moving(cached) + sum(
        _floor(bench, linear, sequences)
        for layer in weights.layers
        for linear in (layer.qkv, layer.attention_output, layer.up, layer.down)
    )
    for name, way in WAYS.items():
        variant = Decoder(spec, weights, way.backend(bench.device))
        seconds = bench.timer.cold(partial(variant.forward, tokens, layout, cache))
        bench.report.add(Row(SECTION, f"{count} x 1K, {form}", MICROSECONDS, seconds, floor, variant=name))


def _floor(bench: Bench, linear: Linear, rows: int) -> float:
    weight = linear.weight
    if isinstance(weight, QuantizedWeight | Fp8Weight):
        return floor_of(bench, weight, rows)
    assert isinstance(weight, Tensor)
    return bench.rates.moving(weight.nbytes)
