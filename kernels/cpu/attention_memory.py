"""The tiles of attention: their sizes, and the scratch memory that they take."""

from kernels.cpu.cache_forms import BFLOAT16
from kernels.cpu.target import CONFIGURATION_BYTES, REGISTER_ROWS, matrix_unit, register_floats

LANES = register_floats()
"""Float32 numbers in a register."""
KEYS = 64
"""Keys in a tile, and in one step of the online softmax."""
ROWS = 96
"""Rows in a tile, as far as whole tokens fit: each is one token's query of one head; all share the keys read."""
PLACES_BYTES = 2 * 8 * KEYS
"""Bytes of the addresses of a tile's keys and values."""
DEPTH = 32
"""Bfloat16 numbers in a row of a register of the matrix unit, which multiplies and adds them in pairs."""
BLOCK = DEPTH if matrix_unit() else 16
"""Tokens in a block of the KV cache, unless another number is asked for."""
PARTS = KEYS // REGISTER_ROWS
"""Parts of a tile's keys, each of which fills such a register."""
STEPS = KEYS // DEPTH
"""Parts of a tile's values, each of which fills such a register in pairs."""
PRODUCT_BYTES = 4 * KEYS
"""Bytes of a row's products with a tile's keys."""


def serves(stored: int, dim: int, block: int) -> bool:
    """Whether there is a matrix unit that can attend with heads of `dim` over a cache in blocks of `block` tokens.

    `stored` is the cache's form. The unit wants the values of every two tokens number beside number: such a cache has
    them as [blocks, block / 2, kv_heads, dim, 2].
    """
    suitable = stored == BFLOAT16 and dim % DEPTH == 0 and block % DEPTH == 0
    return suitable and matrix_unit()


def scratch_bytes(dim: int, group: int) -> int:
    """Bytes of scratch memory that attention needs, with heads of `dim` and `group` query heads for each KV head."""
    width = -(-dim // LANES) * LANES
    rows = max(ROWS, group) + REGISTER_ROWS
    heads_own = ROWS // REGISTER_ROWS * unit_bytes(dim, REGISTER_ROWS)
    own = max(4 * KEYS * (dim + width), unit_bytes(dim, rows), heads_own)
    return 2 * PLACES_BYTES + 4 * rows * (6 + dim + width + KEYS) + own


def unit_bytes(dim: int, rows: int) -> int:
    """Bytes that a tile of `rows` (a multiple of REGISTER_ROWS) needs where the matrix unit multiplies."""
    return 2 * CONFIGURATION_BYTES + rows * (2 * dim + PRODUCT_BYTES + 2 * KEYS) + 2 * dim * DEPTH


def scratch_bytes_of_weights(dim: int) -> int:
    """Bytes of scratch memory that computing attention weights needs, with heads of `dim`."""
    return PLACES_BYTES + 4 * KEYS * dim + 4 * ROWS * (dim + KEYS + 1)
