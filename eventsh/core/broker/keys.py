"""Table of the unique keys that are taken, with their expiry. Knows no workers; the clock is passed in."""

from __future__ import annotations

__all__ = ["KeyTable"]


class KeyTable:
    """Keys that were taken less than `timeout_s` ago.

    All keys live equally long, so the order in which they were taken is the order in which they expire, and a dict
    keeps it: nothing is scanned, and a key costs one entry. A cache of a fixed small size would let repeats through
    once more keys are alive than it holds.
    """

    __slots__ = ("_expires", "limit", "timeout_s")

    def __init__(self, timeout_s: float, limit: int) -> None:
        self.timeout_s = timeout_s
        self.limit = limit
        self._expires: dict[bytes, float] = {}

    def __len__(self) -> int:
        return len(self._expires)

    def is_taken(self, key: bytes, now: float) -> bool:
        expires = self._expires.get(key)
        return expires is not None and expires > now

    def is_full(self, now: float) -> bool:
        """Whether no further key can be taken now. Forgets expired keys."""
        self.expire(now)
        return len(self._expires) >= self.limit

    def take(self, key: bytes, now: float, *, age_s: float = 0.0) -> None:
        """Take a key, or note that it was taken `age_s` seconds ago."""
        # Out and in again, so that a key that is taken anew moves to the end. Of those that were taken earlier, some are
        # forgotten a little late, and `is_taken` knows.
        # Never for a shorter time than is known already: several workers may tell of one key.
        expires = now + self.timeout_s - age_s
        self._expires[key] = max(expires, self._expires.pop(key, expires))

    def expire(self, now: float) -> None:
        """Forget keys whose time is over."""
        expired = []
        for key, expires in self._expires.items():
            if expires > now:
                break
            expired.append(key)
        for key in expired:
            del self._expires[key]
