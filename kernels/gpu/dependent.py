"""Programmatic dependent launch: a kernel's programs are on the chip before the kernel that they wait for has ended.

A decoding step is hundreds of kernels that take microseconds each, and from the end of one to the first instruction of
the next, a launch takes about half of one. Here the next kernel is launched as soon as all programs of this one run.
"""

import triton
import triton.language as tl


@triton.jit
def wait_for_kernels_before(DEPENDENT: tl.constexpr):
    """Wait until all kernels before this one have ended and their stores are visible; then let the next one launch.

    DEPENDENT is `Launcher.dependent`. Without it a kernel is launched only after the ones before, so nothing is done.

    Every program must call this once, and before the call it may read nothing but weights, and write nothing. The
    hardware waits for one kernel, the last; that all earlier ones have ended too follows from that one's own wait. At
    most two kernels are therefore on the chip at a time, and memory is used again as if they ran one after another.
    """
    if DEPENDENT:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
