"""The numbers that tell a decoder a token's position, as data: rotary angles, learned rows, or ALiBi's slopes."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from model.inspection import PositionEncoding, RotaryAngles
from model.positions import alibi_slopes, rope_frequencies
from model.spec import DecoderSpec, RopeSpec
from model.transfer import to_array


def encoding_width(spec: DecoderSpec) -> int:
    """Numbers of one position's encoding."""
    return sum(rope.dim // 2 for rope in _ropes(spec)) + spec.learned_positions * spec.hidden_size


def position_encoding(spec: DecoderSpec, positions: Sequence[int], learned: Tensor | None) -> PositionEncoding:
    """The encoding of some positions; `learned` are their rows [positions, hidden], if the model has any."""
    return PositionEncoding(
        rotary=[_angles(rope, layers, positions) for rope, layers in _ropes(spec).items()],
        learned=None if learned is None else to_array(learned),
        slopes=to_array(alibi_slopes(spec.heads)) if spec.alibi else None,
    )


def _angles(rope: RopeSpec, layers: Sequence[int], positions: Sequence[int]) -> RotaryAngles:
    frequencies, magnitude = rope_frequencies(rope, torch.device("cpu"))
    # As the decoder rounds them, and only then turned back.
    angles = (torch.tensor(positions).float()[:, None] * frequencies).double()
    turned = torch.remainder(angles + math.pi, 2 * math.pi) - math.pi
    return RotaryAngles(layers=layers, magnitude=magnitude, frequencies=to_array(frequencies), angles=to_array(turned))


def _ropes(spec: DecoderSpec) -> dict[RopeSpec, list[int]]:
    """The layers that use each rotary embedding."""
    users: dict[RopeSpec, list[int]] = {}
    for layer, properties in enumerate(spec.layers):
        if properties.rope is not None:
            users.setdefault(properties.rope, []).append(layer)
    return users
