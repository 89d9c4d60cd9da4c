"""When each event of a replay is due, and how late it was. Pure: the time is passed in."""

from __future__ import annotations

from math import ceil, log

__all__ = ["Lateness", "Pace"]

# A row of counters in place of every value: each is wider than the one before by this factor, so a percentile is at most so
# much too high.
_FACTOR = 1.05
_LEAST_S = 1e-6

# Stamps are wall-clock times, and people set those. A longer step forward than this is taken for that: nobody waits a day
# in a replay. A longer step back starts anew from there; after a shorter one, time stands still until it has caught up.
_MOST_PAUSE_S = 86400.0
_MOST_STEP_BACK_S = 1.0


class Pace:
    """Deadlines by an absolute clock, so that no lateness adds up.

    `speed` 1.0 is as recorded, None as fast as can be. With `rate` events are due at even distances whatever was recorded.
    Longer pauses than `max_gap_s`, of the recording's time, are shortened to that; without it, those of more than a day to
    nothing.
    """

    def __init__(self, speed: float | None = 1.0, rate: float | None = None, max_gap_s: float | None = None) -> None:
        self.rate = rate
        self.speed = None if rate is not None else speed
        self._max_gap_s = max_gap_s
        # What is due at `_anchor_s`, in seconds of the recording (or in events, with a rate).
        self._anchor_s: float | None = None
        self._anchor_at = 0.0
        self._at = 0.0
        # That of the piece which was asked for last.
        self._place = 0.0
        self._last_ns: int | None = None
        self._events = 0

    @property
    def position_s(self) -> float:
        """How far it is, in seconds of the recording, without what was shortened."""
        return self._at

    def due(self, time_ns: int, count: int, now: float) -> float | None:
        """When `count` events of this recorded time are due; None: now."""
        gap_s = 0.0 if self._last_ns is None else (time_ns - self._last_ns) / 1e9
        if gap_s > 0.0 and self._max_gap_s is not None:
            self._at += min(gap_s, self._max_gap_s)
        elif 0.0 < gap_s <= _MOST_PAUSE_S:
            self._at += gap_s
        if self._last_ns is None or not -_MOST_STEP_BACK_S <= gap_s <= 0.0:
            self._last_ns = time_ns
        self._place = place = float(self._events) if self.rate is not None else self._at
        self._events += count
        pace = self.rate if self.rate is not None else self.speed
        if self._anchor_s is None:
            self._anchor_s, self._anchor_at = place, now
        return None if pace is None else self._anchor_at + (place - self._anchor_s) / pace

    def restart(self, now: float) -> None:
        """Another round of the same recording follows: its first event is due now."""
        self._last_ns = None
        self._anchor_s = None
        self._at = 0.0

    def shift(self, seconds: float) -> None:
        """It was paused for so long."""
        self._anchor_at += seconds

    def change(self, factor: float, due: float, now: float) -> float:
        """Go on faster or slower from here: gives when the piece is due now that was due at `due`."""
        self._anchor_s = self._place
        self._anchor_at = due = now + max(0.0, due - now) / factor
        if self.rate is not None:
            self.rate *= factor
        elif self.speed is not None:
            self.speed *= factor
        return due


class Lateness:
    """How late events were, as percentiles."""

    def __init__(self) -> None:
        self.events = 0
        self.most_s = 0.0
        self._counts: dict[int, int] = {}

    def note(self, seconds: float, count: int) -> None:
        """So many events were so late."""
        place = 0 if seconds <= _LEAST_S else ceil(log(seconds / _LEAST_S, _FACTOR))
        self._counts[place] = self._counts.get(place, 0) + count
        self.events += count
        self.most_s = max(self.most_s, seconds)

    def percentile_s(self, share: float) -> float | None:
        """So large a share of all events was at most so late; None where nothing was due at a time."""
        left = ceil(share * self.events)
        for place in sorted(self._counts):
            left -= self._counts[place]
            if left <= 0:
                return min(_LEAST_S * _FACTOR**place, self.most_s) if place else 0.0
        return None
