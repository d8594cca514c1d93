"""Causal attention over the paged cache: which kernel takes which sequences, and with what.

The sequences that decode stand first in a batch. They go to one kernel, prompts to another, with tiles that depend on
the model and the chip alone: what a sequence's attention comes to does not depend, in any bit, on the batch.
"""

from dataclasses import dataclass
from typing import Any

import torch
import triton.language as tl
from torch import Tensor

from kernels.backend import AttentionOptions, BatchLayout, LayerCache
from kernels.gpu.decode import SPLIT, combine_kernel, decode_kernel, decode_tiles
from kernels.gpu.fp8 import converts_e4m3
from kernels.gpu.launch import Launcher
from kernels.gpu.prefill import prefill_kernel, prefill_tiles
from kernels.gpu.tiles import HEAD_PARTS, LOG2_E

OPERANDS = {torch.bfloat16: tl.bfloat16, torch.float16: tl.float16, torch.float32: tl.float32}


def attend(launch: Launcher, q: Tensor, cache: LayerCache, layout: BatchLayout, options: AttentionOptions) -> Tensor:
    """See `Backend.attend`. Raises ValueError for a head dimension that no kernel is made for."""
    if q.shape[2] not in HEAD_PARTS:
        raise ValueError(f"no attention kernel for heads of {q.shape[2]} dimensions: there are {list(HEAD_PARTS)}")
    call = _Call.of(launch, q, cache, layout, options)
    if layout.singles:
        _decode(launch, call)
    if layout.singles < layout.context_lens.shape[0]:
        _prefill(launch, call)
    return call.out


@dataclass(frozen=True, slots=True)
class _Call:
    """One call of `attend`, in the kernels' terms."""

    q: Tensor
    cache: LayerCache
    layout: BatchLayout
    options: AttentionOptions
    operand: torch.dtype
    """What dots are taken of. FP8 becomes float16, which holds every e4m3 number, and is converted to faster."""
    arguments: tuple[object, ...]
    """From `q` on, those that the kernels have in common."""
    constants: dict[str, Any]
    out: Tensor

    @classmethod
    def of(
        cls, launch: Launcher, q: Tensor, cache: LayerCache, layout: BatchLayout, options: AttentionOptions
    ) -> "_Call":
        head, tail = HEAD_PARTS[q.shape[2]]
        keys, values, operand = cache.keys, cache.values, q.dtype
        if keys.dtype == torch.float8_e4m3fn:
            keys, values = keys.view(torch.uint8), values.view(torch.uint8)
            operand = torch.float32 if q.dtype == torch.float32 else torch.float16
        # exp2 is the hardware's own exponential; what `tiles` asks of a softcap's scale and cap is its tanh by exp2.
        scale, cap = options.scale * LOG2_E.value, None
        if options.softcap is not None:
            scale, cap = 2 * scale / options.softcap, options.softcap * LOG2_E.value
        table = layout.block_table
        arguments = (
            *(q, keys, values, cache.key_scales, cache.value_scales, options.sinks, options.alibi_slopes),
            *(layout.context_lens, table, table.stride(0), scale, cap, options.window),
        )
        constants = {
            "KV_HEADS": keys.shape[2],
            "GROUP": q.shape[1] // keys.shape[2],
            "HEAD": head,
            "TAIL": tail,
            "Q_TOKEN_STRIDE": q.stride(0),
            "Q_HEAD_STRIDE": q.stride(1),
            "PAGE": keys.shape[1],
            "PAGE_STRIDE": keys.stride(0),
            "TOKEN_STRIDE": keys.stride(1),
            "HEAD_STRIDE": keys.stride(2),
            "OPERAND": OPERANDS[operand],
            "NATIVE_FP8": converts_e4m3(launch.target),
        }
        return cls(q, cache, layout, options, operand, arguments, constants, torch.empty_like(q))


def _prefill(launch: Launcher, call: _Call) -> None:
    layout, target = call.layout, launch.target
    tiles = prefill_tiles(call.q.shape[2], call.operand, target)
    first, sequences = layout.singles, layout.context_lens.shape[0]
    # Room for one tile more for each sequence than their rows would fill in a row: how they divide is not known here.
    count = (call.q.shape[0] - first) * call.constants["GROUP"] // tiles.block_m + sequences - first
    launch(
        prefill_kernel,
        (call.constants["KV_HEADS"], count),
        call.out,
        *call.arguments,
        layout.query_starts,
        first,
        sequences,
        **call.constants,
        BLOCK_M=tiles.block_m,
        BLOCK_N=tiles.block_n,
        num_warps=tiles.num_warps,
        num_stages=tiles.num_stages,
    )


def _decode(launch: Launcher, call: _Call) -> None:
    layout, options, target = call.layout, call.options, launch.target
    tiles = decode_tiles(call.q.shape[2], call.operand, target)
    sequences, (_, heads, width) = layout.singles, call.q.shape
    splits = max(1, -(-layout.max_context // SPLIT))
    sums = totals = call.out  # Not written to if there is but one split.
    if splits > 1:
        sums = torch.empty(sequences, splits, heads, width, dtype=torch.float32, device=call.q.device)
        totals = torch.empty(sequences, splits, heads, 2, dtype=torch.float32, device=call.q.device)
    kv_heads, group = call.constants["KV_HEADS"], call.constants["GROUP"]
    launch(
        decode_kernel,
        (min(sequences * splits * kv_heads, target.multiprocessors * tiles.programs),),
        *(call.out, sums, totals),
        *call.arguments,
        sequences,
        splits,
        **call.constants,
        SPLIT=SPLIT,
        ROWS=max(16, _power_of_two(group)),
        SEQUENCES=_decoded_together(sequences),
        BLOCK_N=tiles.block_n,
        num_warps=tiles.num_warps,
        num_stages=tiles.num_stages,
    )
    if splits > 1:
        launch(
            combine_kernel,
            (sequences, heads),
            *(call.out, sums, totals, call.cache.value_scales, options.sinks, layout.context_lens, options.window),
            splits,
            group,
            HEAD=call.constants["HEAD"],
            TAIL=call.constants["TAIL"],
            SPLIT=SPLIT,
            BLOCK=16,
            num_warps=4,
            num_stages=1,
        )


def _decoded_together(sequences: int) -> int:
    """The SEQUENCES of a batch: few values, since each is a kernel to be compiled."""
    return 32 if sequences <= 32 else max(256, _power_of_two(sequences))


def _power_of_two(least: int) -> int:
    """The smallest from `least` up."""
    return 1 << (least - 1).bit_length()
