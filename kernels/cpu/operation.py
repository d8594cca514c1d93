"""Operations: compiled functions whose work is divided into chunks that any thread may compute.

The signature is (arguments, chunk, scratch) -> int64. `arguments` is the address of the arguments, up to `WORDS`
integers; `chunk` is the index of the chunk to compute; `scratch` is the address of the calling thread's own memory. For
chunk -1 an operation computes nothing, and returns its number of chunks. `program.py` runs operations.
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
"""Number of int64 words in an operation's arguments."""
SCRATCH_BYTES = 1 << 20
"""Bytes of scratch memory that each thread has for operations."""

_SIGNATURE = types.int64(types.int64, types.int64, types.int64)


@dataclass(frozen=True, slots=True)
class Operation:
    """A compiled operation. `address` is the start of its machine code, which `compiled` keeps alive."""

    address: int
    compiled: Any


def operation(function: Callable[[int, int, int], int]) -> Operation:
    """Compile an operation, or load its machine code from the cache."""
    compiled = compile_cached(_SIGNATURE, function)
    return Operation(compiled.address, compiled)


def compile_cached(signature: Any, function: Callable[..., int]) -> Any:
    """Compile a function with C's calling convention, or load its machine code from the cache if there is one."""
    return cfunc(signature, cache=_cache_folder(), nopython=True, fastmath=FLAGS, error_model="numpy")(function)


@cache
def _cache_folder() -> bool:
    """Set Numba's folder for compiled code, in NUMBA_CACHE_DIR or else in the user's cache; whether it is writable.

    Numba recompiles a function if its own file is newer, but not if an imported file is. Each version of the sources
    therefore has a folder of its own.
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
