"""`kernels.backend.Backend` for CPUs: operations compiled for this machine's CPU, run by a pool of threads.

Activations are float32. Operations find a step's tokens, positions and cache blocks through one array, the words of
the step, so that a recorded program serves batches of any shape.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache, partial
from typing import NamedTuple, TypeVar

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
)
from kernels.cpu.activations import DEPTH, MOST_ROWS, TOKENS, Rounding, parts, rounding_for
from kernels.cpu.arena import LARGE, Arena
from kernels.cpu.arguments import (
    ActivationArguments,
    AnglesArguments,
    AttendArguments,
    AttentionWeightsArguments,
    EmbedArguments,
    GatedArguments,
    KeepArguments,
    MultiplyArguments,
    NormArguments,
    PickArguments,
    RotateArguments,
    RoundArguments,
    SampleArguments,
    StepWords,
)
from kernels.cpu.attention_memory import BLOCK, scratch_bytes, scratch_bytes_of_weights, serves
from kernels.cpu.cache_forms import STORED
from kernels.cpu.logits import LogitOperations, Words, logit_operations
from kernels.cpu.operation import SCRATCH_BYTES, Operation
from kernels.cpu.operations import (
    activation_operation,
    angles_operation,
    attend_operation,
    embed_operation,
    gated_multiply_operation,
    gated_operation,
    keep_operation,
    multiply_operation,
    norm_operation,
    pick_operation,
    rotate_operation,
    round_operation,
    sample_operation,
    weights_operation,
)
from kernels.cpu.pages import Pages
from kernels.cpu.panels import LANES, RANKED_PANELS, Panels, pack_dense, pack_quantized
from kernels.cpu.program import Program, Workers
from kernels.cpu.recording import Call, Recorder, Recording
from kernels.cpu.target import path_name

WORD = {name: index for index, name in enumerate(StepWords._fields)}
"""The index of each word of a step."""

T = TypeVar("T")


class Product(NamedTuple):
    """The projection that has just been recorded."""

    rounding: Rounding
    arguments: MultiplyArguments
    inputs: Tensor
    """The rounded activations, whose memory is not reused as long as somebody may multiply them again."""


class Gate(NamedTuple):
    """A projection's outputs that are a gate and what it is multiplied with."""

    kind: ActivationKind
    product: Product


class Maker(NamedTuple):
    """An operation that can round the activations that it makes."""

    operation: Callable[[Rounding | None], Operation]
    arguments: NormArguments | GatedArguments
    out: int
    """Address of the activations."""
    gate: Gate | None = None
    """The gate that it multiplies, if it comes right behind its projection."""


class CpuBackend(LogitOperations):
    """`kernels.backend.Backend` in machine code compiled by Numba."""

    keeps_quantized = True
    keeps_fp8 = False
    embeds_packed = True
    cache_dtype: torch.dtype | None = torch.bfloat16
    block_size = BLOCK
    capturable = False

    def __init__(self, threads: int, *, batch_invariant: bool = False) -> None:
        """With `batch_invariant`, no bit of a row's result depends on the other rows.

        It always is so without a matrix unit (AMX). With one, steps of few tokens become slower.
        """
        self._batch_invariant = batch_invariant
        self.name = f"cpu ({path_name()})"
        self._workers = Workers(threads)
        self._words = np.zeros((2, len(WORD)), np.int64)
        """The words of the step, and those of the rows that `narrow` leaves of it."""
        self._step = self._words.ctypes.data
        """Address of the words for the next operation."""
        self._recorder: Recorder | None = None
        self._maker: Maker | None = None
        self._product: Product | None = None
        self._unwritten: set[int] = set()
        """Addresses of activations that a recording rounds at once, and does not write itself in every step."""
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
        self._set(tokens, {"token_ids": tokens, "positions": positions})
        arguments = EmbedArguments(
            step=self._step,
            panels=panels.data.data_ptr(),
            groups=panels.data.shape[1],
            scale=_bits(scale),
            learned=_address(learned),
            out=out.data_ptr(),
            size=panels.columns,
        )
        self._run(embed_operation(panels.form), arguments)
        return out

    def linear(self, x: Tensor, weight: Linear) -> Tensor:
        panels = _panels(weight)
        form, groups = panels.form, panels.data.shape[1]
        rounding = rounding_for(form, groups, batch_invariant=self._batch_invariant)
        rows = len(x)
        if rounding.unit_from and self._recorder is None and rows > TOKENS:
            # Tokens that fill no register need registers of another shape, and changing it takes longer than padding.
            x = F.pad(x, (0, 0, 0, -rows % TOKENS))
        out = self._empty(len(x), panels.rows)
        x = x.contiguous()
        rounded, sums = x, x
        before: list[Call] = []
        if rounding.needed:
            rounded = self._empty(len(x) + TOKENS, parts(form) * groups * form.group, dtype=torch.int16)
            sums = self._empty(len(x) + TOKENS, groups, 2)
            before = self._rounding_calls(x, rounding, panels.columns, rounded.data_ptr(), sums.data_ptr())
        self._set(x)
        arguments = MultiplyArguments(
            step=self._step,
            x=0 if rounding.needed else x.data_ptr(),
            rounded=rounded.data_ptr(),
            sums=sums.data_ptr(),
            panels=panels.data.data_ptr(),
            bias=_address(weight.bias),
            out=out.data_ptr(),
            groups=groups,
            outputs=panels.rows,
            exponent=panels.exponent,
            threads=self._workers.count,
        )
        self._run_all([*before, (multiply_operation(rounding), arguments)])
        if self._recorder is not None:
            self._product = Product(rounding, arguments, rounded)
        return out[:rows]

    def _rounding_calls(self, x: Tensor, rounding: Rounding, columns: int, rounded: int, sums: int) -> list[Call]:
        """The call that rounds x; none if the operation that makes x has just been recorded, which does it then."""
        maker = self._maker
        if self._recorder is not None and maker is not None and maker.out == x.data_ptr():
            calls = self._recorder.calls
            arguments = maker.arguments._replace(rounded=rounded, sums=sums)
            if isinstance(arguments, NormArguments):
                arguments = arguments._replace(normed=0)
                self._unwritten.add(maker.out)
            calls[-1] = maker.operation(rounding), arguments
            if maker.gate is not None and 0 < rounding.unit_from == maker.gate.product.rounding.unit_from:
                calls[-2:] = _by_size(maker.gate, rounding, calls[-1][1], rounded)
                self._unwritten.add(maker.out)
            return []
        return [(round_operation(rounding), RoundArguments(self._step, x.data_ptr(), columns, rounded, sums))]

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
        if residual is not None and self._adds_to(residual, x):
            x, residual = residual, None
        normed = self._empty(rows, size)
        stream = x if residual is None else self._empty(rows, size)
        self._set(x)
        arguments = NormArguments(
            step=self._step,
            x=x.data_ptr(),
            residual=_address(residual),
            weight=weight.data_ptr(),
            bias=_address(bias),
            eps=_bits(eps),
            normed=normed.data_ptr(),
            stream=stream.data_ptr(),
            size=size,
        )
        self._make(Maker(partial(norm_operation, bias is not None), arguments, normed.data_ptr()))
        return normed, stream

    def _adds_to(self, residual: Tensor, x: Tensor) -> bool:
        """Have the projection that makes x add it to the residual stream, if it has just been recorded.

        Either is then read and written once where it would be twice, and each thread has these numbers to itself.
        """
        product = self._product
        if self._recorder is None or product is None or product.arguments.out != x.data_ptr():
            return False
        stream = residual.data_ptr()
        arguments = product.arguments._replace(out=stream, residual=stream)
        self._recorder.calls[-1] = multiply_operation(product.rounding), arguments
        return True

    def rotation(self, frequencies: Tensor, magnitude: float, positions: Tensor) -> Rotation:
        half = len(frequencies)
        cos, sin = self._empty(len(positions), half), self._empty(len(positions), half)
        self._set(positions, {"positions": positions})
        arguments = AnglesArguments(
            step=self._step,
            frequencies=frequencies.data_ptr(),
            magnitude=_bits(magnitude),
            cos=cos.data_ptr(),
            sin=sin.data_ptr(),
            half=half,
        )
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
        _, block, kv_heads, dim = cache.keys.shape
        queries = self._empty(len(qkv), heads, dim)
        self._set(qkv, {"slots": slots})
        arguments = RotateArguments(
            step=self._step,
            qkv=qkv.data_ptr(),
            heads=heads,
            kv_heads=kv_heads,
            dim=dim,
            query_norm=_address(norms and norms.query),
            key_norm=_address(norms and norms.key),
            eps=_bits(norms.eps if norms else 0.0),
            cos=_address(rotation and rotation.cos),
            sin=_address(rotation and rotation.sin),
            half=rotation.cos.shape[1] if rotation else 0,
            queries=queries.data_ptr(),
            keys=cache.keys.data_ptr(),
            values=cache.values.data_ptr(),
            slot_bytes=kv_heads * dim * cache.keys.itemsize,
            key_scales=_address(cache.key_scales),
            value_scales=_address(cache.value_scales),
        )
        stored = STORED[cache.keys.dtype]
        self._run(rotate_operation(stored, serves(stored, dim, block)), arguments)
        return queries

    def attend(self, q: Tensor, cache: LayerCache, layout: BatchLayout, options: AttentionOptions) -> Tensor:
        _, block, kv_heads, dim = cache.keys.shape
        if scratch_bytes(dim, q.shape[1] // kv_heads) > SCRATCH_BYTES:
            raise ValueError(f"{q.shape[1]} heads of {dim} with {kv_heads} KV heads are too large for the cpu backend")
        out = self._empty(*q.shape)
        self._set(q, _words(layout))
        arguments = AttendArguments(
            step=self._step,
            queries=q.data_ptr(),
            heads=q.shape[1],
            kv_heads=kv_heads,
            keys=cache.keys.data_ptr(),
            values=cache.values.data_ptr(),
            key_scales=_address(cache.key_scales),
            value_scales=_address(cache.value_scales),
            scale=_bits(options.scale),
            window=options.window or 0,
            softcap=_bits(options.softcap or 0.0),
            slopes=_address(options.alibi_slopes),
            sinks=_address(options.sinks),
            out=out.data_ptr(),
            threads=self._workers.count,
        )
        kind = STORED[cache.keys.dtype], dim, block, _plain(options)
        if self._recorder is not None:
            # Somebody may look at the weights.
            self._recorder.need(weights_operation(*kind))
        self._run(attend_operation(*kind), arguments)
        return out

    def attention_weights(self, layers: Sequence[LayerQueries], positions: Tensor, blocks: Tensor) -> Tensor:
        places, table = positions.to(torch.int64).contiguous(), blocks.to(torch.int32).contiguous()
        # Alive until the program has run.
        queries = [layer.q.contiguous() for layer in layers]
        chosen = torch.tensor([head for layer in layers for head in layer.heads], dtype=torch.int32)
        out = self._empty(len(chosen), len(places), len(table) * layers[0].cache.keys.shape[1])
        calls, heads, weights = [], chosen.data_ptr(), out.data_ptr()
        head_bytes = out.stride(0) * out.itemsize
        for q, layer in zip(queries, layers, strict=True):
            calls.append(_weights_call(self._step, q, layer, heads, weights, out.shape[2]))
            heads += chosen.itemsize * len(layer.heads)
            weights += head_bytes * len(layer.heads)
        self._set(places, {"positions": places, "block_table": table, "table_width": len(table)})
        self._run_all(calls)
        return out

    def activation(self, x: Tensor, kind: ActivationKind) -> Tensor:
        rows = x.reshape(-1, x.shape[-1]).contiguous()
        out = self._empty(*rows.shape)
        self._set(rows)
        arguments = ActivationArguments(self._step, rows.data_ptr(), out.data_ptr(), rows.shape[1])
        self._run(activation_operation(kind), arguments)
        return out.view(x.shape)

    def gated_activation(self, gate_up: Tensor, kind: ActivationKind) -> Tensor:
        rows, size = gate_up.shape[0], gate_up.shape[1] // 2
        out = self._empty(rows, size)
        self._set(gate_up)
        arguments = GatedArguments(self._step, gate_up.data_ptr(), out.data_ptr(), size)
        product, gate = self._product, None
        if product is not None and product.arguments.out == gate_up.data_ptr() and size % DEPTH == 0:
            gate = Gate(kind, product)
        self._make(Maker(partial(gated_operation, kind, 0), arguments, out.data_ptr(), gate))
        return out

    def sample(self, logits: Tensor, batch: SamplingBatch) -> Tensor:
        tokens = torch.empty(logits.shape[0], dtype=torch.int64)
        self._set(logits, {**batch.tensors(), "drawn": tokens})
        if self._recorder is not None:
            self._recorder.draw(self._greedy_calls(logits))
        arguments = SampleArguments(self._step, logits.data_ptr(), logits.shape[1])
        self._run(sample_operation(), arguments)
        return tokens

    def _greedy_calls(self, logits: Tensor) -> list[Call]:
        """The calls that draw greedily and leave no logits, if their projection has just been recorded."""
        product, rows = self._product, len(logits)
        if product is None or product.arguments.out != logits.data_ptr() or rows > MOST_ROWS:
            return []
        chunks = -(-product.arguments.outputs // (RANKED_PANELS * LANES))
        ranks = self._empty(chunks, rows, dtype=torch.int64)
        return [
            (multiply_operation(product.rounding), product.arguments._replace(ranks=ranks.data_ptr())),
            (pick_operation(), PickArguments(self._step, ranks.data_ptr(), chunks)),
        ]

    def record(self, function: Callable[[], T]) -> tuple[Recording, T]:
        self._recorder = Recorder()
        for operation in logit_operations():
            self._recorder.need(operation)
        try:
            out = function()
            return self._recorder.finish(self._workers.count), out
        finally:
            self._recorder, self._step = None, self._words.ctypes.data

    def narrow(self, x: Tensor, rows: int) -> Tensor:
        assert self._recorder is not None, "rows are chosen by recordings alone"
        self._recorder.narrow()
        self._step = self._words[1].ctypes.data
        return self.keep(x, rows)

    def keep(self, x: Tensor, rows: int) -> Tensor:
        assert self._recorder is not None, "rows are kept by recordings alone"
        out = self._empty(rows, *x.shape[1:])
        self._run(keep_operation(), KeepArguments(self._step, x.data_ptr(), out.data_ptr(), math.prod(x.shape[1:])))
        return out

    def replay(
        self,
        program: Recording,
        tokens: Tensor,
        layout: BatchLayout,
        places: Tensor | None = None,
        chosen: Tensor | None = None,
        sampling: SamplingBatch | None = None,
    ) -> Tensor | None:
        step = {"token_ids": tokens, **_words(layout), **_kept(places)}
        if chosen is None:
            self._workers.run(program.program, lambda: self._write(tokens, step), program.whole)
            return None
        rows, drawn, run, end = _kept(chosen), None, program.program, program.undrawn
        if sampling is not None:
            if program.greedy is not None and not (sampling.temperature > 0).any():
                run = program.greedy
            drawn, end = torch.empty(chosen.shape[0], dtype=torch.int64), run.length
            rows = {**rows, **sampling.tensors(), "drawn": drawn}

        def prepare() -> None:
            self._write(tokens, step)
            self._write(chosen, rows, row=1)

        self._workers.run(run, prepare, end)
        return drawn

    def _empty(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        # The system maps new memory for every large tensor, page by page, which takes longer than filling it.
        if self._recorder is None and math.prod(shape) * dtype.itemsize <= LARGE:
            return torch.empty(shape, dtype=dtype)
        made = self._arena.empty(shape, dtype)
        self._unwritten.discard(made.data_ptr())
        return made

    def _set(self, rows: Tensor, words: Words | None = None) -> None:
        """Set the batch of the next operation: a row for each of its tokens, and words of the step.

        During a recording nothing is set, since `replay` sets the batch of the whole program.
        """
        if self._recorder is None:
            self._pending = (rows, words or {})

    def _make(self, maker: Maker) -> None:
        """Run an operation that can round what it makes, should that be asked for next."""
        self._run(maker.operation(None), maker.arguments)
        self._maker = maker

    def _run(self, operation: Operation, arguments: Sequence[int]) -> None:
        self._run_all([(operation, arguments)])

    def _run_all(self, calls: Sequence[Call]) -> None:
        self._maker = self._product = None
        if self._recorder is not None:
            read = {word for _, arguments in calls for word in arguments}
            assert self._unwritten.isdisjoint(read), "such activations are for one projection alone"
            self._recorder.calls += calls
            return
        rows, words = self._pending
        self._workers.run(Program(calls, self._workers.count), lambda: self._write(rows, words))

    def _write(self, rows: Tensor, words: Words, row: int = 0) -> None:
        written = self._words[row]
        written[WORD["rows"]] = rows.shape[0]
        for name, value in words.items():
            written[WORD[name]] = value if isinstance(value, int) else value.data_ptr()


def _plain(options: AttentionOptions) -> bool:
    """Whether scores are changed by neither soft cap nor ALiBi."""
    return options.softcap is None and options.alibi_slopes is None


def _by_size(gate: Gate, rounding: Rounding, gated: Sequence[int], rounded: int) -> list[Call]:
    """The calls of a projection, its gate, and the rounding of their product to `rounded`.

    In steps in which the matrix unit multiplies they are one, else they are two. `gated` are the gate's arguments.
    """
    own, arguments, _ = gate.product
    return [
        (multiply_operation(own), arguments._replace(few=1)),
        (gated_operation(gate.kind, own.unit_from, rounding), gated),
        (gated_multiply_operation(own, gate.kind, rounding), arguments._replace(out=rounded)),
    ]


def _weights_call(step: int, q: Tensor, layer: LayerQueries, chosen: int, out: int, width: int) -> Call:
    """The operation that writes the attention weights [heads, rows, width] float32 of a layer's wanted heads to `out`.

    `step`, `chosen` and `out` are addresses as in `AttentionWeightsArguments`; q are the layer's queries, contiguous.
    """
    _, cache, heads, options = layer
    _, block, kv_heads, dim = cache.keys.shape
    if scratch_bytes_of_weights(dim) > SCRATCH_BYTES:
        raise ValueError(f"heads of {dim} are too large for the cpu backend")
    arguments = AttentionWeightsArguments(
        step=step,
        queries=q.data_ptr(),
        heads=q.shape[1],
        kv_heads=kv_heads,
        keys=cache.keys.data_ptr(),
        values=cache.keys.data_ptr(),
        key_scales=_address(cache.key_scales),
        scale=_bits(options.scale),
        window=options.window or 0,
        softcap=_bits(options.softcap or 0.0),
        slopes=_address(options.alibi_slopes),
        sinks=_address(options.sinks),
        out=out,
        chosen=chosen,
        chosen_count=len(heads),
        width=width,
    )
    return weights_operation(STORED[cache.keys.dtype], dim, block, _plain(options)), arguments


def _words(layout: BatchLayout) -> Words:
    return {
        "sequences": layout.context_lens.shape[0],
        "query_starts": layout.query_starts,
        "context_lens": layout.context_lens,
        "block_table": layout.block_table,
        "table_width": layout.block_table.shape[1],
        "slots": layout.slots,
        "positions": layout.positions,
    }


def _kept(places: Tensor | None) -> Words:
    return {"kept": 0} if places is None else {"kept": places.shape[0], "places": places}


def _panels(weight: Tensor | Linear) -> Panels:
    packed = weight.weight if isinstance(weight, Linear) else weight
    assert isinstance(packed, Panels), "the cpu backend reads what it packed"
    return packed


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


@cache
def _bits(number: float) -> int:
    return int(np.float32(number).view(np.int32))
