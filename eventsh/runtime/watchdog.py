"""See from outside that a call hangs: whoever hangs can't tell.

Timing each call would cost a clock twice for each event. So the loop's thread only writes down what it does, and a
thread of its own looks at that from time to time.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

__all__ = ["Stall", "Watchdog", "look_period"]

# How often to look, in parts of the timeout: a call is told of at most an eighth of it late. Not more often than
# 100 times a second, which would cost the handlers time, nor less than once a second, so that stopping is quick.
_LOOKS = 8
_MIN_PERIOD_S = 0.01
_MAX_PERIOD_S = 1.0

C = TypeVar("C")


class Stall(Generic[C]):
    """Tells when one and the same call is seen for too long, once for each call. Calls are told apart by ==."""

    def __init__(self) -> None:
        self._call: C | None = None
        self._since = 0.0
        self._told = False

    def look(self, call: C | None, now: float, timeout_s: float) -> float | None:
        """For how many seconds `call` has been seen, when it is time to tell."""
        if call is None or call != self._call:
            self._call = call
            self._since = now
            self._told = False
            return None
        seconds = now - self._since
        if self._told or seconds < timeout_s:
            return None
        self._told = True
        return seconds


def look_period(timeout_s: float) -> float:
    """How often to look for what may take `timeout_s`."""
    return min(max(timeout_s / _LOOKS, _MIN_PERIOD_S), _MAX_PERIOD_S)


class Watchdog:
    """A thread that calls `look` regularly until it is stopped. It never keeps a program from ending."""

    def __init__(self, look: Callable[[], None], period_s: float) -> None:
        self._look = look
        self._period_s = period_s
        self._stopped = threading.Event()
        self._pid = os.getpid()
        self._thread = threading.Thread(target=self._run, name="eventsh-watchdog", daemon=True)

    def start(self) -> None:
        """Begin to look. At the end of the process, when no thread can be started any more, there is no look."""
        with contextlib.suppress(RuntimeError):
            self._thread.start()

    def stop(self) -> None:
        """End the thread; it may still be looking for the last time. Idempotent."""
        # In a forked child there is no such thread, but there may be its hold on the event's lock.
        if os.getpid() == self._pid:
            self._stopped.set()

    def _run(self) -> None:
        while not self._stopped.wait(self._period_s):
            self._look()
