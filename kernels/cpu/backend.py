"""`kernels.backend.Backend` for CPUs: operations compiled for this machine's CPU, run by a pool of threads.

Activations are float32. Operations find a step's tokens, positions and cache blocks through one array of words,
`_step`, so that a recorded program serves batches of any shape.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache, partial
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.backend import (
    ActivationKind,
    AttentionOptions,
    BatchLayout,
    Fp8Weight,
    HeadNorms,
    LayerCache,
    LayerQueries,
    Linear,
    QuantizedWeight,
    Rotation,
    SamplingBatch,
    Weighed,
)
from kernels.cpu.activations import TOKENS, Rounding, parts, serves
from kernels.cpu.arena import LARGE, Arena
from kernels.cpu.attention_memory import scratch_bytes, scratch_bytes_of_weights
from kernels.cpu.cache_forms import STORED
from kernels.cpu.operation import SCRATCH_BYTES, Operation
from kernels.cpu.operations import (
    WEIGHED_FIGURES,
    activation_operation,
    angles_operation,
    attend_operation,
    embed_operation,
    gated_operation,
    keep_operation,
    logprobs_operation,
    multiply_operation,
    norm_operation,
    rotate_operation,
    round_operation,
    sample_operation,
    weigh_operation,
    weights_operation,
)
from kernels.cpu.pages import Pages
from kernels.cpu.panels import Panels, pack_dense, pack_quantized
from kernels.cpu.program import Program, Workers
from kernels.cpu.target import path_name

STEP_WORDS = 16
ROWS, SEQUENCES, QUERY_STARTS, CONTEXT_LENS, BLOCK_TABLE, TABLE_WIDTH, SLOTS, POSITIONS, TOKEN_IDS = range(9)
KEPT, PLACES = 9, 10
"""Indices of the words of a step, which are counts and addresses."""

Step = tuple[Operation, Sequence[int]]
"""One operation of a program, and its arguments."""


class Maker(NamedTuple):
    """An operation that can round the activations that it makes; arguments for the rounding follow its own."""

    operation: Callable[[Rounding | None], Operation]
    arguments: Sequence[int]
    out: int
    """Address of the activations."""


class CpuBackend:
    """`kernels.backend.Backend` in machine code compiled by Numba."""

    keeps_quantized = True
    keeps_fp8 = False
    embeds_packed = True
    cache_dtype: torch.dtype | None = torch.bfloat16
    block_size = 16
    capturable = False

    def __init__(self, threads: int) -> None:
        self.name = f"cpu ({path_name()})"
        self._workers = Workers(threads)
        self._step = np.zeros(STEP_WORDS, np.int64)
        self._rows = self._step.ctypes.data
        self._recording: list[Step] | None = None
        self._maker: Maker | None = None
        self._arena = Arena()
        self._pages = Pages()

    def pack(self, weight: Tensor | QuantizedWeight | Fp8Weight, bias: Tensor | None) -> Linear:
        assert not isinstance(weight, Fp8Weight), "weights of 8-bit floats are dequantised before"
        packed = pack_quantized(weight) if isinstance(weight, QuantizedWeight) else pack_dense(weight)
        packed = replace(packed, data=self._pages.keep(packed.data))
        return Linear(packed, None if bias is None else bias.float().contiguous())

    def embed(
        self, tokens: Tensor, positions: Tensor, table: Tensor | Linear, scale: float, learned: Tensor | None
    ) -> Tensor:
        panels = _panels(table)
        out = self._empty(len(tokens), panels.columns)
        self._set(tokens, {TOKEN_IDS: tokens, POSITIONS: positions})
        arguments = (
            *(self._rows, panels.data.data_ptr(), panels.data.shape[1], _bits(scale)),
            *(_address(learned), out.data_ptr(), panels.columns),
        )
        self._run(embed_operation(panels.form), arguments)
        return out

    def linear(self, x: Tensor, weight: Linear) -> Tensor:
        panels = _panels(weight)
        form, groups = panels.form, panels.data.shape[1]
        rounding = Rounding(form, serves(form, groups))
        rows = len(x)
        if rounding.unit and self._recording is None and rows > TOKENS:
            # Tokens that fill no register need registers of another shape, and changing it takes longer than padding.
            x = F.pad(x, (0, 0, 0, -rows % TOKENS))
        out = self._empty(len(x), panels.rows)
        x = x.contiguous()
        rounded, sums = x, x
        if rounding.needed:
            rounded = self._empty(len(x) + TOKENS, parts(form) * groups * form.group, dtype=torch.int16)
            sums = self._empty(len(x) + TOKENS, groups, 2)
            self._round(x, rounding, (panels.columns, rounded.data_ptr(), sums.data_ptr()))
        self._set(x)
        arguments = (
            *(self._rows, x.data_ptr(), rounded.data_ptr(), sums.data_ptr(), panels.data.data_ptr()),
            *(_address(weight.bias), out.data_ptr(), groups, panels.rows),
        )
        self._run(multiply_operation(rounding), arguments)
        return out[:rows]

    def _round(self, x: Tensor, rounding: Rounding, arguments: Sequence[int]) -> None:
        """Round x, within the operation that makes it if that has just been recorded."""
        maker = self._maker
        if self._recording and maker is not None and maker.out == x.data_ptr():
            self._recording[-1] = maker.operation(rounding), (*maker.arguments, *arguments[1:])
            return
        self._set(x)
        self._run(round_operation(rounding), (self._rows, x.data_ptr(), *arguments))

    def add_rms_norm(self, x: Tensor, residual: Tensor | None, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        return self._norm(x, residual, weight, None, eps)

    def add_layer_norm(
        self, x: Tensor, residual: Tensor | None, weight: Tensor, bias: Tensor, eps: float
    ) -> tuple[Tensor, Tensor]:
        return self._norm(x, residual, weight, bias, eps)

    def _norm(
        self, x: Tensor, residual: Tensor | None, weight: Tensor, bias: Tensor | None, eps: float
    ) -> tuple[Tensor, Tensor]:
        rows, size = x.shape
        normed = self._empty(rows, size)
        stream = x if residual is None else self._empty(rows, size)
        self._set(x)
        arguments = (
            *(self._rows, x.data_ptr(), _address(residual), weight.data_ptr(), _address(bias), _bits(eps)),
            *(normed.data_ptr(), stream.data_ptr(), size),
        )
        self._make(Maker(partial(norm_operation, bias is not None), arguments, normed.data_ptr()))
        return normed, stream

    def rotation(self, frequencies: Tensor, magnitude: float, positions: Tensor) -> Rotation:
        half = len(frequencies)
        cos, sin = self._empty(len(positions), half), self._empty(len(positions), half)
        self._set(positions, {POSITIONS: positions})
        arguments = (self._rows, frequencies.data_ptr(), _bits(magnitude), cos.data_ptr(), sin.data_ptr(), half)
        self._run(angles_operation(), arguments)
        return Rotation(cos, sin)

    def rotate_and_store(
        self,
        qkv: Tensor,
        heads: int,
        norms: HeadNorms | None,
        rotation: Rotation | None,
        cache: LayerCache,
        slots: Tensor,
    ) -> Tensor:
        kv_heads, dim = cache.keys.shape[2:]
        queries = self._empty(len(qkv), heads, dim)
        self._set(qkv, {SLOTS: slots})
        arguments = (
            *(self._rows, qkv.data_ptr(), heads, kv_heads, dim),
            *((0, 0, 0) if norms is None else (norms.query.data_ptr(), norms.key.data_ptr(), _bits(norms.eps))),
            *((0, 0, 0) if rotation is None else (rotation.cos.data_ptr(), rotation.sin.data_ptr())),
            *(() if rotation is None else (rotation.cos.shape[1],)),
            *(queries.data_ptr(), cache.keys.data_ptr(), cache.values.data_ptr()),
            *(kv_heads * dim * cache.keys.itemsize, _address(cache.key_scales), _address(cache.value_scales)),
        )
        self._run(rotate_operation(STORED[cache.keys.dtype]), arguments)
        return queries

    def attend(self, q: Tensor, cache: LayerCache, layout: BatchLayout, options: AttentionOptions) -> Tensor:
        _, block, kv_heads, dim = cache.keys.shape
        if scratch_bytes(dim, q.shape[1] // kv_heads) > SCRATCH_BYTES:
            raise ValueError(f"{q.shape[1]} heads of {dim} with {kv_heads} KV heads are too large for the cpu backend")
        out = self._empty(*q.shape)
        self._set(q, _words(layout))
        plain = options.softcap is None and options.alibi_slopes is None
        arguments = (
            *(self._rows, q.data_ptr(), q.shape[1], kv_heads, cache.keys.data_ptr(), cache.values.data_ptr()),
            *(_address(cache.key_scales), _address(cache.value_scales), _bits(options.scale), options.window or 0),
            *(_bits(options.softcap or 0.0), _address(options.alibi_slopes), _address(options.sinks), out.data_ptr()),
            self._workers.count,
        )
        kind = STORED[cache.keys.dtype], dim, block, plain
        if self._recording is not None:
            # Compiled now, so that nobody waits for it when somebody first looks at the weights.
            weights_operation(*kind)
        self._run(attend_operation(*kind), arguments)
        return out

    def attention_weights(self, layers: Sequence[LayerQueries], positions: Tensor, blocks: Tensor) -> Tensor:
        places, table = positions.to(torch.int64).contiguous(), blocks.to(torch.int32).contiguous()
        # Alive until the program has run.
        queries = [layer.q.contiguous() for layer in layers]
        chosen = torch.tensor([head for layer in layers for head in layer.heads], dtype=torch.int32)
        out = self._empty(len(chosen), len(places), len(table) * layers[0].cache.keys.shape[1])
        steps, heads, weights = [], chosen.data_ptr(), out.data_ptr()
        head_bytes = out.stride(0) * out.itemsize
        for q, layer in zip(queries, layers, strict=True):
            steps.append(_weights_step(self._rows, q, layer, heads, weights, out.shape[2]))
            heads += chosen.itemsize * len(layer.heads)
            weights += head_bytes * len(layer.heads)
        self._set(places, {POSITIONS: places, BLOCK_TABLE: table, TABLE_WIDTH: len(table)})
        self._run_all(steps)
        return out

    def activation(self, x: Tensor, kind: ActivationKind) -> Tensor:
        rows = x.reshape(-1, x.shape[-1]).contiguous()
        out = self._empty(*rows.shape)
        self._set(rows)
        self._run(activation_operation(kind), (self._rows, rows.data_ptr(), out.data_ptr(), rows.shape[1]))
        return out.view(x.shape)

    def gated_activation(self, gate_up: Tensor, kind: ActivationKind) -> Tensor:
        rows, size = gate_up.shape[0], gate_up.shape[1] // 2
        out = self._empty(rows, size)
        self._set(gate_up)
        arguments = (self._rows, gate_up.data_ptr(), out.data_ptr(), size)
        self._make(Maker(partial(gated_operation, kind), arguments, out.data_ptr()))
        return out

    def sample(self, logits: Tensor, batch: SamplingBatch) -> Tensor:
        tokens = torch.empty(len(logits), dtype=torch.int64)
        self._set(logits)
        columns = (batch.temperature, batch.top_k, batch.top_p, batch.min_p, batch.seed, batch.counter, tokens)
        arguments = (self._rows, logits.data_ptr(), logits.shape[1], *(column.data_ptr() for column in columns))
        self._run(sample_operation(), arguments)
        return tokens

    def weigh(self, logits: Tensor, batch: SamplingBatch, before: Weighed | None) -> Weighed:
        logits = logits.contiguous()
        rows, vocab = logits.shape
        found = Weighed(torch.empty(rows, vocab), torch.empty(rows, WEIGHED_FIGURES, dtype=torch.float64))
        self._set(logits)
        columns = (logits, vocab, batch.temperature, batch.top_k, batch.top_p, batch.min_p, *found, *(before or (0, 0)))
        addresses = [part if isinstance(part, int) else part.data_ptr() for part in columns]
        self._run(weigh_operation(), (self._rows, *addresses))
        return found

    def log_probabilities(self, logits: Tensor, tokens: Tensor, most: int) -> Tensor:
        out = torch.empty(len(logits), 2 + 2 * most, dtype=torch.float64)
        logits, tokens = logits.contiguous(), tokens.contiguous()
        self._set(logits)
        arguments = (logits.data_ptr(), logits.shape[1], tokens.data_ptr(), most, out.data_ptr())
        self._run(logprobs_operation(), (self._rows, *arguments))
        return out

    def record(self, function: Callable[[], Tensor]) -> tuple[Program, Tensor]:
        # Compiled now, so that nobody waits for it when somebody first asks for log-probabilities or distributions.
        logprobs_operation()
        weigh_operation()
        self._recording = []
        try:
            out = function()
            return Program(self._recording), out
        finally:
            self._recording = None

    def keep(self, x: Tensor, rows: int) -> Tensor:
        assert self._recording is not None, "rows are kept by recordings alone"
        out = self._empty(rows, *x.shape[1:])
        self._run(keep_operation(), (self._rows, x.data_ptr(), out.data_ptr(), math.prod(x.shape[1:])))
        return out

    def replay(self, program: Program, tokens: Tensor, layout: BatchLayout, places: Tensor | None = None) -> None:
        words = {TOKEN_IDS: tokens, **_words(layout), KEPT: 0}
        if places is not None:
            words |= {KEPT: len(places), PLACES: places}
        self._workers.run(program, lambda: self._write(tokens, words))

    def _empty(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        # The system maps new memory for every large tensor, page by page, which takes longer than filling it.
        if self._recording is None and math.prod(shape) * dtype.itemsize <= LARGE:
            return torch.empty(shape, dtype=dtype)
        return self._arena.empty(shape, dtype)

    def _set(self, rows: Tensor, words: dict[int, Tensor | int] | None = None) -> None:
        """Set the batch of the next operation: a row for each of its tokens, and words of the step.

        During a recording nothing is set, since `replay` sets the batch of the whole program.
        """
        if self._recording is None:
            self._pending = (rows, words or {})

    def _make(self, maker: "Maker") -> None:
        """Run an operation that can round what it makes, should that be asked for next."""
        self._run(maker.operation(None), maker.arguments)
        self._maker = maker

    def _run(self, operation: Operation, arguments: Sequence[int]) -> None:
        self._run_all([(operation, arguments)])

    def _run_all(self, steps: Sequence[Step]) -> None:
        self._maker = None
        if self._recording is not None:
            self._recording += steps
            return
        rows, words = self._pending
        self._workers.run(Program(steps), lambda: self._write(rows, words))

    def _write(self, rows: Tensor, words: dict[int, Tensor | int]) -> None:
        self._step[ROWS] = len(rows)
        for index, value in words.items():
            self._step[index] = value if isinstance(value, int) else value.data_ptr()


def _weights_step(rows: int, q: Tensor, layer: LayerQueries, chosen: int, out: int, keys: int) -> Step:
    """The operation that writes the attention weights [heads, rows, keys] float32 of a layer's wanted heads to `out`.

    `rows` is the address of the step, and `chosen` that of the heads, int32; q are the layer's queries, contiguous.
    """
    _, cache, heads, options = layer
    _, block, kv_heads, dim = cache.keys.shape
    if scratch_bytes_of_weights(dim) > SCRATCH_BYTES:
        raise ValueError(f"heads of {dim} are too large for the cpu backend")
    stored, plain = cache.keys.data_ptr(), options.softcap is None and options.alibi_slopes is None
    arguments = (
        # Values play no part here.
        *(rows, q.data_ptr(), q.shape[1], kv_heads, stored, stored),
        *(_address(cache.key_scales), 0, _bits(options.scale), options.window or 0),
        *(_bits(options.softcap or 0.0), _address(options.alibi_slopes), _address(options.sinks), out),
        *(chosen, len(heads), keys),
    )
    return weights_operation(STORED[cache.keys.dtype], dim, block, plain), arguments


def _words(layout: BatchLayout) -> dict[int, Tensor | int]:
    return {
        SEQUENCES: len(layout.context_lens),
        QUERY_STARTS: layout.query_starts,
        CONTEXT_LENS: layout.context_lens,
        BLOCK_TABLE: layout.block_table,
        TABLE_WIDTH: layout.block_table.shape[1],
        SLOTS: layout.slots,
        POSITIONS: layout.positions,
    }


def _panels(weight: Tensor | Linear) -> Panels:
    packed = weight.weight if isinstance(weight, Linear) else weight
    assert isinstance(packed, Panels), "the cpu backend reads what it packed"
    return packed


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


@cache
def _bits(number: float) -> int:
    return int(np.float32(number).view(np.int32))
