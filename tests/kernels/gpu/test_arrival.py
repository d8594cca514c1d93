"""The last program to arrive: exactly one at each counter, which sees what all have stored, launch after launch."""

import torch
import triton
import triton.language as tl

from kernels.gpu.arrival import arrivals, last_to_arrive
from kernels.gpu.launch import device_target

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
TARGET = device_target(DEVICE)
WARPS = 4
THREADS = WARPS * TARGET.warp_size
HIP = TARGET.backend == "hip"
PROGRAMS, WIDTH = 300, 512


@triton.jit
def _sum_at_one(stored, counter, out, times, WIDTH: tl.constexpr, PROGRAMS: tl.constexpr, HIP: tl.constexpr):
    """The last program adds up, times the launch's number, what all of them have stored."""
    at = tl.arange(0, WIDTH)
    tl.store(stored + tl.program_id(0) * WIDTH + at, (tl.program_id(0) + at) * times)
    if last_to_arrive(counter, tl.num_programs(0), HIP):
        total = tl.zeros([WIDTH], tl.int32)
        for program in range(PROGRAMS):
            total += tl.load(stored + program * WIDTH + at)
        tl.store(out + at, total)


@triton.jit
def _lasts_at_many(counters, programs, times_last, THREADS: tl.constexpr, HIP: tl.constexpr):
    """Program p arrives at the counters c that p + c is a multiple of 3 of; of each, one program is the last."""
    at = tl.arange(0, THREADS)
    there = (tl.program_id(0) + at) % 3 == 0
    # How many of the programs arrive at a counter.
    first = (3 - at % 3) % 3
    last = last_to_arrive(counters + at, (programs - first + 2) // 3, HIP, there)
    tl.atomic_add(times_last + at, last.to(tl.int32), mask=there)


def test_the_last_sees_what_all_stored_in_every_launch() -> None:
    stored = torch.empty(PROGRAMS, WIDTH, dtype=torch.int32, device=DEVICE)
    (counter,) = arrivals(1, DEVICE).split(1)
    for times in range(1, 4):
        out = torch.full((WIDTH,), -1, dtype=torch.int32, device=DEVICE)
        stored.fill_(-7)
        _sum_at_one[(PROGRAMS,)](stored, counter, out, times, WIDTH=WIDTH, PROGRAMS=PROGRAMS, HIP=HIP, num_warps=WARPS)
        expected = times * (PROGRAMS * (PROGRAMS - 1) // 2 + PROGRAMS * torch.arange(WIDTH))
        assert torch.equal(out.cpu(), expected.int())
        assert not counter.any()


def test_one_program_is_the_last_at_each_of_many_counters() -> None:
    counters = arrivals(THREADS, DEVICE)
    for launches in range(1, 4):
        times_last = torch.zeros(THREADS, dtype=torch.int32, device=DEVICE)
        for _ in range(launches):
            _lasts_at_many[(PROGRAMS,)](counters, PROGRAMS, times_last, THREADS=THREADS, HIP=HIP, num_warps=WARPS)
        assert (times_last == launches).all()
        assert not counters.any()


def test_counters_are_the_same_in_every_call() -> None:
    """A captured graph has their address."""
    assert arrivals(5, DEVICE) is arrivals(5, DEVICE)
    assert arrivals(5, DEVICE) is not arrivals(6, DEVICE)
