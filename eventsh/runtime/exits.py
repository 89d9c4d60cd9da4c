"""Raise a KeyboardInterrupt or SystemExit of a handler in the main thread, where the program expects it.

Theory of operation: only a signal wakes a main thread that sleeps or waits, and only the Python function that handles it can
raise there. For KeyboardInterrupt that is the program's own handler of SIGINT. For SystemExit, whose status must arrive, it is
one of SIGURG: nothing sends it by itself, and where this handler is not installed it is ignored.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import FrameType

__all__ = ["prepare_exits", "raise_exit"]

_pending: deque[BaseException] = deque()


def prepare_exits() -> None:
    """Install the handler of SIGURG, unless the program has one. Has no effect in another thread than the main one."""
    # In a subinterpreter there are no signals.
    with contextlib.suppress(ValueError):
        if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGURG) is signal.SIG_DFL:
            signal.signal(signal.SIGURG, _raise_pending)


def raise_exit(error: BaseException) -> None:
    """Raise `error` in the main thread: here, if this is it, else from a signal handler there. In any thread.

    Where the program has its own handler of SIGURG, or none could be installed, SystemExit becomes a KeyboardInterrupt.
    """
    main = threading.main_thread()
    if threading.current_thread() is main:
        raise error
    is_ours = signal.getsignal(signal.SIGURG) is _raise_pending
    by_sigint = callable(signal.getsignal(signal.SIGINT))
    if main.ident is None or not main.is_alive() or not (is_ours or by_sigint):
        return
    if by_sigint and (issubclass(type(error), KeyboardInterrupt) or not is_ours):
        signal.pthread_kill(main.ident, signal.SIGINT)
    else:
        _pending.append(error)
        signal.pthread_kill(main.ident, signal.SIGURG)


def _raise_pending(number: int, frame: FrameType | None) -> None:
    # Other causes than `raise_exit` are none of ours.
    if _pending:
        raise _pending.popleft()
