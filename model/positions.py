"""The numbers by which a token's position enters attention: rotary frequencies with scaling, and ALiBi's slopes."""

import math

import torch
from torch import Tensor

from model.spec import FactorsScaling, LinearScaling, Llama3Scaling, RopeSpec, YarnScaling


def rope_frequencies(rope: RopeSpec, device: torch.device) -> tuple[Tensor, float]:
    """Frequencies [dim / 2] float32, in radians per position, and the factor on cosines and sines.

    Pair i has the frequency theta ** (-2i / dim) (Su et al., arXiv 2104.09864, section 3.4.2), scaled as `rope.scaling`
    says.
    """
    exponents = torch.arange(0, rope.dim, 2, dtype=torch.float32, device=device) / rope.dim
    frequencies = 1.0 / rope.theta**exponents
    match rope.scaling:
        case None:
            return frequencies, 1.0
        case LinearScaling(factor=factor):
            return frequencies / factor, 1.0
        case Llama3Scaling() as scaling:
            return _llama3(frequencies, scaling), 1.0
        case YarnScaling() as scaling:
            return _yarn(frequencies, rope, scaling), _yarn_magnitude(scaling)
        case FactorsScaling(factors, attention_factor):
            return frequencies / torch.tensor(factors, dtype=torch.float32, device=device), attention_factor


def _llama3(frequencies: Tensor, scaling: Llama3Scaling) -> Tensor:
    """Llama 3.1's scaling: a pair is kept or divided by how often it turns within the original context."""
    turns = scaling.original_context * frequencies / (2 * math.pi)
    keep = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    return torch.lerp(frequencies / scaling.factor, frequencies, keep.clamp(0, 1))


def _yarn(frequencies: Tensor, rope: RopeSpec, scaling: YarnScaling) -> Tensor:
    """NTK-by-parts (Peng et al., arXiv 2309.00071, section 3.2): pairs that turn often keep their frequency.

    Pairs that turn seldom have it divided by the factor, and a linear ramp lies between the two.
    """

    def pair_that_turns(times: float) -> float:
        return rope.dim * math.log(scaling.original_context / (times * 2 * math.pi)) / (2 * math.log(rope.theta))

    first, last = pair_that_turns(scaling.beta_fast), pair_that_turns(scaling.beta_slow)
    if scaling.truncate:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, rope.dim - 1)
    pairs = torch.arange(rope.dim // 2, dtype=torch.float32, device=frequencies.device)
    # The lower bound keeps a ramp of width 0 from dividing by zero.
    interpolate = ((pairs - first) / max(last - first, 1e-3)).clamp(0, 1)
    return torch.lerp(frequencies, frequencies / scaling.factor, interpolate)


def _yarn_magnitude(scaling: YarnScaling) -> float:
    if scaling.attention_factor is not None:
        return scaling.attention_factor
    return 1.0 if scaling.factor <= 1 else 0.1 * math.log(scaling.factor) + 1.0


def alibi_slopes(heads: int) -> Tensor:
    """ALiBi's slopes [heads] float32 (Press et al., arXiv 2108.12409, section 3, and its code).

    With n the largest power of two up to `heads`, the first n slopes are 2 ** (-8 (i + 1) / n). The other heads take
    every second slope of the sequence for 2n heads.
    """
    n = 2 ** math.floor(math.log2(heads))
    slopes = [2 ** (-8 * (i + 1) / n) for i in range(n)]
    slopes += [2 ** (-4 * (2 * i + 1) / n) for i in range(heads - n)]
    return torch.tensor(slopes, dtype=torch.float32)
