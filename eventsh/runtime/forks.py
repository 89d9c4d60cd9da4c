"""Forks that Python does not see: a server written in C forks its workers without Python's hooks.

The child then has the parent's objects and none of its threads. Memory that the kernel empties in every forked child
shows it without a system call for each look; where there is none, `os.getpid` shows it at the next wait.
"""

from __future__ import annotations

import mmap
import sys

__all__ = ["new_fork_flag"]

# From linux/mman.h, since Linux 4.14; Python's mmap has no name for it.
_MADV_WIPEONFORK = 18


def new_fork_flag() -> bytearray | memoryview:
    """One byte, 0 at first, that is 0 again in every forked child, however that was forked (on Linux)."""
    if sys.platform == "linux":
        page = mmap.mmap(-1, mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        try:
            page.madvise(_MADV_WIPEONFORK)
        except OSError:
            page.close()
        else:
            # Reading a view of this format takes half as long as reading the map itself.
            return memoryview(page).cast("?")[:1]
    return bytearray(1)
