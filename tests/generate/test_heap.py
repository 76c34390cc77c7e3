"""The heap of the stage's process: how many arenas glibc makes for its threads."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

#: More threads than arenas, all of which hold a block at once; then glibc's own account of its arenas.
PROGRAM = """
import ctypes, sys, threading
from jobs.generate.heap import settle, trim
if sys.argv[1] == "settled":
    assert settle()
libc = ctypes.CDLL(None)
libc.malloc.restype = libc.fdopen.restype = ctypes.c_void_p
barrier = threading.Barrier(9)
def hold():
    libc.malloc(1000)
    barrier.wait()
    barrier.wait()
threads = [threading.Thread(target=hold) for _ in range(8)]
for thread in threads:
    thread.start()
barrier.wait()
stream = ctypes.c_void_p(libc.fdopen(1, b"w"))
libc.malloc_info(0, stream)
libc.fflush(stream)
barrier.wait()
for thread in threads:
    thread.join()
trim()
"""


def arenas(how: str) -> int:
    """How many there are in a process with eight threads."""
    done = subprocess.run([sys.executable, "-c", PROGRAM, how], capture_output=True, text=True, check=True, timeout=60)
    return done.stdout.count("<heap nr=")


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library has no arenas")
def test_threads_share_two_arenas() -> None:
    assert arenas("as it is") > 2
    assert arenas("settled") == 2
