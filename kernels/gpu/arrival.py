"""The last of several programs to finish continues with what all of them stored: one launch less, and no waiting.

Nobody waits for anybody, so that it holds whatever order the programs run in, and however many run at a time.
"""

from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor


@cache
def arrivals(count: int, device: torch.device) -> Tensor:
    """`count` counters for `last_to_arrive`, int32, on `device`: the same ones in every call.

    They are 0 before and after every kernel, so that no launch is needed to set them. Kernels that use them must not
    run at the same time. They are never freed, since captured graphs use them. Raises RuntimeError for a first call
    during a capture.
    """
    counters = torch.zeros(count, dtype=torch.int32, device=device)
    if device.type == "cuda":
        torch.cuda.current_stream(device).synchronize()  # Other streams may use them too.
    return counters


@triton.jit
def last_to_arrive(arrivals, count, HIP: tl.constexpr, mask=None):
    """Whether this program is the last of `count` that call this; what all of them stored before is then visible.

    `arrivals` points to an int32 that is 0 before the first one arrives, and again once the last one has. A program may
    arrive at several counters at once: then `arrivals`, `count` and the result are [threads of the program], and it
    arrives only where `mask`, of the same shape, is true. With fewer counters than threads, AMD's compiler gives some
    of the threads no result. HIP is whether the chip is AMD's.

    The first barrier orders the stores of all the program's threads before the atomic operation, which one thread does
    for each counter. It releases them to the whole chip and, for the last program, acquires those of the others; the
    second barrier passes on to the program's other threads what it has acquired.
    """
    if HIP:
        # AMD's barrier lets other waves' stores be on their way still, and a release waits for its own wave's alone.
        tl.inline_asm_elementwise("s_waitcnt vmcnt(0)", "=v", [], dtype=tl.int32, is_pure=False, pack=1)
    tl.debug_barrier()
    before = tl.atomic_add(arrivals, 1, mask=mask, sem="acq_rel", scope="gpu")  # Shape of arrivals.
    last = before == count - 1  # Shape of arrivals.
    if mask is not None:
        last &= mask
    tl.store(arrivals, 0, mask=last)
    tl.debug_barrier()
    return last
