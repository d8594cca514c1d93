"""Loads a model on disk into a runner that is ready to serve. This is the composition root of `model`."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

import torch

from kernels.backend import Backend, KVCache, RecordingBackend
from kernels.load import load_backend
from model.checkpoint.errors import CheckpointError
from model.checkpoint.source import open_checkpoint
from model.decoder import Decoder
from model.drafter import AnyDecoder, Drafter
from model.families.reader import read_spec
from model.graphs import CudaCapture, GraphedDecoder, shapes
from model.loading.cache import block_bytes, blocks_within, cache_bytes_left, make_cache, useful_blocks
from model.loading.calibration import calibrate, set_scales
from model.loading.device import choose_device
from model.loading.dummy import dummy_weights
from model.loading.machine import available_memory, usable_cores
from model.loading.memory import Probe, fitting, largest_step, measure
from model.loading.weights import load_weights
from model.recorded import RecordedDecoder
from model.runner import ModelRunner
from model.runner_config import CPU_SHARE, GPU_SHARE, RunnerConfig

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
FP8 = torch.float8_e4m3fn

T = TypeVar("T")


def load_runner(config: RunnerConfig, probe: Probe = measure) -> ModelRunner:
    """Load the model at `config.model`, and the draft model if there is one.

    `probe` measures the memory that a step takes on a GPU. Raises CheckpointError or ValueError, with the reason in one
    line, if the model cannot be read or does not fit.
    """
    device = choose_device(config.device)
    with fitting(device, "the engine", "lower token_budget, max_running or max_context, or take a smaller model"):
        return _load_runner(config, device, probe)


def _load_runner(config: RunnerConfig, device: torch.device, probe: Probe) -> ModelRunner:
    threads = config.threads or usable_cores()
    # Reading and packing weights uses every core, whichever device computes afterwards.
    torch.set_num_threads(threads)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dtype = _dtype(config.dtype, device)
    backend = load_backend(device, config.backend, batch_invariant=config.batch_invariant, dtype=dtype, threads=threads)
    decoder, max_context = _load_decoder(config, config.model, "the model", backend, dtype, device)
    decoders = [decoder]
    if config.draft_model is not None:
        whole = replace(config, max_context=max_context)
        decoders.append(_load_decoder(whole, config.draft_model, "the draft model", backend, dtype, device)[0])
    cache_dtype = _choice("cache dtype", config.cache_dtype, {"auto": backend.cache_dtype or dtype, "fp8": FP8})
    caches = _load_caches(config, decoders, cache_dtype, max_context, probe)
    torch.set_num_threads(_step_threads(device, backend, threads))
    return _runner(_quickened(config, decoders, caches, max_context), caches, max_context)


def _load_decoder(
    config: RunnerConfig, model: str, what: str, backend: Backend, dtype: torch.dtype, device: torch.device
) -> tuple[Decoder, int]:
    """The decoder of a model, which error messages call `what`, and the limit of a request's tokens."""
    kept = {"none": True, "8bit": backend.keeps_quantized, "fp8": backend.keeps_fp8}
    rounding = config.round_weights
    if not _choice("rounding", rounding, kept):
        raise ValueError(
            f"the {backend.name} backend does not compute with such weights: use another with round_weights={rounding}"
        )
    dummy = _choice("load format", config.load_format, {"auto": False, "dummy": True})
    checkpoint = open_checkpoint(model, weights=not dummy)
    spec = read_spec(checkpoint, config.max_context)
    max_context = config.max_context or spec.max_context
    if max_context > spec.max_context:
        raise CheckpointError(
            f"a context of {max_context} tokens is beyond {what}'s {spec.max_context}: lower max_context"
        )
    with fitting(device, f"{what}'s weights", "take a smaller model, or a quantised one"):
        if dummy:
            weights = dummy_weights(spec, backend, dtype, device, rounding=rounding)
        else:
            weights = load_weights(spec, checkpoint, backend, dtype, device, rounding=rounding)
    return Decoder(spec, weights, backend), max_context


def _load_caches(
    config: RunnerConfig, decoders: Sequence[Decoder], dtype: torch.dtype, max_context: int, probe: Probe
) -> list[KVCache]:
    """The KV cache of each decoder, all with the same number of blocks.

    Together they take `config.cache_memory` bytes if that is set; else the memory left, as far as it is useful.
    """
    device, block_size = decoders[0].weights.device, _block_size(config, decoders)
    scales = [calibrate(decoder, block_size) for decoder in decoders] if dtype == FP8 else []
    left = _memory_left(config, decoders, dtype, max_context, probe)
    one = sum(block_bytes(decoder.spec, block_size, dtype) for decoder in decoders)
    if config.cache_memory is not None:
        blocks = blocks_within(config.cache_memory, one)
    else:
        blocks = min(blocks_within(left, one), useful_blocks(block_size, max_context, config.max_running))
    size = blocks * one
    with fitting(device, f"a KV cache of {size / 2**30:.2f} GiB", "lower cache_memory or memory_share", needed=size):
        caches = _make_caches(decoders, blocks, block_size, dtype)
    for cache, found in zip(caches, scales, strict=False):
        set_scales(cache, found)
    return caches


def _make_caches(decoders: Sequence[Decoder], blocks: int, block_size: int, dtype: torch.dtype) -> list[KVCache]:
    return [
        make_cache(decoder.spec, blocks=blocks, block_size=block_size, dtype=dtype, device=decoder.weights.device)
        for decoder in decoders
    ]


def _memory_left(
    config: RunnerConfig, decoders: Sequence[Decoder], dtype: torch.dtype, max_context: int, probe: Probe
) -> int:
    """Bytes left for the KV caches. On a GPU the largest step is run once to measure its working memory."""
    device = decoders[0].weights.device
    if device.type == "cpu":
        return int(available_memory() * (config.memory_share or CPU_SHARE))
    step = f"a step of {config.token_budget} tokens for {config.max_running} requests"
    with fitting(device, step, "lower token_budget, max_running or max_context"):
        caches = _make_caches(decoders, 1, _block_size(config, decoders), dtype)
        runner = _runner(decoders, caches, max_context)
        plan = largest_step(runner.limits, max_running=config.max_running, token_budget=config.token_budget)
        memory = probe(device, lambda: runner.start(plan).result())
    graphs = len(shapes(config.max_running, config.token_budget)) if config.graphs else 0
    layers = sum(len(decoder.spec.layers) for decoder in decoders)
    return cache_bytes_left(memory, config.memory_share or GPU_SHARE, graphs=graphs, layers=layers)


def _block_size(config: RunnerConfig, decoders: Sequence[Decoder]) -> int:
    return config.block_size or decoders[0].backend.block_size


def _quickened(
    config: RunnerConfig, decoders: Sequence[Decoder], caches: Sequence[KVCache], max_context: int
) -> Sequence[AnyDecoder]:
    """The decoders with their forward passes over these caches recorded or captured, where the backend can do that."""
    backend, device = decoders[0].backend, decoders[0].weights.device
    if isinstance(backend, RecordingBackend):
        return [
            RecordedDecoder(decoder, backend, cache, config.token_budget)
            for decoder, cache in zip(decoders, caches, strict=True)
        ]
    if device.type == "cpu" or not config.graphs or not backend.capturable:
        return decoders
    capture = CudaCapture()
    return [
        GraphedDecoder(
            decoder,
            cache,
            max_batch=config.max_running,
            max_context=max_context,
            capture=capture,
            token_budget=config.token_budget,
        )
        for decoder, cache in zip(decoders, caches, strict=True)
    ]


def _runner(decoders: Sequence[AnyDecoder], caches: Sequence[KVCache], max_context: int) -> ModelRunner:
    """The runner of a model and its cache, which come first, and of a draft model if one comes behind it."""
    drafters = [
        Drafter(decoder, cache, decoders[0].spec.vocab_size)
        for decoder, cache in zip(decoders[1:], caches[1:], strict=True)
    ]
    return ModelRunner(decoders[0], caches[0], max_context, *drafters)


def _step_threads(device: torch.device, backend: Backend, threads: int) -> int:
    """Number of torch's own threads in a step: 1 where a GPU or the backend's threads compute; more would only spin."""
    return 1 if device.type == "cuda" or isinstance(backend, RecordingBackend) else threads


def _dtype(name: str, device: torch.device) -> torch.dtype:
    # Most CPUs compute in bfloat16 more slowly than in float32.
    automatic = torch.float32 if device.type == "cpu" else torch.bfloat16
    return _choice("dtype", name, {"auto": automatic, **DTYPES})


def _choice(what: str, name: str, options: Mapping[str, T]) -> T:
    if name not in options:
        raise ValueError(f"unknown {what} {name!r}: use {', '.join(options)}")
    return options[name]
