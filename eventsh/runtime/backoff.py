"""When a process that died is started again, and when that is no use. The clock is passed in."""

from __future__ import annotations

from collections import deque

__all__ = ["MAX_RESTARTS", "Backoff"]

BACKOFF_FIRST_S = 0.1
BACKOFF_LAST_S = 5.0
# Whoever was ready for this long is healthy: its next death starts from the shortest delay again.
RUN_WELL_S = 1.0
# No slot is restarted more often than this while it does not run well, and a slot that did not become ready even then
# is given up.
MAX_RESTARTS = 5
RESTART_WINDOW_S = 10.0


class Backoff:
    """The deaths in one place of the pool, and what follows from them."""

    def __init__(self) -> None:
        self.failed_starts = 0
        self._deaths = 0
        self._restarts: deque[float] = deque(maxlen=MAX_RESTARTS)

    @property
    def exhausted(self) -> bool:
        """Whether every restart that is allowed has ended before it was ready."""
        return self.failed_starts > MAX_RESTARTS

    def forgive(self) -> None:
        """Take the last death back: an event killed the process, which had started well."""
        self.failed_starts = 0
        self._deaths = max(self._deaths - 1, 0)
        if self._restarts:
            self._restarts.pop()

    def delay_s(self, now: float, ready_at: float | None, *, is_short: bool = False) -> float:
        """A process has died `now` that was ready since `ready_at`, or never. `is_short`: the host had no descriptor or memory
        left to start it, which says nothing of the program and is no reason to give up."""
        if ready_at is not None and now - ready_at >= RUN_WELL_S:
            self._deaths = 0
            self._restarts.clear()
        if not is_short:
            self.failed_starts = self.failed_starts + 1 if ready_at is None else 0
        delay_s: float = min(BACKOFF_FIRST_S * 2 ** min(self._deaths, 16), BACKOFF_LAST_S)
        if len(self._restarts) == MAX_RESTARTS:
            delay_s = max(delay_s, self._restarts[0] + RESTART_WINDOW_S - now)
        self._deaths += 1
        self._restarts.append(now + delay_s)
        return delay_s
