"""Memory given back: pages of files leave, what was written stays, and libraries go on to work."""

import ctypes
import mmap
import re
import subprocess
import sys
from pathlib import Path

import pytest

from service.processes import free_memory
from service.processes.free_memory import MAPPINGS, return_free_memory

pytestmark = pytest.mark.skipif(not MAPPINGS.exists(), reason="only Linux tells of a process's mappings")

SIZE = 2**20
AFTER_TORCH = """
import re, torch
from service.processes.free_memory import return_free_memory

def megabytes():
    return int(re.search(r"RssFile:\\s+(\\d+)", open("/proc/self/status").read())[1]) / 1024

before = megabytes()
return_free_memory()
print(before - megabytes())
assert torch.equal(torch.eye(3) @ torch.ones(3, 3), torch.ones(3, 3))
"""

LARGE_PIECES = """
import ctypes, re, sys
from service.processes.free_memory import LARGE_BYTES, return_large_pieces_at_once

def kilobytes():
    return int(re.search(r"RssAnon:\\s+(\\d+)", open("/proc/self/status").read())[1])

if sys.argv[1] == "at once":
    return_large_pieces_at_once()
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
# The allocator learns from the first free piece that pieces of its size are not worth a call.
libc.free(ctypes.c_void_p(libc.malloc(ctypes.c_size_t(16 << 20))))
before = kilobytes()
pieces = [libc.malloc(ctypes.c_size_t(LARGE_BYTES)) for _ in range(160)]
for piece in pieces:
    ctypes.memset(piece, 1, LARGE_BYTES)
for piece in pieces[:-1]:
    libc.free(ctypes.c_void_p(piece))
print(kilobytes() - before)
"""


def resident(path: Path) -> int:
    """The resident bytes of a file's mappings in this process."""
    mappings = [text for text in re.split(r"\n(?=[0-9a-f]+-)", MAPPINGS.read_text()) if str(path) in text]
    return sum(1024 * int(re.findall(r"Rss: +(\d+)", text)[0]) for text in mappings)


def protect(mapped: mmap.mmap) -> None:
    """Forbid writing, as a loader of libraries does once it has written their relocations."""
    address = ctypes.addressof(ctypes.c_char.from_buffer(mapped))
    assert ctypes.CDLL(None).mprotect(ctypes.c_void_p(address), ctypes.c_size_t(SIZE), mmap.PROT_READ) == 0


def test_pages_of_a_file_leave_and_come_back(tmp_path: Path) -> None:
    path = tmp_path / "library"
    path.write_bytes(b"x" * SIZE)
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        assert mapped[:].count(b"x") == SIZE
        assert resident(path) == SIZE
        return_free_memory()
        assert resident(path) == 0
        assert mapped[:].count(b"x") == SIZE


def test_written_pages_stay_though_they_can_only_be_read_now(tmp_path: Path) -> None:
    path = tmp_path / "library"
    path.write_bytes(b"x" * SIZE)
    with path.open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        mapped[100:108] = b"relocate"
        protect(mapped)
        return_free_memory()
        assert mapped[96:112] == b"xxxxrelocatexxxx"


def test_torchs_libraries_leave_and_go_on_to_work() -> None:
    done = subprocess.run([sys.executable, "-c", AFTER_TORCH], capture_output=True, text=True, check=True)
    assert float(done.stdout) > 30


@pytest.mark.parametrize(("when", "kept"), [("at once", False), ("later", True)])
def test_large_pieces_are_given_back_at_once(when: str, kept: bool) -> None:
    done = subprocess.run([sys.executable, "-c", LARGE_PIECES, when], capture_output=True, text=True, check=True)
    assert (int(done.stdout) > 10_000) == kept


def test_a_system_without_the_account_gives_back_what_it_can(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(free_memory, "MAPPINGS", Path("/nowhere"))
    return_free_memory()
