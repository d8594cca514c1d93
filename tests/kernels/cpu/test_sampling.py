"""Tokens that the cpu backend draws are the reference's: the same filters, and the same random numbers.

So are the weights by which it draws them.
"""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kernels.backend import SamplingBatch, Weighed
from kernels.cpu.backend import CpuBackend
from kernels.reference import dequantize, weigh
from kernels.reference_sampling import exponentials, sample, sampled_weights, select_rows, stream_keys, uniforms
from tests.kernels.cpu.test_backend import CPU, quantized
from tests.kernels.gpu.cases import attention_case

INFINITE = float("inf")


def batch(rows: int) -> SamplingBatch:
    """Rows of all kinds: greedy, without a filter, with one and with several."""

    def some(share: float) -> Tensor:
        return torch.rand(rows) < share

    return SamplingBatch(
        temperature=torch.rand(rows) * 2 * some(0.9),
        top_k=torch.randint(0, 60, (rows,)) * some(0.5),
        top_p=torch.where(some(0.5), torch.rand(rows), 1.0),
        min_p=torch.rand(rows) * some(0.3),
        seed=torch.randint(-(2**62), 2**62, (rows,)),
        counter=torch.randint(0, 1000, (rows,)),
    )


def tied(logits: Tensor, kind: str) -> Tensor:
    """The logits with so many equal ones as a kind has."""
    match kind:
        case "rounded":
            return logits.round()
        case "bfloat16":
            return logits.bfloat16().float()
        case "flat":
            return torch.full_like(logits, 2.5)
        case "two levels":
            return torch.where(logits > 0, 0.0, -1.75)
        case "signs of zero":
            return torch.where(logits > 0, 0.0, -0.0)
    return logits


@settings(deadline=None, max_examples=90)
@given(
    vocab=st.integers(1, 70) | st.integers(900, 5000),
    spread=st.floats(0.01, 10),
    kind=st.sampled_from(["usual", "rounded", "bfloat16", "flat", "two levels", "signs of zero"]),
    masked=st.booleans(),
    seed=st.integers(0, 999),
)
def test_tokens_are_those_of_the_reference(vocab: int, spread: float, kind: str, masked: bool, seed: int) -> None:
    torch.manual_seed(seed)
    logits = tied(torch.randn(12, vocab) * spread, kind)
    if masked:
        logits[:, 1:][torch.rand(12, vocab - 1) < 0.5] = -INFINITE
    wanted = batch(12)
    check_tokens(logits, wanted)
    check_weights(logits, wanted)


@pytest.mark.parametrize("vocab", [3367, 49_152])
def test_tokens_with_the_smallest_random_numbers_win_as_in_the_reference(vocab: int) -> None:
    """In some of these rows a token's number is so small that 1 less it rounds to 1."""
    torch.manual_seed(0)
    for _ in range(20):
        logits = torch.randn(64, vocab)
        rows = batch(64)
        unfiltered = {"temperature": torch.ones(64), "top_k": rows.top_k * 0, "top_p": torch.ones(64)}
        check_tokens(logits, replace(rows, **unfiltered, min_p=torch.zeros(64)))


def check_tokens(logits: Tensor, wanted: SamplingBatch) -> None:
    """Tokens are the reference's, or as fast in the race as those, as far as float32 can tell."""
    got, expected = CPU.sample(logits.clone(), wanted), sample(logits, wanted)
    rows = (got != expected).nonzero().flatten()
    if not len(rows):
        return
    part = select_rows(wanted, rows)
    every = torch.arange(logits.shape[1], dtype=torch.int32)
    speeds = sampled_weights(logits[rows], part) / exponentials(uniforms(stream_keys(part), every))
    ours, theirs = (speeds.gather(1, tokens[rows, None]) for tokens in (got, expected))
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=0.0)


def check_weights(logits: Tensor, wanted: SamplingBatch) -> None:
    """Those of one stage behind another, which has other settings."""
    got, expected = None, None
    for one in (batch(len(logits)), wanted):
        got, expected = CPU.weigh(logits, one, got), weigh(logits, one, expected)
        # The smallest numbers of float32 have few digits.
        torch.testing.assert_close(got.weights, expected.weights, rtol=1e-5, atol=1e-42)
        assert torch.equal(got.figures[:, 1].long(), (got.weights > 0).sum(-1))
        assert (got.figures[:, 1] >= (expected.weights > 1e-42).sum(-1)).all()
        torch.testing.assert_close(got.figures[:, [0, 2]], expected.figures[:, [0, 2]], rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(got.figures[:, 3], expected.figures[:, 3], rtol=1e-5, atol=1e-5)


def test_the_weights_of_a_whole_vocabulary() -> None:
    """In rows that are weighed in several blocks, and end between two of them."""
    torch.manual_seed(0)
    logits = torch.randn(12, 20_001) * 4
    check_weights(logits, batch(12))
    check_weights(logits.round(), batch(12))


def test_weights_depend_on_no_row_beside_them() -> None:
    logits, wanted = torch.randn(9, 3000), batch(9)
    before = CPU.weigh(logits, batch(9), None)
    whole = CPU.weigh(logits, wanted, before)
    for row in range(9):
        some = torch.tensor([row])
        alone = CPU.weigh(logits[some], select_rows(wanted, some), Weighed(*(part[some] for part in before)))
        assert torch.equal(alone.weights, whole.weights[some])
        assert torch.equal(alone.figures, whole.figures[some])


@pytest.mark.parametrize("bad", [INFINITE, float("nan"), -float("nan")])
def test_rows_without_a_finite_maximum_draw_nothing(bad: float) -> None:
    logits, wanted = torch.randn(12, 300), batch(12)
    expected = sample(logits, wanted)
    logits[3, 7], logits[5] = bad, -INFINITE
    expected[[3, 5]] = -1
    assert torch.equal(CPU.sample(logits, wanted), expected)
    weights = CPU.weigh(logits, wanted, None).weights
    assert (weights.amax(-1) > 0).tolist() == (expected >= 0).tolist()


@pytest.mark.parametrize("bits", [4, 8, 16])
@pytest.mark.parametrize("biased", [False, True])
def test_greedy_tokens_of_a_recording_are_those_of_its_logits(bits: int, biased: bool) -> None:
    """It ranks the logits and does not write them; all are on the same path for few rows and for many."""
    torch.manual_seed(0)
    backend, vocab, hidden = CpuBackend(2), 1111, 64
    weight = quantized(vocab, hidden, bits, 32, offsets=False) if bits <= 8 else torch.randn(vocab, hidden).bfloat16()
    # Equal logits, the highest of every seventh row.
    for part in (weight,) if isinstance(weight, Tensor) else (weight.codes, weight.scales):
        part[700] = part[300]
    dense = weight.float() if isinstance(weight, Tensor) else dequantize(weight)
    bias = torch.randn(vocab).index_fill(0, torch.tensor([300, 700]), 1.0) if biased else None
    linear = backend.pack(weight, bias)
    x = torch.randn(60, hidden)
    x[::7] = 1000 * dense[300]
    x[3] = 0
    x[5, 9], x[6, 1] = float("nan"), -float("nan")
    x[8, 2] = INFINITE
    assert (backend.linear(x, linear).argmax(-1)[::7] == 300).sum() > 5
    layout = attention_case([(0, 1)]).layout

    def draw() -> Tensor:
        logits = backend.linear(backend.narrow(x, 48), linear)
        backend.sample(logits, batch(48))
        return logits

    program, logits = backend.record(draw)
    for count in (1, 3, 8, 17, 48):
        for chosen in (torch.arange(count), torch.randint(60, (count,))):
            logits.fill_(7.0)
            sampled = batch(count)
            greedy = replace(sampled, temperature=torch.zeros(count))
            drawn = backend.replay(program, chosen, layout, chosen=chosen, sampling=greedy)
            assert drawn is not None
            assert bool((logits == 7.0).all())
            backend.replay(program, chosen, layout, chosen=chosen)
            assert torch.equal(drawn, backend.sample(logits[:count].clone(), greedy))
            drawn = backend.replay(program, chosen, layout, chosen=chosen, sampling=sampled)
            assert drawn is not None
            assert torch.equal(drawn, backend.sample(logits[:count].clone(), sampled))
