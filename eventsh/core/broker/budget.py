"""Budget of one slot: the time in which its full queue may hold posters up.

Theory of operation. A worker that is slower than its load but moves would hold everybody up for as long as the load lasts:
each event that it handles makes room for one more. So the time with a full queue is spent from a budget, which refills at
REFILL of the time in which the queue is not full. Simulated for handlers of 0.5 to 50 ms, the others keep 0.96 of their
rate; to drop only what was full without a break, or since it was last half empty, kept 0.1 to 0.9.

The balance is settled whenever its rate changes, so it is exact whatever the interval of the broker's ticks. It can go
below zero when the drop comes late: the next time of holding posters up is shorter by that.
"""

from __future__ import annotations

__all__ = ["REFILL", "Budget"]

REFILL = 0.03
# What is left by a rounding of the clock's floats is nothing.
_NOTHING_S = 1e-6


class Budget:
    """Begins full and refilling. `limit_s` is the most that it holds; `now` is always seconds on one monotonic clock."""

    __slots__ = ("_at", "_left_s", "_rate", "limit_s")

    def __init__(self, limit_s: float, now: float) -> None:
        self.limit_s = limit_s
        self._left_s = limit_s
        # The change of `_left_s` in each second since `_at`.
        self._rate = REFILL
        self._at = now

    @property
    def is_refilling(self) -> bool:
        return self._rate > 0

    @property
    def empty_at(self) -> float:
        """When a budget that is being spent will be empty."""
        return self._at + self._left_s

    def is_empty(self, now: float) -> bool:
        self._change(self._rate, now)
        return self._left_s < _NOTHING_S

    def spend(self, now: float) -> None:
        """The queue is full, and posters wait for it."""
        self._change(-1.0, now)

    def rest(self, now: float) -> None:
        """The queue is full, and no poster waits for it."""
        self._change(0.0, now)

    def refill(self, now: float) -> None:
        """The queue has room."""
        self._change(REFILL, now)

    def use_up(self, now: float) -> None:
        """Take what is left: posters have waited for this slot for a whole `limit_s` in another way."""
        self._change(self._rate, now)
        self._left_s = min(self._left_s, 0.0)

    def _change(self, rate: float, now: float) -> None:
        self._left_s = min(self.limit_s, self._left_s + self._rate * (now - self._at))
        self._rate, self._at = rate, now
