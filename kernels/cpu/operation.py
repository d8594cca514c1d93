"""An operation: a compiled function that does any one of the chunks that its work is cut into.

Its signature is (record, chunk, scratch) -> int64. The record is the address of its arguments, `WORDS` integers;
scratch is memory of the calling thread's own. Asked for the chunk -1, it does nothing and returns how many there are.
What runs operations, on which threads, is not known here.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

from numba import cfunc, config, types

from kernels.cpu.instructions import FLAGS

WORDS = 24
"""int64 numbers in a record."""
SCRATCH_BYTES = 1 << 20
"""What an operation may use of a thread's scratch memory."""

_SIGNATURE = types.int64(types.int64, types.int64, types.int64)


@dataclass(frozen=True, slots=True)
class Operation:
    """A compiled operation. It keeps the machine code alive that `address` is the start of."""

    address: int
    compiled: Any


def operation(function: Callable[[int, int, int], int]) -> Operation:
    """Compile an operation, or load what an earlier process compiled."""
    compiled = compile_cached(_SIGNATURE, function)
    return Operation(compiled.address, compiled)


def compile_cached(signature: Any, function: Callable[..., int]) -> Any:
    """Compile a C function, or load what an earlier process compiled; without a place to keep it, compile anew."""
    return cfunc(signature, cache=_cache_folder(), nopython=True, fastmath=FLAGS, error_model="numpy")(function)


@cache
def _cache_folder() -> bool:
    """Tell Numba where compiled code is kept: NUMBA_CACHE_DIR, or else the user's cache; whether that can be written.

    Numba knows by a file's time that it changed, and nothing of what the file imports: here each state of the sources
    has a folder of its own.
    """
    sources = sha256(b"".join(path.read_bytes() for path in sorted(Path(__file__).parent.glob("*.py"))))
    root = os.environ.get("NUMBA_CACHE_DIR") or os.path.expanduser("~/.cache/headlight/kernels")
    folder = Path(root, sources.hexdigest()[:16])
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    config.CACHE_DIR = str(folder)
    return os.access(folder, os.W_OK)
