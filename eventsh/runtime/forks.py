"""Forks that Python does not see: a server written in C forks its workers without Python's hooks.

The child then has the parent's objects and none of its threads. Memory that the kernel empties in every forked child
shows it without a system call for each look; where there is none, `os.getpid` shows it at the next wait.
"""

from __future__ import annotations

import mmap
import sys
from collections.abc import Callable

__all__ = ["call_in_uwsgi_workers", "is_before_uwsgi_forks", "new_fork_flag"]

# From linux/mman.h, since Linux 4.14; Python's mmap has no name for it.
_MADV_WIPEONFORK = 18


def new_fork_flag() -> bytearray | memoryview[bool]:
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


def is_before_uwsgi_forks() -> bool:
    """Whether uWSGI loads the application here, and calls its post-fork hook for the process that is going to run it.

    A bus that was attached here would be one of the master's: it takes events that are meant for workers, and its thread
    may hold any lock while uWSGI forks, in C.
    """
    uwsgi = sys.modules.get("uwsgi")
    return uwsgi is not None and not (uwsgi.worker_id() or uwsgi.mule_id() or uwsgi.i_am_the_spooler())


def call_in_uwsgi_workers(function: Callable[[], None]) -> None:
    """Call `function` in each worker, mule and spooler that uWSGI starts from now on, after the hook that is set already."""
    uwsgi = sys.modules["uwsgi"]
    hook, spooler = getattr(uwsgi, "post_fork_hook", None), getattr(uwsgi, "spooler", None)
    try:
        # Its import replaces the hook by a list of hooks, and the spooler. If it came after ours, ours would be lost.
        import uwsgidecorators
    except Exception:  # noqa: BLE001 - without a master process it raises a plain one

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
