"""Writes a tiny model of transformers as a GGUF file, by llama.cpp's conventions.

Names come from the gguf package's own tables, not from ours.
"""

import math
from collections.abc import Mapping
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

Array = npt.NDArray[np.float32]


def write_gguf(
    model: Any,
    path: Path,
    architecture: str,
    *,
    rope_factors: bool = False,
    types: Mapping[str, gguf.GGMLQuantizationType] | None = None,
) -> None:
    """`rope_factors`: a scaled rope as a factor of each frequency, and not by its parameters.

    Matrices whose GGUF names match a pattern of `types`, the first that does, are quantised.
    """
    config = model.config
    writer = gguf.GGUFWriter(path, architecture)
    heads = config.num_attention_heads
    kv_heads = getattr(config, "num_key_value_heads", heads)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(getattr(config, "intermediate_size", 4 * config.hidden_size))
    writer.add_head_count(heads)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    if architecture == "gpt2":
        writer.add_layer_norm_eps(config.layer_norm_epsilon)
    else:
        writer.add_head_count_kv(kv_heads)
        writer.add_layer_norm_rms_eps(config.rms_norm_eps)
        _add_rope(writer, model, architecture, rope_factors)
    if architecture in ("qwen3", "gemma3"):
        writer.add_key_length(config.head_dim)
        writer.add_value_length(config.head_dim)
    if architecture in ("gemma3", "phi3"):
        writer.add_sliding_window(config.sliding_window)
    if architecture == "gemma3" and config.final_logit_softcapping is not None:
        writer.add_final_logit_softcapping(config.final_logit_softcapping)
    _add_tensors(writer, model, architecture, heads, kv_heads, types or {})
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_rope(writer: gguf.GGUFWriter, model: Any, architecture: str, rope_factors: bool) -> None:
    config = model.config
    rope = config.rope_parameters
    if architecture == "gemma3":
        writer.add_float32("gemma3.rope.freq_base_swa", rope["sliding_attention"]["rope_theta"])
        rope = rope["full_attention"]
    writer.add_rope_freq_base(rope["rope_theta"])
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    if architecture in ("llama", "phi3"):
        writer.add_rope_dimension_count(int(head_dim * rope.get("partial_rotary_factor", 1.0)))
    if rope_factors:
        inverse, _ = ROPE_INIT_FUNCTIONS[rope["rope_type"]](config)
        plain = rope["rope_theta"] ** (-np.arange(0, head_dim, 2) / head_dim)
        writer.add_tensor("rope_freqs.weight", (plain / inverse.numpy()).astype(np.float32))
    elif rope["rope_type"] == "longrope":
        # As Phi-3's converter has it: no type, the magnitude worked out, and the lists as tensors.
        original = config.original_max_position_embeddings
        writer.add_rope_scaling_orig_ctx_len(original)
        factor = config.max_position_embeddings / original
        writer.add_rope_scaling_attn_factors(math.sqrt(1 + math.log(factor) / math.log(original)))
        for kind in ("short", "long"):
            writer.add_tensor(f"rope_factors_{kind}.weight", np.array(rope[f"{kind}_factor"], np.float32))
    elif rope["rope_type"] != "default":
        writer.add_rope_scaling_type(gguf.RopeScalingType(rope["rope_type"]))
        writer.add_rope_scaling_factor(rope["factor"])
        if rope["rope_type"] == "yarn":
            writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])


def _add_tensors(
    writer: gguf.GGUFWriter,
    model: Any,
    architecture: str,
    heads: int,
    kv_heads: int,
    types: Mapping[str, gguf.GGMLQuantizationType],
) -> None:
    arch = next(arch for arch, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    names = gguf.get_tensor_name_map(arch, model.config.num_hidden_layers)
    for name, weight in model.named_parameters():
        data = weight.detach().numpy()
        match architecture:
            case "llama" if "q_proj" in name:
                data = interleave(data, heads)
            case "llama" if "k_proj" in name:
                data = interleave(data, kv_heads)
            case "gemma3" if name.endswith("norm.weight"):
                data = data + 1
            case "gpt2" if ".c_" in name and data.ndim == 2:
                data = data.T
        gguf_name = names.get_name(name, (".weight", ".bias"))
        assert gguf_name is not None
        kind = next((kind for pattern, kind in types.items() if data.ndim == 2 and fnmatch(gguf_name, pattern)), None)
        if kind is None:
            writer.add_tensor(gguf_name, np.ascontiguousarray(data))
        else:
            writer.add_tensor(gguf_name, quantized(np.ascontiguousarray(data), kind), raw_dtype=kind)


def interleave(rows: Array, heads: int) -> Array:
    """Rotary pairs (i, i + dim / 2) of each head made neighbours."""
    pairs = rows.reshape(heads, 2, -1, *rows.shape[1:])
    return pairs.swapaxes(1, 2).reshape(rows.shape)


K_SCALES = {"Q2_K": (80, 84, 0.01), "Q3_K": (108, 110, 0.005), "Q4_K": (0, 4, 0.0005), "Q5_K": (0, 4, 0.0002),
            "Q6_K": (208, 210, 0.0001)}  # fmt: skip
"""Where a block has its scales in half precision, and a scale with which random blocks are random weights."""


def quantized(data: Array, kind: gguf.GGMLQuantizationType) -> npt.NDArray[np.uint8]:
    """Rows as blocks. The package does not quantise to K-quants: those are drawn, whatever the data."""
    if kind.name not in K_SCALES:
        blocks: npt.NDArray[np.uint8] = gguf.quants.quantize(data, kind)
        return blocks
    elements, size = gguf.GGML_QUANT_SIZES[kind]
    start, end, scale = K_SCALES[kind.name]
    drawn = np.random.default_rng(data.shape).integers(0, 256, (*data.shape[:-1], data.shape[-1] // elements, size))
    blocks = drawn.astype(np.uint8)
    blocks[..., start:end] = np.full((end - start) // 2, scale, np.float16).view(np.uint8)
    return blocks.reshape(len(data), -1)
