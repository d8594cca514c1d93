"""Decoders with random weights and no files: a spec, a backend and a device make one."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor

from kernels.backend import Backend, KVCache
from kernels.gpu.launch import Target
from kernels.load import load_backend
from model.contract import INVALID_TOKEN, LATE, Chunk, Draw, Runner, StepPlan, StepResult
from model.decoder import Decoder
from model.loading.cache import make_cache
from model.loading.dummy import dummy_weights
from model.sampling_params import SamplingParams
from model.spec import DecoderSpec, LayerSpec, RopeSpec
from model.token_logprobs import TokenLogprobs

CPU = torch.device("cpu")
GREEDY = SamplingParams(max_tokens=100, temperature=0.0)

SMALL = DecoderSpec(
    family="llama",
    vocab_size=97,
    hidden_size=64,
    layers=(LayerSpec(RopeSpec(1e4, 16)), LayerSpec(RopeSpec(1e4, 16), window=5)),
    heads=4,
    kv_heads=2,
    head_dim=16,
    mlp_size=96,
    max_context=64,
    attention_scale=0.25,
    tied_embeddings=False,
)
SCALED = replace(SMALL, family="gemma3", embedding_scale=8.0, qk_norm=True, post_norms=True, logit_softcap=30.0)
LEARNED = replace(
    SMALL, family="gpt2", layers=(LayerSpec(),) * 2, norm="layer", gated_mlp=False, learned_positions=True
)


def make_decoder(
    spec: DecoderSpec = SMALL,
    backend: Backend | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device = CPU,
) -> Decoder:
    """The same weights at every call."""
    backend = backend or load_backend(device, "reference")
    return Decoder(spec, dummy_weights(spec, backend, dtype, device), backend)


def moved(value: Any, device: torch.device) -> Any:
    """Weights, with every tensor on another device."""
    match value:
        case Tensor():
            return value.to(device)
        case list():
            return [moved(item, device) for item in value]
        case _ if is_dataclass(value) and not isinstance(value, type):
            return replace(value, **{field.name: moved(getattr(value, field.name), device) for field in fields(value)})
        case _:
            return value


def empty_cache(
    decoder: Decoder, *, blocks: int = 64, block_size: int = 4, dtype: torch.dtype | None = None
) -> KVCache:
    """Full of what no one should read."""
    embedding = decoder.weights.embedding
    cache = make_cache(
        decoder.spec, blocks=blocks, block_size=block_size, dtype=dtype or embedding.dtype, device=embedding.device
    )
    for layer in cache.layers:
        layer.keys.fill_(float("nan"))
        layer.values.fill_(float("nan"))
    return cache


def drawing(params: SamplingParams = GREEDY, output: Sequence[int] = (), ahead: int = 0) -> tuple[Draw]:
    """The next draw of a request, alone in its chunk; `ahead` of so many tokens whose values are not known yet."""
    return (Draw(params, [1, 2], output, len(output) + ahead),)


def drawn(result: StepResult) -> list[int]:
    """The tokens of all draws of a step."""
    return [token for chunk in result.chunks for token in chunk.tokens]


def drawn_one_by_one(
    runner: Runner,
    allowed: Sequence[int],
    starting: Callable[[], AbstractContextManager[object]] = nullcontext,
) -> list[int]:
    """The tokens of draws with masks that each allow one token, and come when their step has been started.

    Steps are started ahead. `starting` is entered around whatever must not wait for the device.
    """
    prompt, output = [1, 2], list[int]()
    pending = runner.start(StepPlan([Chunk(prompt, 0, range(4), drawing())]))
    for step, token in enumerate(allowed):
        (draw,) = drawing(GREEDY, output, ahead=1)
        draw.allowed = LATE
        with starting():
            following = runner.start(StepPlan([Chunk([INVALID_TOKEN], 2 + step, range(4), [draw], follows=0)]))
        output += drawn(pending.result())
        draw.allowed = (1 << token).to_bytes(-(-runner.limits.vocab_size // 8), "little")
        with starting():
            following.draw()
        pending = following
    return [*output[1:], *drawn(pending.result())]


def drawn_logprobs(result: StepResult) -> list[TokenLogprobs | None]:
    """The log-probabilities of all draws of a step."""
    return [logprobs for chunk in result.chunks for logprobs in chunk.logprobs]


def decoding(token: int, start: int, blocks: Sequence[int], params: SamplingParams = GREEDY) -> Chunk:
    return Chunk([token], start, blocks, drawing(params))


class SilentLauncher:
    """A `kernels.gpu.launch.Launcher` that launches nothing: results are whatever lies in memory."""

    dependent = False
    compiles_gluon = False

    def __init__(self, target: Target) -> None:
        self.target = target

    def __call__(
        self, kernel: Any, grid: tuple[int, ...], *arguments: object, num_warps: int, num_stages: int, **constants: Any
    ) -> None:
        pass


@dataclass
class RerunCapture:
    """Counts captures and replays, and insists, as a graph would, on one output tensor."""

    captures: int = 0
    replays: int = 0

    def __call__(self, function: Callable[[], Tensor]) -> Callable[[], Tensor]:
        self.captures += 1
        output = torch.full_like(function(), float("nan"))

        def replay() -> Tensor:
            self.replays += 1
            return output.copy_(function())

        return replay
