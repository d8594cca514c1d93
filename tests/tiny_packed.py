"""Group-quantised Hugging Face folders, packed element by element as each format's definition says.

Codes, zeros and scales are drawn, not fitted. Scales have three significant bits, so that scale * zero is exact in
half precision and the dense weight is the packed one to the last bit.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

Integers = npt.NDArray[np.int64]
Packer = Callable[[Integers, Integers, Tensor, int], dict[str, Tensor]]
"""From codes [out, in], zeros and scales [out, groups] and the bits of a code to tensors by their suffixes."""


def pack_gptq(
    codes: Integers, zeros: Integers, scales: Tensor, bits: int, *, stored_less: int = 1
) -> dict[str, Tensor]:
    (out, columns), groups, per_word = codes.shape, zeros.shape[1], 32 // bits
    qweight, qzeros = words(columns // per_word, out), words(groups, -(-out // per_word))
    for o in range(out):
        for i in range(columns):
            qweight[i // per_word][o] |= int(codes[o, i]) << bits * (i % per_word)
        for group in range(groups):
            qzeros[group][o // per_word] |= int(zeros[o, group] - stored_less) << bits * (o % per_word)
    return {
        "qweight": int32(qweight),
        "qzeros": int32(qzeros),
        "scales": scales.T.half().contiguous(),
        "g_idx": torch.arange(columns, dtype=torch.int32) // (columns // groups),
    }


def pack_gptq_v2(codes: Integers, zeros: Integers, scales: Tensor, bits: int) -> dict[str, Tensor]:
    return pack_gptq(codes, zeros, scales, bits, stored_less=0)


def pack_awq(codes: Integers, zeros: Integers, scales: Tensor, bits: int) -> dict[str, Tensor]:
    outputs_in_word = [0, 2, 4, 6, 1, 3, 5, 7]
    (out, columns), groups = codes.shape, zeros.shape[1]
    qweight, qzeros = words(columns, out // 8), words(groups, out // 8)
    for word in range(out // 8):
        for place, output in enumerate(outputs_in_word):
            for i in range(columns):
                qweight[i][word] |= int(codes[8 * word + output, i]) << bits * place
            for group in range(groups):
                qzeros[group][word] |= int(zeros[8 * word + output, group]) << bits * place
    return {"qweight": int32(qweight), "qzeros": int32(qzeros), "scales": scales.T.half().contiguous()}


def pack_quantized(codes: Integers, zeros: Integers, scales: Tensor, bits: int) -> dict[str, Tensor]:
    """Symmetric if every zero is the middle."""
    (out, columns), groups, per_word = codes.shape, zeros.shape[1], 32 // bits
    weight, zero_point = words(out, columns // per_word), words(-(-out // per_word), groups)
    for o in range(out):
        for i in range(columns):
            weight[o][i // per_word] |= int(codes[o, i]) << bits * (i % per_word)
        for group in range(groups):
            zero_point[o // per_word][group] |= int(zeros[o, group]) << bits * (o % per_word)
    tensors = {
        "weight_packed": int32(weight),
        "weight_scale": scales.bfloat16(),
        "weight_shape": torch.tensor([out, columns]),
    }
    return tensors if (zeros == 1 << (bits - 1)).all() else tensors | {"weight_zero_point": int32(zero_point)}


def words(rows: int, columns: int) -> list[list[int]]:
    return [[0] * columns for _ in range(rows)]


def int32(values: list[list[int]]) -> Tensor:
    return torch.from_numpy(np.array(values, np.uint32).view(np.int32))


def gptq(bits: int, group_size: int, **other: object) -> dict[str, object]:
    return {"quant_method": "gptq", "bits": bits, "group_size": group_size, "desc_act": False, **other}


def compressed_tensors(bits: int, *, symmetric: bool, group_size: int | None = None) -> dict[str, Any]:
    weights = {
        "num_bits": bits, "type": "int", "symmetric": symmetric, "strategy": "group" if group_size else "channel",
        "group_size": group_size, "actorder": None, "dynamic": False,
    }  # fmt: skip
    group = {"targets": ["Linear"], "weights": weights, "input_activations": None, "output_activations": None}
    return {
        "quant_method": "compressed-tensors", "format": "pack-quantized", "config_groups": {"group_0": group},
        "ignore": ["lm_head"], "kv_cache_scheme": None, "quantization_status": "compressed",
    }  # fmt: skip


@dataclass(frozen=True)
class Packing:
    """How a folder's layers are packed. A group size of None is a whole row."""

    config: Mapping[str, object]
    pack: Packer
    bits: int
    group_size: int | None
    symmetric: bool


AWQ = {"quant_method": "awq", "bits": 4, "group_size": 32, "zero_point": True, "version": "gemm"}
PACKINGS = {
    "gptq-4": Packing(gptq(4, 32, sym=True, checkpoint_format="gptq"), pack_gptq, 4, 32, True),
    "gptq-4-asymmetric": Packing(gptq(4, 16, sym=False), pack_gptq, 4, 16, False),
    "gptq-8": Packing(gptq(8, 32), pack_gptq, 8, 32, False),
    "gptq-row": Packing(gptq(4, -1), pack_gptq, 4, None, True),
    "gptq-v2": Packing(gptq(4, 32, checkpoint_format="gptq_v2"), pack_gptq_v2, 4, 32, False),
    "awq": Packing(AWQ, pack_awq, 4, 32, False),
    "pack-quantized-4": Packing(compressed_tensors(4, symmetric=True, group_size=32), pack_quantized, 4, 32, True),
    "pack-quantized-4-asymmetric": Packing(
        compressed_tensors(4, symmetric=False, group_size=16), pack_quantized, 4, 16, False
    ),
    "pack-quantized-8": Packing(compressed_tensors(8, symmetric=True, group_size=32), pack_quantized, 8, 32, True),
    "pack-quantized-channel": Packing(compressed_tensors(8, symmetric=False), pack_quantized, 8, None, False),
}


@torch.no_grad()
def save_packed(model: Any, packing: Packing, folder: Path, dense: frozenset[str] = frozenset({"lm_head"})) -> None:
    """Draw the weights of all linear layers but `dense`, save the model with them packed; it gets the same weights."""
    generator = np.random.default_rng(0)
    packed: dict[str, Tensor] = {}
    for name, layer in model.named_modules():
        if isinstance(layer, torch.nn.Linear) and name not in dense:
            weight, tensors = draw(layer.weight.shape, packing, generator)
            layer.weight.copy_(weight)
            packed |= {f"{name}.{suffix}": tensor for suffix, tensor in tensors.items()}
    model.save_pretrained(folder)
    stored = load_file(folder / "model.safetensors")
    layers = {name.rpartition(".")[0] for name in packed}
    plain = {name: tensor for name, tensor in stored.items() if name.removesuffix(".weight") not in layers}
    save_file(plain | packed, folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": packing.config}))


def draw(shape: tuple[int, ...], packing: Packing, generator: np.random.Generator) -> tuple[Tensor, dict[str, Tensor]]:
    """A weight [out, in] and the tensors that hold it."""
    out, columns = shape
    groups = columns // (packing.group_size or columns)
    top = 1 << packing.bits
    codes = generator.integers(0, top, (out, columns))
    zeros = np.full((out, groups), top // 2) if packing.symmetric else generator.integers(1, top, (out, groups))
    scales = torch.from_numpy(generator.integers(4, 8, (out, groups))) / (8 * top)
    signed = torch.from_numpy(codes - zeros.repeat(columns // groups, axis=1))
    weight = signed * scales.repeat_interleave(columns // groups, dim=1)
    return weight.float(), packing.pack(codes, zeros, scales, packing.bits)
