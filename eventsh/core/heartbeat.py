"""Whether the peer of a connection is still there: the rule of heartbeats, for one connection.

Without a sign of life for one interval the peer is asked for one, and without an answer it counts as gone before three
are over. Any byte that comes is a sign, and so is any that leaves: a large frame on a slow way keeps an answer waiting.
Knows no clock and no connection.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum

__all__ = ["Beat", "Heartbeat"]

# A sign is noticed up to one check late, and so is the end of patience: 2.25 intervals and two quarters are below three.
_CHECKS = 4
_PATIENCE = 2.25
# A look that comes this much later than it should tells of our own standstill: a stopped process, a busy loop.
_LATE = 2


class Beat(Enum):
    """What to do after a look at a connection."""

    NOTHING = "nothing"
    ASK = "ask"
    GIVE_UP = "give up"


class Heartbeat:
    """`signs` gives how many bytes have come so far, and how many wait to leave."""

    __slots__ = ("_asked", "_checked_at", "_heard_at", "_interval_s", "_received", "_signs", "_unsent", "check_s")

    def __init__(self, interval_s: float, signs: Callable[[], tuple[int, int]], now: float) -> None:
        self.check_s = interval_s / _CHECKS
        self._interval_s = interval_s
        self._signs = signs
        self._received, self._unsent = signs()
        self._heard_at = self._checked_at = now
        self._asked = False

    def check(self, now: float) -> Beat:
        """Look for signs of life. To be called every `check_s`, or more often."""
        passed_s = now - self._checked_at
        if passed_s > _LATE * self.check_s:
            # While nobody looked, nobody was asked. The time does not count against the peer.
            self._heard_at += passed_s - self.check_s
        self._checked_at = now
        received, unsent = self._signs()
        if received != self._received or unsent < self._unsent:
            self._heard_at = now
            self._asked = False
        self._received, self._unsent = received, unsent
        silent_s = now - self._heard_at
        if silent_s >= _PATIENCE * self._interval_s:
            return Beat.GIVE_UP
        if silent_s >= self._interval_s and not self._asked:
            self._asked = True
            return Beat.ASK
        return Beat.NOTHING
