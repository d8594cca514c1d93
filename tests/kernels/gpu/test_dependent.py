"""Kernels that are launched before the ones before them have ended: they read nothing too early, and write nothing."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from triton.language.extra import cuda

from kernels.backend import AttentionOptions, Backend, Fp8Weight, HeadNorms, QuantizedWeight, Rotation
from kernels.gpu.backend import TritonBackend
from kernels.gpu.decode import Decoding
from kernels.gpu.launch import TARGETS, JitLauncher, Launcher, device_target
from kernels.gpu.matmul import Projecting
from kernels.gpu.matvec import RowTiling
from tests.kernels.gpu.cases import FP8, attention_case

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
TARGET = device_target(DEVICE)
interpreted = pytest.mark.skipif(DEVICE.type == "cuda", reason="the interpreter plays the hardware")


class EarlyLauncher:
    """Plays the hardware in the interpreter: tensors that are no weights are junk until a program waits for them."""

    target = TARGET
    dependent = True

    def __init__(self, weights: list[Tensor]) -> None:
        self._weights = weights
        self.kernels: list[str] = []
        """Names of the kernels that have run."""

    def __call__(
        self, kernel: Any, grid: tuple[int, ...], *arguments: object, num_warps: int, num_stages: int, **constants: Any
    ) -> None:
        tensors = {argument.data_ptr(): argument for argument in arguments if isinstance(argument, Tensor)}
        weights = {weight.data_ptr() for weight in self._weights}
        late = [tensor for place, tensor in tensors.items() if place not in weights]
        stored = [tensor.clone() for tensor in late]
        for tensor in late:
            tensor.fill_(float("nan") if tensor.is_floating_point() else 0)
        junk = [tensor.clone() for tensor in late]
        events: list[str] = []

        def wait() -> None:
            if not events:
                assert all(map(same, late, junk)), "a program stores something before it waits"
                for tensor, numbers in zip(late, stored, strict=True):
                    tensor.copy_(numbers)
            events.append("waits")

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(cuda, "gdc_wait", wait)
            patch.setattr(cuda, "gdc_launch_dependents", lambda: events.append("launches"))
            kernel[grid](*arguments, num_warps=num_warps, num_stages=num_stages, **constants)
        assert events == ["waits", "launches"] * math.prod(grid), "each program does both, once"
        self.kernels.append(kernel.fn.__name__)


def same(a: Tensor, b: Tensor) -> bool:
    """Bit for bit, whatever is not a number too."""
    return torch.equal(a.contiguous().view(torch.uint8), b.contiguous().view(torch.uint8))


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE)


Operation = Callable[[Backend, list[Tensor]], tuple[Tensor, ...]]
"""Calls a backend, after it has listed the weights; returns all that the backend writes."""


def _add_rms_norm(backend: Backend, weights: list[Tensor]) -> tuple[Tensor, ...]:
    weights += [random(96, seed=3)]
    return backend.add_rms_norm(random(2, 96, seed=1), random(2, 96, seed=2), weights[0], 1e-5)


def _add_layer_norm(backend: Backend, weights: list[Tensor]) -> tuple[Tensor, ...]:
    weights += [random(96, seed=3), random(96, seed=4)]
    return backend.add_layer_norm(random(2, 96, seed=1), random(2, 96, seed=2), *weights, 1e-5)


def _activate(backend: Backend, weights: list[Tensor]) -> tuple[Tensor, ...]:
    return (backend.gated_activation(random(2, 192), "silu"),)


def _rotate(backend: Backend, weights: list[Tensor]) -> tuple[Tensor, ...]:
    weights += [random(16, seed=3), random(16, seed=4)]
    case, angles = attention_case([(20, 1), (3, 1)], cache_dtype=FP8), random(2, 8, seed=5)
    norms, rotation = HeadNorms(*weights, 1e-5), Rotation(angles.cos(), angles.sin())
    q = backend.rotate_and_store(random(2, 8 * 16), 4, norms, rotation, case.cache, case.layout.slots)
    return q, case.cache.keys, case.cache.values


def _attend(backend: Backend, weights: list[Tensor]) -> tuple[Tensor, ...]:
    case = attention_case([(200, 1), (30, 1)])
    return (backend.attend(case.q, case.cache, case.layout, AttentionOptions(0.25)),)


def _multiply_4_bits(backend: Backend, weights: list[Tensor]) -> tuple[Tensor, ...]:
    codes = torch.randint(0, 256, (40, 1024), generator=torch.Generator().manual_seed(0)).to(DEVICE, torch.uint8)
    scales = random(40, 16, seed=1).half()
    packed = backend.pack(QuantizedWeight(codes, scales, random(40, 16, seed=2), 0, 4, 128), random(40, seed=3))
    weights += [packed.weight.codes, packed.weight.scales, packed.weight.offsets, packed.bias]  # type: ignore[union-attr, list-item]
    return (backend.linear(random(2, 2048, seed=4), packed),)


def _multiply_fp8(backend: Backend, weights: list[Tensor]) -> tuple[Tensor, ...]:
    weight = Fp8Weight(random(40, 1024).to(FP8), random(1, 8, seed=1).abs(), 128, 128)
    weights += [weight.numbers, weight.scales]
    return (backend.linear(random(2, 1024, seed=2), backend.pack(weight, None)),)


def _multiply_rows(backend: Backend, weights: list[Tensor]) -> tuple[Tensor, ...]:
    weights += [random(40, 1500), random(40, seed=1)]
    return (backend.linear(random(1, 1500, seed=2), backend.pack(*weights)),)


@interpreted
@pytest.mark.parametrize(
    ("operation", "kernels", "folded"),
    [
        (_add_rms_norm, ["add_norm_rows"], False),
        (_add_layer_norm, ["add_norm_rows"], False),
        (_activate, ["activate_rows"], False),
        (_rotate, ["rotate_and_store_heads"], False),
        (_attend, ["decode_kernel", "combine_kernel"], False),
        (_attend, ["decode_kernel"], True),
        (_multiply_4_bits, ["_matmul", "_add_splits"], False),
        (_multiply_4_bits, ["_matmul"], True),
        (_multiply_fp8, ["_quantize", "_matmul", "_add_splits"], False),
        (_multiply_fp8, ["_quantize", "_matmul"], True),
        (_multiply_rows, ["_multiply_rows"], False),
    ],
)
def test_nothing_but_weights_is_read_before_the_kernels_before_have_ended(
    operation: Operation, kernels: list[str], folded: bool
) -> None:
    def backend(launch: Launcher) -> TritonBackend:
        projecting = Projecting(folded=folded, rows=RowTiling())
        return TritonBackend(launch, decoding=Decoding(folded=folded), projecting=projecting)

    plain = operation(backend(JitLauncher(TARGET)), [])
    weights: list[Tensor] = []
    launch = EarlyLauncher(weights)
    early = operation(backend(launch), weights)
    assert launch.kernels == kernels
    assert all(map(same, early, plain))


@pytest.mark.gpu
@pytest.mark.skipif(not TARGET.launches_early, reason="this chip launches no kernel early")
@torch.inference_mode()
def test_a_chain_of_kernels_computes_the_same() -> None:
    """Kernel after kernel of ours, as in a decoding step, one by one and as a graph that is replayed."""
    size, layers = 4096, 30
    codes = torch.randint(0, 256, (2 * size, size // 2), device=DEVICE, dtype=torch.uint8)
    scales = torch.rand(2 * size, size // 128, device=DEVICE).half() / size**0.5
    weight = QuantizedWeight(codes, scales, None, 8, 4, 128)
    x, scale = random(1, size).bfloat16(), random(size, seed=1).bfloat16()

    def chain(launch: JitLauncher) -> Tensor:
        backend, step, stream = TritonBackend(launch), x, x
        projection = backend.pack(weight, None)
        for _ in range(layers):
            normed, stream = backend.add_rms_norm(step, stream, scale, 1e-5)
            step = backend.gated_activation(backend.linear(normed, projection), "silu")
        return stream

    expected = chain(JitLauncher(TARGET))
    early = JitLauncher(TARGET, dependent=True)
    assert torch.equal(chain(early), expected)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = chain(early)
    for _ in range(50):
        out.zero_()
        graph.replay()
        assert torch.equal(out, expected)


@pytest.mark.parametrize("chip", TARGETS)
def test_a_chip_that_launches_nothing_early_is_not_asked_to(chip: str) -> None:
    if TARGETS[chip].launches_early:
        assert chip in ("sm_90", "sm_100")
        assert JitLauncher(TARGETS[chip], dependent=True).dependent
    else:
        with pytest.raises(ValueError, match="launches no kernel"):
            JitLauncher(TARGETS[chip], dependent=True)
