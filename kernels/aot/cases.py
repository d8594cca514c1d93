"""Calls of the backend as the decoder makes them, on tensors without data, so that each kernel variant is recorded.

The backend's own methods are called, so the choice of kernels and constants is stated only where an operation is
implemented. The shapes are those of published models.

The tests compile `TIGHTEST` alone: the rest takes minutes and has little to find. Norms, activations, rotation,
sampling and attention weights are far from every limit in all shapes and on all chips; attention and projections come
close to one in a few shapes, much the same ones on each chip.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Literal, get_args

import torch
from torch import Tensor

from kernels.aot.record import RecordingLauncher, Variant
from kernels.backend import (
    ActivationKind,
    AttentionOptions,
    Backend,
    BatchLayout,
    Fp8Weight,
    HeadNorms,
    KVCache,
    LayerCache,
    LayerQueries,
    Penalties,
    QuantizedWeight,
    Rotation,
    SamplingBatch,
    TokenCounts,
)
from kernels.gpu.backend import TritonBackend
from kernels.gpu.decode import DECODING, Decoding
from kernels.gpu.launch import Target
from kernels.gpu.matmul import PROJECTING, Projecting, Tiling
from kernels.gpu.matvec import RowTiling
from kernels.gpu.prefill import PrefillWarps

Feature = Literal["window", "softcap", "alibi", "sinks"]
BF16, FP16, FP32, FP8 = torch.bfloat16, torch.float16, torch.float32, torch.float8_e4m3fn
CACHE_BYTES = 16 << 30
"""Bytes of the cache of all layers, so large that 32-bit offsets cannot address all of it."""


@dataclass(frozen=True, slots=True)
class Case:
    """A named group of calls of a backend."""

    name: str
    run: Callable[[Backend], None]
    served: bool = True
    """Whether a model family needs it in the dtype it is published in. Other cases are compiled only with --all."""
    batch_invariant: bool = False
    decoding: Decoding = DECODING
    prefill: PrefillWarps | None = None
    projecting: Projecting = PROJECTING
    dependent: bool = False
    """Whether kernels are launched early, on chips that can do so."""


@dataclass(frozen=True, slots=True)
class Model:
    """The properties of a model that attention depends on."""

    dim: int
    """Dimensions of a head."""
    heads: int
    kv_heads: int
    dtype: torch.dtype = BF16
    cache_dtype: torch.dtype = BF16
    block_size: int = 64

    def __str__(self) -> str:
        cache = "" if self.cache_dtype == self.dtype else f" cache {_name(self.cache_dtype)}"
        block = "" if self.block_size == 64 else f" block {self.block_size}"
        return f"d{self.dim} {self.heads}/{self.kv_heads} {_name(self.dtype)}{cache}{block}"


@dataclass(frozen=True, slots=True)
class Sequences:
    """A batch of decoding sequences and at most one prompt after them."""

    singles: int
    """Decoding sequences."""
    prompt: int
    """New tokens of the prompt; 0: no prompt."""
    context: int
    """The largest context length."""


BATCHES = (
    Sequences(1, 0, 1000),
    Sequences(1, 0, 32_768),
    Sequences(200, 0, 4096),
    Sequences(0, 2048, 2048),
    Sequences(7, 500, 4000),
)
LARGE = (Sequences(200, 2048, 4096),)
"""A batch that starts every attention kernel in the variant that needs the most registers."""
SHAPES = ((64, 32, 8), (80, 32, 32), (96, 32, 32), (128, 32, 8), (192, 64, 8), (256, 8, 4))
"""(head dimension, query heads, key heads)"""
GROUPS = ((64, 9, 3), (128, 28, 4), (128, 64, 8), (128, 32, 32), (64, 12, 12), (256, 4, 1))
"""Shapes with other numbers of query heads to a key head: SmolLM2, Qwen 2.5, Llama 70B, Llama 2, GPT-2, Gemma 3 1B. A
kernel's resources depend little on that number."""
FP8_SERVED = (64, 128, 256)
HIDDEN = (576, 2304, 8192)
FORMS: tuple[tuple[Literal[4, 8], int, bool], ...] = (
    (4, 32, True),
    (4, 32, False),
    (4, 128, False),
    (8, 16, True),
    (8, 32, False),
)
"""(bits, group size, whether there are offsets) of GGUF's blocks and the group-quantised formats."""
FP8_BLOCKS = ((128, 128), (None, None), (1, None), (64, 128))
"""(outputs, inputs) that share a scale in e4m3 weights, as published, and of a stack of parts; None: all."""
PROJECTINGS = {
    "narrow": Projecting(Tiling(32, 16, 2, 3), step=2, lean=True),
    "wide": Projecting(Tiling(128, 32, 8, 2), lean=True),
    "folded": Projecting(folded=True),
}
"""Ways of projecting that are not served, for few tokens and for many. With 64 tokens, an A100 would spill."""
WIDE = Projecting(wide=Tiling(128, 128, 8, 3))
"""A way of projecting many tokens with batch invariance that is not served."""
KINDS: tuple[ActivationKind, ...] = get_args(ActivationKind)
HOPPERS = "attend d128 32/8 bf16 by Hopper's own kernel"
"""Name of the case of which other chips start the portable kernel."""
TIGHTEST = frozenset(
    {
        "attend d128 32/8 bf16",
        "attend d128 32/8 bf16 cache fp8",
        HOPPERS,
        "attend d192 64/8 bf16",
        "attend d256 8/4 bf16 softcap+window (Gemma 2 local)",
        "attend d64 32/8 fp32",
        "weights d256 8/4 bf16 softcap+window",
        "weights d256 8/4 bf16 cache fp8",
        "rotate d128 32/8 bf16 cache fp8 head norms",
        "norm 8192 bf16",
        "activation silu bf16",
        "linear W4 group 32 offsets bf16",
        "linear W4 group 128 bf16",
        "linear W8 e4m3 128x128 bf16",
        "linear W8 e4m3 1xall bf16",
        "linear bf16 invariant",
        "linear bf16 by rows",
        "sample",
        "edit logits",
    }
)
"""Names of cases with every kernel that is served, each in the shapes that need most registers and shared memory."""
EARLY = "step launched early"
"""Name of the case with the kernels that can be launched before the ones before them have ended."""
Extent = Literal["tightest", "served", "all"]
"""Which cases to compile."""


def record(target: Target, only: str = "", extent: Extent = "served") -> list[Variant]:
    """The distinct variants that cases of this extent start on `target`, if their names contain `only`."""
    launcher = RecordingLauncher(target)
    for case in _cases():
        wanted = {"tightest": case.name in TIGHTEST, "served": case.served, "all": True}[extent]
        if wanted and only in case.name:
            launcher.label = case.name
            launcher.dependent = case.dependent and target.launches_early
            case.run(
                TritonBackend(
                    launcher,
                    batch_invariant=case.batch_invariant,
                    decoding=case.decoding,
                    prefill=case.prefill,
                    projecting=case.projecting,
                )
            )
    return list(launcher.variants.values())


def _cases() -> Iterator[Case]:
    yield from _attention()
    yield from _attention_features()
    yield from _attention_weights()
    yield from _rotary()
    yield from _elementwise()
    yield from _matmul()
    yield Case("sample", _sample)
    yield Case("edit logits", _edit)
    yield Case(EARLY, _step, False, dependent=True)


def _attention() -> Iterator[Case]:
    for shape in SHAPES:
        for dtype in (BF16, FP16, FP32):
            for cache_dtype in (dtype, FP8):
                model = Model(*shape, dtype, cache_dtype)
                usual = dtype == BF16 and (cache_dtype == BF16 or model.dim in FP8_SERVED)
                served = usual or (cache_dtype == dtype and model.dim == {FP16: 128, FP32: 64}.get(dtype))
                yield Case(f"attend {model}", partial(_attend, model), served)
    yield Case(f"attend {Model(128, 32, 8)} batches", partial(_attend, Model(128, 32, 8), batches=BATCHES))
    once = Decoding(folded=True, paired=True)
    for model in (Model(128, 32, 8), Model(128, 32, 8, BF16, FP8)):
        yield Case(f"attend {model} in one launch", partial(_attend, model), decoding=once)
    yield Case(HOPPERS, partial(_attend, Model(128, 32, 8)), prefill=PrefillWarps())
    deeper = PrefillWarps(stages=3, turns=False)
    yield Case(f"{HOPPERS}, 3 stages", partial(_attend, Model(128, 32, 8)), False, prefill=deeper)
    small_blocks = Model(128, 32, 8, block_size=16)
    yield Case(f"attend {small_blocks}", partial(_attend, small_blocks))
    for shape in GROUPS:
        yield Case(f"attend {Model(*shape)}", partial(_attend, Model(*shape)), shape in GROUPS[:2])


def _attention_features() -> Iterator[Case]:
    """The combinations of features that families have, each also with an FP8 cache."""
    families: list[tuple[str, tuple[int, int, int], tuple[Feature, ...], bool]] = [
        ("Mistral", (128, 32, 8), ("window",), True),
        ("Phi 3", (96, 32, 32), ("window",), True),
        ("Gemma 3", (256, 8, 4), ("window",), True),
        ("Gemma 2", (256, 8, 4), ("softcap",), False),
        ("Gemma 2 local", (256, 8, 4), ("softcap", "window"), True),
        ("BLOOM", (64, 16, 16), ("alibi",), False),
        ("BLOOM 7B", (128, 32, 32), ("alibi",), True),
        ("gpt-oss", (64, 64, 8), ("sinks",), False),
        ("gpt-oss local", (64, 64, 8), ("sinks", "window"), True),
    ]
    for family, shape, features, served in families:
        for cache_dtype in (BF16, FP8):
            model = Model(*shape, BF16, cache_dtype)
            run = partial(_attend, model, features=features)
            yield Case(f"attend {model} {'+'.join(features)} ({family})", run, served and cache_dtype == BF16)


def _attend(
    model: Model, backend: Backend, features: tuple[Feature, ...] = (), batches: tuple[Sequences, ...] = LARGE
) -> None:
    options = _options(model, features)
    for batch in batches:
        layout = _layout(batch, model.block_size)
        q = _meta(layout.positions.shape[0], model.heads, model.dim, dtype=model.dtype)
        backend.attend(q, _cache(model), layout, options)


def _attention_weights() -> Iterator[Case]:
    for shape in SHAPES:
        for dtype, cache_dtype in ((BF16, BF16), (BF16, FP8), (FP16, FP16), (FP32, FP32)):
            model = Model(*shape, dtype, cache_dtype)
            served = dtype == BF16 and (cache_dtype == BF16 or model.dim in FP8_SERVED)
            yield Case(f"weights {model}", partial(_weigh, model), served)
    families: list[tuple[tuple[int, int, int], tuple[Feature, ...]]] = [
        ((128, 32, 8), ("window",)),
        ((256, 8, 4), ("softcap", "window")),
        ((128, 32, 32), ("alibi",)),
        ((64, 64, 8), ("sinks", "window")),
    ]
    for shape, features in families:
        yield Case(f"weights {Model(*shape)} {'+'.join(features)}", partial(_weigh, Model(*shape), features=features))


def _weigh(model: Model, backend: Backend, features: tuple[Feature, ...] = ()) -> None:
    blocks = _meta(2000 // model.block_size, dtype=torch.int32)
    for rows in (1, 500):
        q, positions = _meta(rows, model.heads, model.dim, dtype=model.dtype), _meta(rows, dtype=torch.int64)
        queries = LayerQueries(q, _cache(model), [0, 1], _options(model, features))
        backend.attention_weights([queries], positions, blocks)


def _options(model: Model, features: tuple[Feature, ...]) -> AttentionOptions:
    per_head = _meta(model.heads, dtype=FP32)
    return AttentionOptions(
        model.dim**-0.5,
        window=1024 if "window" in features else None,
        softcap=50.0 if "softcap" in features else None,
        alibi_slopes=per_head if "alibi" in features else None,
        sinks=per_head if "sinks" in features else None,
    )


def _rotary() -> Iterator[Case]:
    for shape in SHAPES:
        for dtype, cache_dtype in ((BF16, BF16), (BF16, FP8), (FP16, FP16), (FP32, FP32)):
            model = Model(*shape, dtype, cache_dtype)
            served = dtype == BF16 and (cache_dtype == BF16 or model.dim in FP8_SERVED)
            yield Case(f"rotate {model}", partial(_rotate, model, rope_dim=model.dim), served)
    fp8 = Model(128, 32, 8, BF16, FP8)
    for model in (Model(128, 32, 8), Model(256, 4, 1), fp8):
        yield Case(f"rotate {model} head norms", partial(_rotate, model, rope_dim=model.dim, norms=True))
    yield Case("rotate d96 partly", partial(_rotate, Model(96, 32, 32), rope_dim=48))
    yield Case("store d64 unrotated", partial(_rotate, Model(64, 12, 12), rope_dim=0))


def _rotate(model: Model, backend: Backend, rope_dim: int, norms: bool = False) -> None:
    weight = _meta(model.dim, dtype=model.dtype)
    for tokens in (1, 7, 32, 2048):
        angles = _meta(tokens, rope_dim // 2, dtype=FP32)
        backend.rotate_and_store(
            _meta(tokens, (model.heads + 2 * model.kv_heads) * model.dim, dtype=model.dtype),
            model.heads,
            HeadNorms(weight, weight, 1e-6) if norms else None,
            Rotation(angles, angles) if rope_dim else None,
            _cache(model),
            _meta(tokens, dtype=torch.int64),
        )


def _elementwise() -> Iterator[Case]:
    for dtype in (BF16, FP16, FP32):
        for hidden in HIDDEN:
            yield Case(f"norm {hidden} {_name(dtype)}", partial(_norm, hidden, dtype), dtype == BF16)
        for kind in KINDS:
            yield Case(f"activation {kind} {_name(dtype)}", partial(_activation, kind, dtype), dtype == BF16)


def _norm(hidden: int, dtype: torch.dtype, backend: Backend) -> None:
    weight = _meta(hidden, dtype=dtype)
    for tokens in (1, 7, 32, 2048):
        x = _meta(tokens, hidden, dtype=dtype)
        for residual in (None, x):
            backend.add_rms_norm(x, residual, weight, 1e-6)
            backend.add_layer_norm(x, residual, weight, weight, 1e-6)


def _activation(kind: ActivationKind, dtype: torch.dtype, backend: Backend) -> None:
    for tokens in (1, 7, 32, 2048):
        backend.activation(_meta(tokens, 14_336, dtype=dtype), kind)
        backend.gated_activation(_meta(tokens, 2 * 14_336, dtype=dtype), kind)


def _matmul() -> Iterator[Case]:
    for dtype in (BF16, FP16, FP32):
        served = dtype == BF16
        for bits, group_size, offsets in FORMS:
            form = f"W{bits} group {group_size}{' offsets' if offsets else ''}"
            run = partial(_quantized, bits, group_size, offsets, dtype)
            yield Case(f"linear {form} {_name(dtype)}", run, served)
            yield Case(f"linear {form} {_name(dtype)} invariant", run, False, batch_invariant=True)
            if served and not offsets:
                for name, projecting in PROJECTINGS.items():
                    yield Case(f"linear {form} {_name(dtype)} {name}", run, projecting=projecting)
        for height, width in FP8_BLOCKS:
            run = partial(_fp8, height, width, dtype)
            form = f"W8 e4m3 {height or 'all'}x{width or 'all'}"
            yield Case(f"linear {form} {_name(dtype)}", run, served)
            yield Case(f"linear {form} {_name(dtype)} invariant", run, False, batch_invariant=True)
            yield Case(f"linear {form} {_name(dtype)} folded", run, False, projecting=PROJECTINGS["folded"])
        dense = partial(_dense, dtype)
        yield Case(f"linear {_name(dtype)}", dense, served)
        yield Case(f"linear {_name(dtype)} invariant", dense, served, batch_invariant=True)
        if served:
            name = f"linear {_name(dtype)} invariant, wide"
            yield Case(name, dense, batch_invariant=True, projecting=WIDE)
            yield Case(f"linear {_name(dtype)} by rows", dense, projecting=Projecting(rows=RowTiling()))


def _quantized(bits: Literal[4, 8], group_size: int, offsets: bool, dtype: torch.dtype, backend: Backend) -> None:
    for out, width in ((6144, 4096), (4096, 14_336)):
        scales = _meta(out, width // group_size, dtype=FP16)
        shifts = _meta(out, width // group_size, dtype=FP32) if offsets else None
        codes = _meta(out, width * bits // 8, dtype=torch.uint8)
        zero = 0 if offsets else 1 << (bits - 1)
        weight = QuantizedWeight(codes, scales, shifts, zero, bits, group_size)
        _project(weight, width, dtype, backend)


def _fp8(height: int | None, width: int | None, dtype: torch.dtype, backend: Backend) -> None:
    for out, inputs in ((6144, 4096), (4096, 14_336)):
        block = height or out, width or inputs
        scales = _meta(-(-out // block[0]), -(-inputs // block[1]), dtype=FP32)
        _project(Fp8Weight(_meta(out, inputs, dtype=FP8), scales, *block), inputs, dtype, backend)


def _dense(dtype: torch.dtype, backend: Backend) -> None:
    for out, width in ((6144, 4096), (4096, 14_336)):
        _project(_meta(out, width, dtype=dtype), width, dtype, backend)


def _project(weight: Tensor | QuantizedWeight | Fp8Weight, width: int, dtype: torch.dtype, backend: Backend) -> None:
    for bias in (None, _meta(weight.shape[0], dtype=dtype)):
        packed = backend.pack(weight, bias)
        for tokens in (1, 16, 32, 64, 2048):
            backend.linear(_meta(tokens, width, dtype=dtype), packed)


def _sample(backend: Backend) -> None:
    for rows in (1, 7, 32, 128):
        for vocab in (32_000, 49_152, 128_256, 262_144):
            floats, integers = _meta(rows, dtype=FP32), _meta(rows, dtype=torch.int64)
            batch = SamplingBatch(
                temperature=floats, top_k=integers, top_p=floats, min_p=floats, seed=integers, counter=integers
            )
            backend.sample(_meta(rows, vocab, dtype=FP32), batch)


def _edit(backend: Backend) -> None:
    integers, floats = _meta(32, dtype=torch.int64), _meta(32, dtype=FP32)
    table = _meta(128, 8192, dtype=torch.int32)
    counts = TokenCounts(tokens=table, times=table, lengths=_meta(128, dtype=torch.int32))
    backend.count_tokens(counts, integers, integers)
    for vocab in (50_257, 128_256):
        logits = _meta(32, vocab, dtype=FP32)
        penalties = Penalties(rows=integers, requests=integers, repetition=floats, presence=floats, frequency=floats)
        backend.penalise(logits, counts, penalties)
        backend.restrict(logits, integers, _meta(32, -(-vocab // 32) * 4, dtype=torch.uint8))


def _step(backend: Backend) -> None:
    """Every kernel of a generated token's way through a layer, once."""
    model, x, weight = Model(128, 32, 8), _meta(1, 4096, dtype=BF16), _meta(4096, dtype=BF16)
    backend.add_rms_norm(x, x, weight, 1e-6)
    four_bits = QuantizedWeight(_meta(6144, 2048, dtype=torch.uint8), _meta(6144, 32, dtype=FP16), None, 8, 4, 128)
    eight_bits = Fp8Weight(_meta(6144, 4096, dtype=FP8), _meta(48, 32, dtype=FP32), 128, 128)
    for projection in (four_bits, eight_bits):
        backend.linear(x, backend.pack(projection, None))
    _rotate(model, backend, rope_dim=model.dim)
    _attend(model, backend, batches=BATCHES[1:2])
    backend.gated_activation(_meta(1, 2 * 14_336, dtype=BF16), "silu")


def _cache(model: Model) -> LayerCache:
    layers = 32
    token = 2 * layers * model.kv_heads * model.dim * model.cache_dtype.itemsize
    return KVCache(
        layers=layers,
        blocks=CACHE_BYTES // (token * model.block_size),
        block_size=model.block_size,
        kv_heads=model.kv_heads,
        head_dim=model.dim,
        dtype=model.cache_dtype,
        device=torch.device("meta"),
    ).layers[1]


def _layout(batch: Sequences, block_size: int) -> BatchLayout:
    sequences = batch.singles + (batch.prompt > 0)
    tokens = batch.singles + batch.prompt
    return BatchLayout(
        query_starts=_meta(sequences + 1, dtype=torch.int32),
        context_lens=_meta(sequences, dtype=torch.int32),
        block_table=_meta(sequences, -(-batch.context // block_size), dtype=torch.int32),
        slots=_meta(tokens, dtype=torch.int64),
        positions=_meta(tokens, dtype=torch.int64),
        singles=batch.singles,
        max_query=max(batch.prompt, 1),
        max_context=batch.context,
    )


def _meta(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def _name(dtype: torch.dtype) -> str:
    return {BF16: "bf16", FP16: "fp16", FP32: "fp32", FP8: "fp8"}[dtype]
