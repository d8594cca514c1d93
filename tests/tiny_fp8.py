"""Hugging Face folders with FP8 weights in each of the forms in which they are published."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

E4M3 = torch.float8_e4m3fn


def fp8(**other: object) -> dict[str, Any]:
    return {"quant_method": "fp8", "activation_scheme": "dynamic", **other}


def float_quantized(strategy: str, *, dynamic: bool = True, **weights: object) -> dict[str, Any]:
    number = {"num_bits": 8, "type": "float", "symmetric": True, "group_size": None, "actorder": None}
    group = {
        "targets": ["Linear"], "output_activations": None,
        "weights": {**number, "strategy": strategy, "dynamic": False, **weights},
        "input_activations": {**number, "strategy": "token" if dynamic else "tensor", "dynamic": dynamic},
    }  # fmt: skip
    return {
        "quant_method": "compressed-tensors", "format": "float-quantized", "config_groups": {"group_0": group},
        "ignore": ["lm_head"], "kv_cache_scheme": None, "quantization_status": "compressed",
    }  # fmt: skip


@dataclass(frozen=True)
class Fp8Packing:
    """How a folder's layers are stored."""

    config: Mapping[str, Any]
    block: tuple[int | None, int | None]
    """(outputs, inputs) that share a scale; None: all."""
    scales: str = "weight_scale"
    """Name of the tensor of scales."""
    scales_rank: int = 2
    """Number of dimensions of that tensor."""
    dtype: torch.dtype = torch.float32
    """Its dtype."""
    inputs: str = ""
    """Name of a scale of activations, if there is one."""


FP8_PACKINGS = {
    "block": Fp8Packing(
        fp8(weight_block_size=[128, 128], fmt="e4m3", modules_to_not_convert=["lm_head"]),
        (128, 128), "weight_scale_inv", dtype=torch.bfloat16,
    ),
    "small-block": Fp8Packing(fp8(weight_block_size=[40, 32]), (40, 32), "weight_scale_inv"),
    "tensor": Fp8Packing(
        fp8(activation_scheme="static", ignored_layers=["lm_head"]), (None, None), scales_rank=0, inputs="input_scale",
    ),
    "tensor-inverse": Fp8Packing(
        fp8(activation_scheme="static", weight_block_size=None, dequantize=False),
        (None, None), "weight_scale_inv", 0, torch.bfloat16, "activation_scale",
    ),
    "compressed-tensor": Fp8Packing(
        float_quantized("tensor", dynamic=False), (None, None), scales_rank=1, inputs="input_scale",
    ),
    "compressed-channel": Fp8Packing(float_quantized("channel"), (1, None), dtype=torch.bfloat16),
    "compressed-block": Fp8Packing(float_quantized("block", block_structure=[32, 64]), (32, 64)),
}  # fmt: skip


@torch.no_grad()
def save_fp8(model: Any, packing: Fp8Packing, folder: Path, dense: frozenset[str] = frozenset({"lm_head"})) -> None:
    """Round the weights of all linear layers but `dense`, save the model with them in FP8; it gets the same weights."""
    stored: dict[str, Tensor] = {}
    for name, layer in model.named_modules():
        if isinstance(layer, torch.nn.Linear) and name not in dense:
            codes, scales = rounded(layer.weight, packing)
            grid = spread(scales, packing, layer.weight.shape)
            layer.weight.copy_(codes.float() * grid)
            stored |= {
                f"{name}.weight": codes,
                f"{name}.{packing.scales}": scales.view(scales.shape[: packing.scales_rank]).clone(),
            }
            if packing.inputs:
                stored[f"{name}.{packing.inputs}"] = torch.tensor(0.02)
    model.save_pretrained(folder)
    save_file(load_file(folder / "model.safetensors") | stored, folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": packing.config}))


def rounded(weight: Tensor, packing: Fp8Packing) -> tuple[Tensor, Tensor]:
    """Codes [out, in] and scales [blocks, blocks], one block after another."""
    height, width = (size or whole for size, whole in zip(packing.block, weight.shape, strict=True))
    rows = [torch.stack([block.abs().amax() / 448 for block in rows.split(width, 1)]) for rows in weight.split(height)]
    scales = torch.stack(rows).to(packing.dtype)
    return (weight / spread(scales, packing, weight.shape)).to(E4M3), scales


def spread(scales: Tensor, packing: Fp8Packing, shape: torch.Size) -> Tensor:
    """The scale of each element."""
    height, width = (size or whole for size, whole in zip(packing.block, shape, strict=True))
    return torch.kron(scales.float(), torch.ones(height, width))[: shape[0], : shape[1]]
