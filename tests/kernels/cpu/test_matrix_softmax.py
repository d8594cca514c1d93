"""The softmax of attention by the matrix unit, against the same in float64."""

import numpy as np
import pytest
from numba import njit
from numpy.typing import NDArray

from kernels.cpu.attention_memory import DEPTH, KEYS
from kernels.cpu.matrix_softmax import LANES, NARROW, soften
from kernels.cpu.target import matrix_unit

pytestmark = pytest.mark.skipif(not matrix_unit(), reason="this CPU has no matrix unit")

LEAST = 2.0**-126


@njit
def _soften(columns: int, scores: int, steps: int, hides: int, bounds: int, state: int, weights: int) -> None:
    soften(1, columns, scores, steps, 0, hides, np.float32(0), bounds, state, 4 * LANES, weights)


def softened(
    scores: NDArray[np.float32], peaks: NDArray[np.float32], seen: NDArray[np.int32] | None = None
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The rows' peak, mass and shrink [3, columns], and weights [columns, keys], of scores [keys, columns].

    Peaks [columns] are those before, and masses begin with 0. Each row sees the keys before its number in `seen`.
    """
    keys, columns = scores.shape
    state, bounds = np.zeros((3, LANES), np.float32), np.zeros((3, LANES), np.int32)
    state[0, :columns] = peaks
    if seen is not None:
        bounds[1, :columns] = seen
    weights = np.zeros((columns, KEYS), np.uint16)
    made = np.ascontiguousarray(scores)
    places = [array.ctypes.data for array in (bounds, state, weights)]
    _soften(columns, made.ctypes.data, keys // DEPTH, int(seen is not None), *places)
    return state[:, :columns], (weights[:, :keys].astype(np.uint32) << 16).view(np.float32)


@pytest.mark.parametrize("columns", [NARROW, LANES])
@pytest.mark.parametrize("keys", range(DEPTH, KEYS + 1, DEPTH))
@pytest.mark.parametrize("spread", [0.1, 3.0, 40.0])
def test_weights_and_masses_are_exponentials_and_their_sums(columns: int, keys: int, spread: float) -> None:
    chance = np.random.default_rng(keys + columns)
    scores = (spread * chance.standard_normal((keys, columns))).astype(np.float32)
    before = (spread * chance.standard_normal(columns)).astype(np.float32)
    (peak, mass, shrink), weights = softened(scores, before)
    assert np.array_equal(peak, np.maximum(before, scores.max(0)))
    x = scores.astype(np.float64) - peak
    exact = np.exp(x)
    np.testing.assert_allclose(mass, exact.sum(0), rtol=1e-6, atol=KEYS * LEAST)
    np.testing.assert_allclose(weights.T, exact, rtol=2.0**-8, atol=LEAST)
    fade = before.astype(np.float64) - peak
    np.testing.assert_allclose(shrink, np.exp(fade), rtol=2e-7 + 6e-8 * np.abs(fade).max(), atol=LEAST)


def test_a_hidden_key_has_the_least_weight_and_changes_no_mass() -> None:
    scores = np.random.default_rng(0).standard_normal((KEYS, LANES)).astype(np.float32)
    seen = np.arange(1, 1 + 4 * LANES, 4, dtype=np.int32)
    start = np.full(LANES, -1e38, np.float32)
    (peak, mass, _), weights = softened(scores, start, seen)
    for row, end in enumerate(seen):
        alone = np.where(np.arange(KEYS) < end, scores[:, row], -np.inf).astype(np.float32)
        assert peak[row] == alone.max()
        assert weights[row, end:].max(initial=0) <= LEAST
        exact = np.exp(alone[:end].astype(np.float64) - peak[row]).sum()
        assert mass[row] == pytest.approx(exact, rel=1e-6)
