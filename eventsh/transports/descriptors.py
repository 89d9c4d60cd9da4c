"""The descriptors of connections and listeners: a forked child lets go of them, and they leave some for other files."""

from __future__ import annotations

import errno
import os

__all__ = ["check_reserve", "forget_descriptor", "note_descriptor"]

# Descriptors that connections leave to the files which a process opens while it serves: modules of plugins and of Python
# itself, recordings, sources for a traceback, shared memory. To import all modules before listening would not help those,
# and delay each start. Of a low limit the reserve is a quarter.
_RESERVE = 16

# The open descriptors of connections and listeners, each with the process that opened it.
_opened: dict[int, int] = {}


def note_descriptor(descriptor: int) -> None:
    """A forked child is to let go of this one."""
    _opened[descriptor] = os.getpid()


def forget_descriptor(descriptor: int) -> None:
    """It is about to be closed."""
    _opened.pop(descriptor, None)


def check_reserve(listener: int) -> None:
    """Check that the next connection leaves the reserve alone. Call it before each: a limit can be changed at any time.

    Raises:
        OSError: There are too few descriptors left.
    """
    # A new descriptor has the lowest free number. Negative: there is no limit.
    limit = os.sysconf("SC_OPEN_MAX")
    lowest = os.dup(listener)
    os.close(lowest)
    if 0 <= limit <= lowest + min(_RESERVE, limit // 4):
        raise OSError(
            errno.EMFILE,
            f"{lowest} of {limit} descriptors are open, and the others are kept for files: raise the limit (ulimit -n)",
        )


def _let_go_in_child() -> None:
    """In a forked child: let go of the parent's connections, or their peers would not see the parent's end before the
    child's, and of its listeners, or their ports would stay taken. Each number stays taken, by a file that does nothing:
    the parent's loop has left objects here that will close it, and by then it must not be somebody else's."""
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    for descriptor, pid in list(_opened.items()):
        if pid != os.getpid():
            os.dup2(null, descriptor, inheritable=False)
            del _opened[descriptor]
    os.close(null)


os.register_at_fork(after_in_child=_let_go_in_child)
