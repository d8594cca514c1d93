"""Sections on whole steps of a model with Llama 3.1 8B's shape and random weights: a generated token, and a prompt."""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from benchmarks.bench import Bench, Sizes
from benchmarks.elementwise import draws
from benchmarks.matmul import COST
from benchmarks.report import MILLISECONDS, TOKENS_A_SECOND, Row
from benchmarks.transformers_peer import TransformersPeer
from kernels.backend import KVCache
from kernels.load import load_backend
from model.batch import batch_layout
from model.contract import Chunk
from model.decoder import Decoder
from model.graphs import CudaCapture, GraphedDecoder
from model.loading.cache import make_cache
from model.loading.dummy import dummy_weights
from model.spec import DecoderSpec, LayerSpec, RopeSpec

CONTEXT = 1024
"""Tokens of each decoding sequence."""
DECODE = ((1, 4.6), (8, None), (32, None), (128, None))
"""(sequences, milliseconds to reach for a step)"""
PREFILL = (2048, 8192)
"""Tokens of each prompt."""
PLAIN = "Llama 8B"
INVARIANT = "Llama 8B, batch-invariant"


def llama_spec(sizes: Sizes) -> DecoderSpec:
    """The spec of Llama 3.1 8B, or of a smaller Llama in a smoke run."""
    return DecoderSpec(
        family="llama",
        vocab_size=sizes.vocab,
        hidden_size=sizes.hidden,
        layers=(LayerSpec(rope=RopeSpec(500_000.0, sizes.head_dim)),) * sizes.layers,
        heads=sizes.heads,
        kv_heads=sizes.kv_heads,
        head_dim=sizes.head_dim,
        mlp_size=sizes.mlp,
        max_context=131_072,
        attention_scale=sizes.head_dim**-0.5,
        tied_embeddings=False,
    )


@torch.inference_mode()
def measure_end_to_end(bench: Bench) -> None:
    """Measure decoding and prompts with the default backend, then with batch-invariant projections."""
    spec = llama_spec(bench.sizes)
    weights = dummy_weights(spec, bench.backend, bench.sizes.dtype, bench.device)
    invariant = load_backend(bench.device, "triton", batch_invariant=True)
    for form, backend in ((PLAIN, bench.backend), (INVARIANT, invariant)):
        decoder = Decoder(spec, weights, backend)
        for count, target in DECODE:
            bench.attempt(f"decode {count}, {form}", partial(_measure_decode, bench, decoder, form, count, target))
        for count in PREFILL:
            bench.attempt(f"prefill {count}, {form}", partial(_measure_prefill, bench, decoder, form, count))


@torch.inference_mode()
def measure_transformers(bench: Bench) -> None:
    """Measure the same model in transformers, as a peer of the rows of `measure_end_to_end`."""
    try:
        peer = TransformersPeer(llama_spec(bench.sizes), bench.sizes.dtype, bench.device)
    except ImportError as error:
        bench.report.note(f"transformers left out: {error}")
        return
    context = bench.sizes.tokens(CONTEXT)
    for count in PREFILL:
        row = bench.report.row(f"prefill, {PLAIN}", _prefill_case(count))
        if row is not None:
            bench.peer(row, "transformers", partial(peer.prefill, bench.timer, bench.sizes.tokens(count)))
    for count, _ in DECODE:
        row = bench.report.row(f"decode, {PLAIN}", _decode_case(count))
        if row is not None:
            decode = partial(peer.decode, bench.timer, bench.sizes.sequences(count), context)
            bench.peer(row, "transformers", decode)


def _decode_case(count: int) -> str:
    return f"{count} x {CONTEXT // 1024}K"


def _prefill_case(count: int) -> str:
    return f"1 x {count // 1024}K"


def _measure_decode(bench: Bench, decoder: Decoder, form: str, count: int, target: float | None) -> None:
    """Measure a whole step: decoder, logits and draw. Tokens stay on the device, as they do in the server."""
    spec, sizes = decoder.spec, bench.sizes
    sequences, context = sizes.sequences(count), sizes.tokens(CONTEXT)
    cache = _cache(bench, decoder, sequences * -(-context // sizes.block_size))
    layout = batch_layout(_chunks(sequences, context, 1, sizes.block_size), sizes.block_size, bench.device)
    forward = decoder.forward
    if bench.device.type == "cuda":
        graphed = GraphedDecoder(
            decoder, cache, max_batch=sequences, max_context=2 * context, token_budget=512, capture=CudaCapture()
        )
        forward = graphed.forward
    tokens = torch.randint(0, spec.vocab_size, (sequences,), device=bench.device)
    drawing = draws(sequences, bench.device)

    def step() -> Tensor:
        return decoder.backend.sample(decoder.logits(forward(tokens, layout, cache)), drawing)

    moved = _weight_bytes(decoder) + 2 * sequences * context * len(spec.layers) * (
        spec.kv_heads * spec.head_dim * sizes.dtype.itemsize
    )
    floor = max(bench.rates.moving(moved), bench.rates.computing(_weight_operations(decoder) * sequences))
    seconds = bench.timer.steady(step)
    _add(bench, Row(f"decode, {form}", _decode_case(count), MILLISECONDS, seconds, floor, moved, target))
    if form == PLAIN:
        bench.report.add(Row(f"host, {form}", _decode_case(count), MILLISECONDS, bench.timer.host(step)))


def _measure_prefill(bench: Bench, decoder: Decoder, form: str, count: int) -> None:
    spec, sizes = decoder.spec, bench.sizes
    length = sizes.tokens(count)
    cache = _cache(bench, decoder, -(-length // sizes.block_size))
    layout = batch_layout(_chunks(1, length, length, sizes.block_size), sizes.block_size, bench.device)
    tokens = torch.randint(0, spec.vocab_size, (length,), device=bench.device)
    drawing = draws(1, bench.device)

    def step() -> Tensor:
        hidden = decoder.forward(tokens, layout, cache)
        return decoder.backend.sample(decoder.logits(hidden[-1:]), drawing)

    attention = 2.0 * spec.heads * spec.head_dim * length * (length + 1) * len(spec.layers)
    projections = _weight_operations(decoder, output=False) * length
    floor = bench.rates.computing(attention + projections)
    seconds = bench.timer.steady(step, runs=5)
    _add(bench, Row(f"prefill, {form}", _prefill_case(count), TOKENS_A_SECOND, seconds, floor, length))


def _add(bench: Bench, row: Row) -> None:
    """Report a row. A batch-invariant one has as its target COST times the seconds of the default one."""
    kind, _, form = row.section.partition(", ")
    plain = bench.report.row(f"{kind}, {PLAIN}", row.case)
    if form == INVARIANT and plain is not None:
        row.target = row.shown(COST * plain.seconds)
    bench.report.add(row)


def _cache(bench: Bench, decoder: Decoder, blocks: int) -> KVCache:
    cache = make_cache(
        decoder.spec, blocks=blocks, block_size=bench.sizes.block_size, dtype=bench.sizes.dtype, device=bench.device
    )
    for layer in cache.layers:
        layer.keys.normal_()
        layer.values.normal_()
    return cache


def _chunks(sequences: int, context: int, new: int, block_size: int) -> Sequence[Chunk]:
    """Chunks of `sequences` sequences with `context` tokens, the last `new` of them new; blocks are in random order."""
    width = -(-context // block_size)
    tables = torch.randperm(sequences * width).view(sequences, width).tolist()
    return [Chunk([0] * new, context - new, blocks) for blocks in tables]


def _projections(decoder: Decoder, *, output: bool = True) -> list[Tensor]:
    """The dense projection weights that every token is multiplied by; with `output`, the output projection too."""
    weights = decoder.weights
    linears = [
        linear for layer in weights.layers for linear in (layer.qkv, layer.attention_output, layer.up, layer.down)
    ]
    dense = [linear.weight for linear in (*linears, *([weights.output] if output else []))]
    return [weight for weight in dense if isinstance(weight, Tensor)]


def _weight_bytes(decoder: Decoder) -> float:
    return float(sum(weight.nbytes for weight in _projections(decoder)))


def _weight_operations(decoder: Decoder, *, output: bool = True) -> float:
    """Multiplications and additions that one token needs in the projections."""
    return 2.0 * sum(weight.numel() for weight in _projections(decoder, output=output))
