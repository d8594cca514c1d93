"""The last of several programs to finish continues with what all of them stored: one launch less, and no waiting.

Nobody waits for anybody, so that it holds whatever order the programs run in, and however many run at a time.
"""

import triton
import triton.language as tl


@triton.jit
def last_to_arrive(arrivals, count):
    """Whether this program is the last of `count` that call this; what all of them stored before is then visible.

    `arrivals` points to an int32 that an earlier launch has set to 0.

    The barrier orders the stores of all the program's threads before the atomic operation, which one thread does. It
    releases them to the whole chip and, for the last program, acquires those of the others; its result reaches the
    program's other threads over a barrier too.
    """
    tl.debug_barrier()
    return tl.atomic_add(arrivals, 1, sem="acq_rel", scope="gpu") == count - 1
