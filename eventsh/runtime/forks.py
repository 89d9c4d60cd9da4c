"""Forks that Python does not see: a server written in C forks its workers without Python's hooks.

The child then has the parent's objects and none of its threads. Memory that the kernel empties in every forked child
shows it without a system call for each look; where there is none, `os.getpid` shows it at the next wait.
"""

from __future__ import annotations

import mmap
import os
import sys
from collections.abc import Callable

__all__ = ["call_in_children", "call_in_uwsgi_workers", "new_fork_flag"]

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


def call_in_children(function: Callable[[], None]) -> None:
    """Call `function` in every child that this process forks by `os.fork`, and in each that uWSGI forks."""
    os.register_at_fork(after_in_child=function)
    if "uwsgi" in sys.modules:
        call_in_uwsgi_workers(function)


def call_in_uwsgi_workers(function: Callable[[], None]) -> None:
    """Call `function` in each worker, mule and spooler that uWSGI forks from now on, after the hook that is set already."""
    uwsgi = sys.modules["uwsgi"]
    hook, spooler = getattr(uwsgi, "post_fork_hook", None), getattr(uwsgi, "spooler", None)
    try:
        # Its import replaces the one hook that there is by a list of hooks, and the spooler. After ours, it would lose it.
        import uwsgidecorators
    except Exception:
        # Not installed, or refused because there is no master process.

        def call_both() -> None:
            if hook is not None:
                hook()
            function()

        uwsgi.post_fork_hook = call_both  # type: ignore[attr-defined]
        return
    if spooler is not None:
        uwsgi.spooler = spooler  # type: ignore[attr-defined]
    if hook is not None and hook is not uwsgidecorators.postfork_chain_hook:
        uwsgidecorators.postfork_chain.append(hook)
        uwsgi.post_fork_hook = uwsgidecorators.postfork_chain_hook  # type: ignore[attr-defined]
    uwsgidecorators.postfork_chain.append(function)
