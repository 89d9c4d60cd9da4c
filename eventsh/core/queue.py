"""A queue of frames that counts the events in them, and their bytes."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import NamedTuple

__all__ = ["Entry", "Queue"]


class Entry(NamedTuple):
    """A frame and what has to be known of it without decoding it."""

    last: int
    """The number of its last event: a poster's number or the broker's seq, by the queue that it is in."""
    events: int
    """How many events it counts for; 0 for a gap's notice."""
    frame: bytearray


class Queue:
    """First in, first out, with a limit in events and one in bytes.

    The limits are the caller's to keep: a frame that was accepted must never be refused half-way, so `append` takes what
    it is given, and the caller asks `is_full` before it accepts anything. So a queue is over its limits by at most one
    frame. A notice of a gap takes no room among the events, but there may be no more of them than events.
    """

    __slots__ = ("_entries", "bytes", "events", "limit", "limit_bytes")

    def __init__(self, limit: int, limit_bytes: int = 64 * 1024 * 1024) -> None:
        self.limit = limit
        self.limit_bytes = limit_bytes
        self.events = 0
        self.bytes = 0
        self._entries: deque[Entry] = deque()

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[Entry]:
        return iter(self._entries)

    @property
    def is_full(self) -> bool:
        return self.events >= self.limit or self.bytes >= self.limit_bytes or len(self._entries) > self.limit

    @property
    def is_half_empty(self) -> bool:
        return self.events <= self.limit // 2 and self.bytes <= self.limit_bytes // 2

    def resize(self, limit_bytes: int) -> None:
        """Change the limit in bytes."""
        self.limit_bytes = limit_bytes

    def append(self, entry: Entry) -> None:
        self._entries.append(entry)
        self.events += entry.events
        self.bytes += len(entry.frame)

    def peek(self) -> Entry:
        """The first entry, left where it is. IndexError when there is none."""
        return self._entries[0]

    def popleft(self) -> Entry:
        entry = self._entries.popleft()
        self.events -= entry.events
        self.bytes -= len(entry.frame)
        return entry

    def put_back(self, entries: list[Entry]) -> None:
        """Put entries in front, in their order, as if they had never been taken. They count towards the limit."""
        self._entries.extendleft(reversed(entries))
        self.events += sum(entry.events for entry in entries)
        self.bytes += sum(len(entry.frame) for entry in entries)

    def release(self, last: int) -> int:
        """Drop every entry up to the number `last`; give the number of events dropped."""
        entries = self._entries
        before = self.events
        while entries and entries[0].last <= last:
            _, events, frame = entries.popleft()
            self.events -= events
            self.bytes -= len(frame)
        return before - self.events

    def discard(self, lasts: set[int]) -> None:
        """Take out the entries with these numbers, wherever they are."""
        self._entries = deque(entry for entry in self._entries if entry.last not in lasts)
        self.events = sum(entry.events for entry in self._entries)
        self.bytes = sum(len(entry.frame) for entry in self._entries)

    def clear(self) -> int:
        """Drop everything; give the number of events dropped."""
        dropped = self.events
        self._entries.clear()
        self.events = self.bytes = 0
        return dropped
