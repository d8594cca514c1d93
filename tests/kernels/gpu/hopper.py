"""Plays a Hopper multiprocessor for kernels written in Gluon, for which Triton has no interpreter.

A kernel's Python source runs as it stands, on torch tensors. The groups of warps of a program are threads of which one
runs at a time; which one, and when copies and products that were started are done, is drawn at random. A kernel that
relies on an order which its barriers do not give therefore computes with old or unwritten memory, which is NaN, or
waits for ever, which is an error. Layouts of registers and shared memory mean nothing here; the compiler checks them.
"""

import random
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from types import FunctionType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from triton.experimental.gluon import language as gl

from kernels.gpu.launch import TARGETS, JitLauncher, Target

DTYPES = {gl.bfloat16: torch.bfloat16, gl.float16: torch.float16}


@dataclass(frozen=True, slots=True)
class HopperLauncher:
    """A `kernels.gpu.launch.Launcher` that plays Gluon kernels, and has Triton's interpreter run all others."""

    seed: int
    """Everything that is drawn at random depends on it alone."""
    target: Target = TARGETS["sm_90"]
    dependent: bool = False
    compiles_gluon: bool = True

    def __call__(
        self, kernel: Any, grid: tuple[int, ...], *arguments: object, num_warps: int, num_stages: int, **constants: Any
    ) -> None:
        if not is_gluon(kernel):
            JitLauncher(self.target)(kernel, grid, *arguments, num_warps=num_warps, num_stages=num_stages, **constants)
            return
        given = [_argument(x) for x in arguments]
        chosen = constants | {"OPERAND": DTYPES[constants["OPERAND"]]}
        for number, program in enumerate(product(*map(range, grid))):
            Machine(random.Random(f"{self.seed} {number}"), grid, program).bound(kernel)(*given, **chosen)


def _argument(x: object) -> object:
    """An argument as a kernel has it: a scalar is a tensor without dimensions."""
    if isinstance(x, Tensor):
        memory = x.as_strided((x.untyped_storage().nbytes() // x.itemsize,), (1,), 0)
        return Pointer(memory, torch.tensor(x.storage_offset()))
    return torch.tensor(x) if isinstance(x, int | float) else x


def is_gluon(kernel: Any) -> bool:
    """Whether a kernel, or anything else, is a function in Gluon."""
    return getattr(kernel, "is_gluon", bool)() is True


@dataclass(frozen=True, slots=True)
class Pointer:
    """A pointer, or a tile of pointers, to elements of `memory`."""

    memory: Tensor
    at: Tensor
    """Indices of elements."""

    def __add__(self, offset: Any) -> "Pointer":
        return Pointer(self.memory, self.at + offset)

    def __getitem__(self, index: Any) -> "Pointer":
        return Pointer(self.memory, self.at[index])


def load(pointer: Pointer, mask: Tensor | None = None, other: float = 0) -> Tensor:
    """The elements that are pointed to; `other` where there is a mask that is not true."""
    if mask is None:
        return pointer.memory[pointer.at]
    seen = pointer.memory[torch.where(mask, pointer.at, 0)]
    return torch.where(mask, seen, torch.tensor(other, dtype=seen.dtype))


def store(pointer: Pointer, value: Tensor, mask: Tensor) -> None:
    """Write elements where the mask is true."""
    at, wanted = pointer.at, mask.expand_as(value)
    pointer.memory[at[wanted]] = value[wanted]


class Barrier:
    """An mbarrier: its phase ends when it has been arrived at `count` times and all expected bytes have been copied."""

    def __init__(self) -> None:
        self.phase = 0
        self._count = 0
        self._missing = 0
        """Arrivals until the phase ends."""
        self._expected = 0
        """Bytes."""

    def init(self, count: int) -> None:
        self._count = self._missing = count

    def arrive(self, count: int = 1, expecting: int = 0) -> None:
        """Arrive `count` times, once `expecting` more bytes are expected."""
        self._missing -= count
        assert self._missing >= 0, "more arrivals than a phase has"
        self.copied(-expecting)

    def copied(self, size: int) -> None:
        """Expect `size` bytes less."""
        self._expected -= size
        if self._missing == 0 and self._expected == 0:
            self.phase, self._missing = self.phase + 1, self._count


@dataclass(frozen=True, slots=True)
class Barriers:
    """Barriers in shared memory."""

    all: list[Barrier]

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.all), 1

    def index(self, at: int) -> Barrier:
        return self.all[int(at)]


@dataclass(frozen=True, slots=True)
class Shared:
    """Shared memory of a machine, or a part of it."""

    data: Tensor
    machine: "Machine"

    @property
    def dtype(self) -> torch.dtype:
        return self.data.dtype

    def index(self, at: int) -> "Shared":
        return Shared(self.data[int(at)], self.machine)

    def slice(self, start: int, length: int) -> "Shared":
        return Shared(self.data[start : start + length], self.machine)

    def permute(self, order: Sequence[int]) -> "Shared":
        return Shared(self.data.permute(*order), self.machine)

    def load(self, _layout: object) -> Tensor:
        return self.data.clone()

    def store(self, value: Tensor) -> None:
        self.data.copy_(value)
        self.machine.warps.fenced = False


class Product:
    """A product that has been started, and is computed at some time before it is waited for."""

    def __init__(self, left: Shared | Tensor, right: Shared, sums: "Tensor | Product", use_acc: bool) -> None:
        self._operands = left, right
        self._sums = sums
        self._use_acc = use_acc
        self.value: Tensor

    def compute(self) -> None:
        left, right = (x.data.float() if isinstance(x, Shared) else x.float() for x in self._operands)
        sums = self._sums.value if isinstance(self._sums, Product) else self._sums
        self.value = left @ right + sums if self._use_acc else left @ right


class Stopped(BaseException):
    """Ends the thread of a group of warps, since another one has failed."""


class Warps:
    """A group of warps that does `work` on a thread of its own."""

    def __init__(self, work: Callable[[], object], running: float, computing: float) -> None:
        """`running` and `computing` are how often it goes on and has a product computed, beside others."""
        self.work, self.running, self.computing = work, running, computing
        self.turn = threading.Semaphore(0)
        self.ready: Callable[[], bool] = lambda: True
        """Whether it can go on."""
        self.products: list[Product] = []
        """Those that have not been computed, in their order."""
        self.fenced = True
        """Whether copies and tensor cores see all that it has stored to shared memory."""
        self.done = False
        self.failure: BaseException | None = None

    def compute(self) -> None:
        """Compute the first of the products."""
        self.products.pop(0).compute()


class Machine:
    """A multiprocessor that runs one program of a grid."""

    def __init__(self, chance: random.Random, grid: tuple[int, ...], program: tuple[int, ...]) -> None:
        self._chance = chance
        self._copies: list[Callable[[], None]] = []
        """Those that have been started."""
        self._copying = self._speed()
        self._yielded = threading.Semaphore(0)
        self._stopping = False
        self._local = threading.local()
        self._language = SimpleNamespace(
            **{name: getattr(torch, name) for name in ("int64", "float32", "exp2", "where")},
            **{name: lambda *_: None for name in ("SliceLayout", "BlockedLayout", "DotOperandLayout")},
            NVMMADistributedLayout=lambda *_: None,
            program_id=program.__getitem__,
            num_programs=grid.__getitem__,
            static_range=range,
            load=load,
            store=store,
            arange=lambda start, end, _layout: torch.arange(start, end),
            zeros=lambda shape, dtype, _layout: torch.zeros(shape, dtype=dtype),
            full=lambda shape, value, dtype, _layout: torch.full(shape, value, dtype=dtype),
            convert_layout=lambda value, _layout: value,
            minimum=lambda a, b: torch.minimum(torch.as_tensor(a), torch.as_tensor(b)),
            maximum=lambda a, b: torch.maximum(torch.as_tensor(a), torch.as_tensor(b)),
            max=lambda x, axis: x.amax(axis),
            sum=lambda x, axis: x.sum(axis),
            fma=lambda a, b, c: a * b + c,
            allocate_shared_memory=self._allocate,
            warp_specialize=self._specialize,
        )
        self._hopper = {
            "_copy": self._copy,
            "fence_async_shared": self._fence,
            "mbarrier": SimpleNamespace(
                MBarrierLayout=lambda: None,
                init=lambda barrier, count: barrier.init(count),
                expect=lambda barrier, size: barrier.arrive(expecting=size),
                arrive=self._arrive,
                wait=lambda barrier, parity: self._pause(lambda: barrier.phase & 1 != parity),
            ),
            "warpgroup_mma": self._start,
            "warpgroup_mma_wait": self._wait,
        }

    @property
    def warps(self) -> Warps:
        """The group of warps that is running."""
        running: Warps = self._local.warps
        return running

    def bound(self, kernel: Any) -> Callable[..., Any]:
        """The kernel's Python function, for which this machine is all that there is of a GPU."""
        names = {name: self._bind(name, value) for name, value in kernel.fn.__globals__.items()}
        return FunctionType(kernel.fn.__code__, names)

    def _bind(self, name: str, value: Any) -> Any:
        if name in ("gl", "tl"):
            return self._language
        if isinstance(value, gl.constexpr):
            return value.value
        if is_gluon(value):
            return lambda *arguments: self.bound(value)(*arguments)
        return self._hopper.get(name, value)

    def _specialize(self, works: Sequence[tuple[Callable[..., object], tuple[Any, ...]]], *_sizes: object) -> None:
        """Run groups of warps until all are done. Raises what one of them raises."""
        groups = [Warps(partial(work, *arguments), self._speed(), self._speed()) for work, arguments in works]
        threads = [threading.Thread(target=self._live, args=(group,)) for group in groups]
        for thread in threads:
            thread.start()
        try:
            while not all(group.done for group in groups):
                self._go_on(groups)
        finally:
            self._stopping = True
            for group, thread in zip(groups, threads, strict=True):
                group.turn.release()
                thread.join()
        assert not self._copies, "a copy that nobody has waited for"

    def _go_on(self, groups: Sequence[Warps]) -> None:
        """Let one group of warps go on, or finish one copy or one product: whichever is drawn."""
        possible: list[tuple[Callable[[], None], float]] = [
            *((partial(self._finish, copy), self._copying) for copy in self._copies),
            *((group.compute, group.computing) for group in groups if group.products),
            *((partial(self._resume, group), group.running) for group in groups if not group.done and group.ready()),
        ]
        assert possible, "all wait for one another"
        actions, speeds = zip(*possible, strict=True)
        self._chance.choices(actions, speeds)[0]()

    def _finish(self, copy: Callable[[], None]) -> None:
        self._copies.remove(copy)
        copy()

    def _resume(self, group: Warps) -> None:
        group.turn.release()
        self._yielded.acquire()
        if group.failure is not None:
            raise group.failure

    def _speed(self) -> float:
        """How often something is drawn, beside others: in some programs it is a hundred times slower than in others."""
        return float(10 ** self._chance.uniform(-2, 0))

    def _live(self, group: Warps) -> None:
        self._local.warps = group
        group.turn.acquire()
        try:
            if not self._stopping:
                group.work()
        except Stopped:
            pass
        except BaseException as failure:
            group.failure = failure
        group.done = True
        self._yielded.release()

    def _pause(self, ready: Callable[[], bool] = lambda: True) -> None:
        """Let others go on, until this group is `ready` and it is its turn again."""
        group = self.warps
        group.ready = ready
        self._yielded.release()
        group.turn.acquire()
        if self._stopping:
            raise Stopped

    def _allocate(self, dtype: torch.dtype, shape: Sequence[int], _layout: object) -> Shared | Barriers:
        if dtype == torch.int64:
            return Barriers([Barrier() for _ in range(shape[0])])
        return Shared(torch.full(shape, float("nan"), dtype=dtype), self)

    def _copy(self, source: Any, at: Sequence[int], barrier: Barrier, target: Shared) -> None:
        (row, column), (rows, columns) = at, source.block_shape
        assert 0 <= row <= source.shape[0] - rows
        assert 0 <= column <= source.shape[1] - columns
        target.data.fill_(float("nan"))  # None of it is there before all is.

        def finish() -> None:
            target.data.copy_(source.base[row : row + rows, column : column + columns])
            barrier.copied(target.data.numel() * target.data.itemsize)

        self._copies.append(finish)
        self._pause()

    def _arrive(self, barrier: Barrier, *, count: int) -> None:
        barrier.arrive(count)
        self._pause()

    def _fence(self) -> None:
        if hasattr(self._local, "warps"):
            self.warps.fenced = True

    def _start(
        self, left: Shared | Tensor, right: Shared, sums: Tensor | Product, *, is_async: bool, use_acc: bool = True
    ) -> Product:
        assert is_async
        assert self.warps.fenced, "the tensor cores do not see stores before a fence"
        started = Product(left, right, sums, use_acc)
        self.warps.products.append(started)
        self._pause()
        return started

    def _wait(self, most: int, *, deps: Sequence[Product]) -> Tensor | tuple[Tensor, ...]:
        """Compute all products but the last `most`; the values of `deps`."""
        products = self.warps.products
        self._pause(lambda: len(products) <= most)
        values = tuple(product.value for product in deps)
        return values[0] if len(values) == 1 else values
