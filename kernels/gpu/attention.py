"""Causal attention over the paged cache: splits a batch between the decode kernel and the prefill kernel.

Decoding sequences come first in a batch and go to the decode kernel; prompts go to the prefill kernel. Tile sizes
depend on the model and the chip alone, so no bit of a sequence's result depends on the rest of the batch.
"""

from dataclasses import dataclass
from typing import Any

import torch
import triton.language as tl
from torch import Tensor

from kernels.backend import AttentionOptions, BatchLayout, LayerCache
from kernels.gpu.arrival import arrivals
from kernels.gpu.decode import (
    DECODING,
    Decoding,
    combine_kernel,
    decode_kernel,
    decode_tiles,
    splits_together,
)
from kernels.gpu.fp8 import converts_e4m3
from kernels.gpu.launch import Launcher
from kernels.gpu.prefill import PrefillTiles, PrefillWarps, prefill_kernel, prefill_tiles
from kernels.gpu.tiles import HEAD_PARTS, LOG2_E

OPERANDS = {torch.bfloat16: tl.bfloat16, torch.float16: tl.float16, torch.float32: tl.float32}


def attend(
    launch: Launcher,
    q: Tensor,
    cache: LayerCache,
    layout: BatchLayout,
    options: AttentionOptions,
    decoding: Decoding = DECODING,
    prefill: PrefillTiles | PrefillWarps | None = None,
) -> Tensor:
    """See `Backend.attend`. Without `prefill`, prompts get the tiles of `prefill_tiles`.

    With PrefillWarps they go to Hopper's own kernel where it fits.

    Raises ValueError for a head dimension that is not in HEAD_PARTS.
    """
    check_head_dimension(q.shape[2])
    call = _Call.of(launch, q, cache, layout, options)
    if layout.singles:
        _decode(launch, call, decoding)
    if layout.singles < layout.context_lens.shape[0]:
        _prefill(launch, call, prefill)
    return call.out


def check_head_dimension(dim: int) -> None:
    """Raise ValueError for a head dimension that is not in HEAD_PARTS."""
    if dim not in HEAD_PARTS:
        raise ValueError(f"no attention kernel for heads of {dim} dimensions: there are {list(HEAD_PARTS)}")


def operand_dtype(q: Tensor, stored: Tensor) -> torch.dtype:
    """The dtype of the operands of dots of queries and `stored` keys or values.

    An FP8 cache is converted to float16, which represents every e4m3 number and is faster to convert to than bfloat16.
    """
    if stored.dtype != torch.float8_e4m3fn:
        return q.dtype
    return torch.float32 if q.dtype == torch.float32 else torch.float16


def key_constants(launch: Launcher, q: Tensor, keys: Tensor) -> tuple[Tensor, dict[str, Any]]:
    """Cached keys as a kernel reads them, and the constexpr arguments with which it does."""
    head, tail = HEAD_PARTS[q.shape[2]]
    constants = {
        "GROUP": q.shape[1] // keys.shape[2],
        "HEAD": head,
        "TAIL": tail,
        "Q_TOKEN_STRIDE": q.stride(0),
        "Q_HEAD_STRIDE": q.stride(1),
        "PAGE": keys.shape[1],
        "PAGE_STRIDE": keys.stride(0),
        "TOKEN_STRIDE": keys.stride(1),
        "HEAD_STRIDE": keys.stride(2),
        "OPERAND": OPERANDS[operand_dtype(q, keys)],
        "NATIVE_FP8": converts_e4m3(launch.target),
    }
    return _codes(keys), constants


def scores_in_base_2(options: AttentionOptions) -> tuple[float, float | None]:
    """The factor on products of queries and keys, and the cap, for logits in base 2.

    They are in base 2 since exp2 is the hardware's own exponential. With a softcap both are prepared for the tanh in
    `tiles._bend`, which uses exp2 as well.
    """
    scale = options.scale * LOG2_E.value
    if options.softcap is None:
        return scale, None
    return 2 * scale / options.softcap, options.softcap * LOG2_E.value


def _codes(stored: Tensor) -> Tensor:
    """Cached keys or values; FP8 as its codes."""
    return stored.view(torch.uint8) if stored.dtype == torch.float8_e4m3fn else stored


@dataclass(frozen=True, slots=True)
class _Call:
    """The arguments of one call of `attend`, converted to kernel arguments."""

    q: Tensor
    cache: LayerCache
    layout: BatchLayout
    options: AttentionOptions
    operand: torch.dtype
    """The dtype of the operands of dots."""
    arguments: tuple[object, ...]
    """The run-time arguments that both kernels share, from `q` on."""
    constants: dict[str, Any]
    """The constexpr arguments that both kernels share."""
    out: Tensor
    """[tokens, heads, head_dim]."""

    @classmethod
    def of(
        cls, launch: Launcher, q: Tensor, cache: LayerCache, layout: BatchLayout, options: AttentionOptions
    ) -> "_Call":
        keys, constants = key_constants(launch, q, cache.keys)
        scale, cap = scores_in_base_2(options)
        table = layout.block_table
        arguments = (
            *(q, keys, _codes(cache.values), cache.key_scales, cache.value_scales, options.sinks, options.alibi_slopes),
            *(layout.context_lens, table, table.stride(0), scale, cap, options.window),
        )
        constants = {"KV_HEADS": keys.shape[2], **constants}
        operand = operand_dtype(q, cache.keys)
        return cls(q, cache, layout, options, operand, arguments, constants, torch.empty_like(q))

    def prompt_tiles(self, rows: int) -> int:
        """An upper bound on the number of tiles of `rows` rows that the prompts have.

        The lengths of the prompts are known only on the device, so each prompt is given one tile more than its share of
        the rows, for a last tile that is partly empty.
        """
        group: int = self.constants["GROUP"]
        prompts = self.layout.context_lens.shape[0] - self.layout.singles
        return (self.q.shape[0] - self.layout.singles) * group // rows + prompts


def _prefill(launch: Launcher, call: _Call, chosen: PrefillTiles | PrefillWarps | None) -> None:
    if isinstance(chosen, PrefillWarps):
        # Not imported before it is needed: it is written in Gluon, which is experimental.
        from kernels.gpu import hopper_prefill as hopper

        if launch.compiles_gluon and hopper.fits(launch.target, call.q, call.cache, call.options):
            scale, _ = scores_in_base_2(call.options)
            tiles = call.prompt_tiles(hopper.ROWS)
            hopper.attend_prompts(launch, call.out, call.q, call.cache, call.layout, scale, tiles, chosen)
            return
        chosen = None
    layout, sizes = call.layout, chosen or prefill_tiles(call.q.shape[2], call.operand, launch.target)
    launch(
        prefill_kernel,
        (call.constants["KV_HEADS"], call.prompt_tiles(sizes.block_m)),
        call.out,
        *call.arguments,
        layout.query_starts,
        layout.singles,
        layout.context_lens.shape[0],
        **call.constants,
        BLOCK_M=sizes.block_m,
        BLOCK_N=sizes.block_n,
        num_warps=sizes.num_warps,
        num_stages=sizes.num_stages,
    )


def _decode(launch: Launcher, call: _Call, chosen: Decoding) -> None:
    layout, options, target, splitting = call.layout, call.options, launch.target, chosen.splitting
    tiles = chosen.tiles or decode_tiles(call.q.shape[2], call.operand, target)
    sequences, (_, heads, width) = layout.singles, call.q.shape
    splits = splitting.most(layout.max_context, options.window)
    kv_heads, group, tail = (call.constants[name] for name in ("KV_HEADS", "GROUP", "TAIL"))
    sizes = {"SPLIT_BITS": splitting.smallest_bits, "GROWTHS": splitting.growths, "PARTS": splitting.parts}
    together = _decoded_together(sequences)
    folded = chosen.folded and splits > 1
    sums = totals = counters = call.out  # Placeholders: with one split, the kernel does not write to them.
    if splits > 1:
        sums = torch.empty(sequences, splits, heads, width, dtype=torch.float32, device=call.q.device)
        totals = torch.empty(sequences, splits, heads, 2, dtype=torch.float32, device=call.q.device)
    if folded:
        counters = arrivals(together * kv_heads, call.q.device)
    launch(
        decode_kernel,
        (min(sequences * splits * kv_heads, target.multiprocessors * tiles.programs),),
        *(call.out, sums, totals, counters),
        *call.arguments,
        sequences,
        splits,
        **call.constants,
        **sizes,
        PAIRED=chosen.paired and call.cache.keys.dtype == torch.float8_e4m3fn and tail == 0,
        ROWS=max(16, _power_of_two(group)),
        SEQUENCES=together,
        BLOCK_N=tiles.block_n,
        FOLDED=folded,
        GROUP_ROWS=_power_of_two(group),
        TOGETHER=splits_together(_power_of_two(group), width),
        ARRIVING=tiles.num_warps * target.warp_size,
        HIP=target.backend == "hip",
        DEPENDENT=launch.dependent,
        num_warps=tiles.num_warps,
        num_stages=tiles.num_stages,
    )
    if splits > 1 and not folded:
        launch(
            combine_kernel,
            (sequences, heads),
            *(call.out, sums, totals, call.cache.value_scales, options.sinks, layout.context_lens, options.window),
            splits,
            group,
            HEAD=call.constants["HEAD"],
            TAIL=tail,
            **sizes,
            TOGETHER=splits_together(1, width),
            DEPENDENT=launch.dependent,
            num_warps=4,
            num_stages=1,
        )


def _decoded_together(sequences: int) -> int:
    """The SEQUENCES constant for a batch of `sequences`. It has few values, since each is compiled separately."""
    return 32 if sequences <= 32 else max(256, _power_of_two(sequences))


def _power_of_two(least: int) -> int:
    """The smallest power of two that is at least `least`."""
    return 1 << (least - 1).bit_length()
