"""From a model on disk to a runner that is ready to serve: the composition root of `model`."""

import torch

from kernels.backend import KVCache, load_backend
from model.cache import cache_blocks
from model.checkpoint.errors import CheckpointError
from model.checkpoint.source import open_checkpoint
from model.contract import RunnerConfig
from model.decoder import Decoder
from model.families import read_spec
from model.machine import available_memory, usable_cores
from model.runner import ModelRunner
from model.weights import load_weights

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def load_runner(config: RunnerConfig) -> ModelRunner:
    """Load the model at `config.model`. Raises CheckpointError or ValueError with one line that says why not."""
    device = _device(config.device)
    dtype = _dtype(config.dtype, device)
    if device.type == "cpu":
        torch.set_num_threads(config.threads or usable_cores())
    backend = load_backend(device, config.backend)
    checkpoint = open_checkpoint(config.model)
    spec = read_spec(checkpoint)
    max_context = config.max_context or spec.max_context
    if max_context > spec.max_context:
        raise CheckpointError(f"a context of {max_context} tokens is beyond the model's {spec.max_context}")
    weights = load_weights(spec, checkpoint, backend, dtype, device)
    blocks = cache_blocks(
        spec,
        block_size=config.block_size,
        dtype=dtype,
        budget=config.cache_bytes,
        free_memory=available_memory() if device.type == "cpu" else torch.cuda.mem_get_info(device)[0],
        max_context=max_context,
        max_running=config.max_running,
    )
    cache = KVCache(
        layers=len(spec.layers),
        blocks=blocks,
        block_size=config.block_size,
        kv_heads=spec.kv_heads,
        head_dim=spec.head_dim,
        dtype=dtype,
        device=device,
    )
    return ModelRunner(Decoder(spec, weights, backend), cache, max_context)


def _device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"unknown device {name!r}: use auto, cpu or cuda") from None
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"unsupported device {name!r}: use auto, cpu or cuda")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError("the device is set to cuda, but torch sees no CUDA device")
    return device


def _dtype(name: str, device: torch.device) -> torch.dtype:
    if name == "auto":
        # Plain bf16 arithmetic is slower than float32 on most CPUs.
        return torch.float32 if device.type == "cpu" else torch.bfloat16
    if name not in DTYPES:
        raise ValueError(f"unknown dtype {name!r}: use auto, {', '.join(DTYPES)}")
    return DTYPES[name]
