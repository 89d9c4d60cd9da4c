"""Which open descriptors belong to connections and listeners of this process, so that a forked child lets go of them."""

from __future__ import annotations

import os

__all__ = ["forget_descriptor", "note_descriptor"]

# The open descriptors of connections and listeners, each with the process that opened it.
_opened: dict[int, int] = {}


def note_descriptor(descriptor: int) -> None:
    """A forked child is to let go of this one."""
    _opened[descriptor] = os.getpid()


def forget_descriptor(descriptor: int) -> None:
    """It is about to be closed."""
    _opened.pop(descriptor, None)


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
