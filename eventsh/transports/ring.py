"""Which bytes of a shared-memory ring are taken, and by which readers. Knows no memory, no socket and no process.

A ring has one writer and any number of readers. The writer takes a span for each frame, names it to readers in messages,
and may use it again once all of them have said that they are done with it; nothing in the memory itself is a lock, a
counter or a pointer, so that nobody's death can leave it in a state that others trip over.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque

from eventsh.errors import ProtocolError

__all__ = ["ALIGN_BYTES", "Lane", "Ring", "Span"]

# Spans begin at a cache line: no two of them share one, and copies run at full speed.
ALIGN_BYTES = 64
# One of several readers that takes nothing may hold three quarters of the ring; what else there is for it takes the socket.
# So the others have the rest, and those that stand still too mostly hold the same frames. With half of it, a tenth of the
# frames took the socket when four workers were 64 events of 1 MB behind on a busy machine.
LANE_QUARTERS = 3


class Span:
    """Some bytes of the ring that hold one frame, and how many readers are not done with it."""

    __slots__ = ("frame", "is_written", "length", "offset", "readers", "size")

    def __init__(self, offset: int, length: int, size: int, frame: object) -> None:
        self.offset = offset
        self.length = length
        # With what is left unused behind it.
        self.size = size
        # Kept, so that no other object can have its identity meanwhile.
        self.frame = frame
        self.readers = 0
        self.is_written = False


class Ring:
    """The spans of a ring, in the order of their places.

    The next span is taken behind the last one, jumping over those that a slow reader still holds, and from the beginning
    again at the end. A queue with one end would be simpler, but there a single reader that stands still stops everybody's
    use of the ring. An empty ring begins at its beginning, so that one in little use stays in the processor's cache.
    """

    def __init__(self, size_bytes: int, *, is_shared: bool) -> None:
        self.size_bytes = size_bytes
        self.used_bytes = 0
        # Whether there are several readers, so that a frame that is given again is one for another of them.
        self.is_shared = is_shared
        self._spans: list[Span] = []
        self._offsets: list[int] = []
        self._by_frame: dict[int, Span] = {}
        self._next = 0
        # So much was not to be had in one piece, and nothing was given back since: not looked for again.
        self._refused_bytes = size_bytes + 1

    def take(self, frame: bytes | bytearray | memoryview) -> Span | None:
        """The span of a frame: in a shared ring the one that the same object has already, else a new one. None when there
        is no room. It is to be given back once by each reader in `readers`, which the caller counts up."""
        if self.is_shared and (known := self._by_frame.get(id(frame))) is not None:
            return known
        length = len(frame)
        size = -(-length // ALIGN_BYTES) * ALIGN_BYTES
        if size >= self._refused_bytes or not length:
            return None
        place = self._find(size)
        if place is None:
            self._refused_bytes = size
            return None
        index, offset = place
        span = Span(offset, length, size, frame if self.is_shared else None)
        self._spans.insert(index, span)
        self._offsets.insert(index, offset)
        if self.is_shared:
            self._by_frame[id(frame)] = span
        self._next = offset + size
        self.used_bytes += size
        return span

    def _find(self, size: int) -> tuple[int, int] | None:
        """Where in the list and in the ring there are `size` bytes in one piece."""
        spans = self._spans
        if not spans:
            self._next = 0
        offset = self._next
        index = bisect_left(self._offsets, offset)
        # Once around, and the gap in which it began once more, as far as it lies before that place.
        for _ in range(len(spans) + 2):
            end = self.size_bytes if index == len(spans) else min(self._offsets[index], self.size_bytes)
            if end - offset >= size:
                return index, offset
            if index < len(spans):
                offset = self._offsets[index] + spans[index].size
                index += 1
            else:
                offset = index = 0
        return None

    def give_back(self, span: Span) -> None:
        """One reader is done with it. After the last one its place is free."""
        span.readers -= 1
        if span.readers <= 0:
            index = bisect_left(self._offsets, span.offset)
            del self._spans[index], self._offsets[index]
            if self.is_shared:
                del self._by_frame[id(span.frame)]
            span.frame = None
            self.used_bytes -= span.size
            self._refused_bytes = self.size_bytes + 1

    def cut(self, size_bytes: int) -> None:
        """Use only the first bytes from now on, as there is no memory for more. What lies behind stays until given back."""
        self.size_bytes = min(self.size_bytes, size_bytes)
        self._refused_bytes = self.size_bytes + 1
        self._next = 0


class Lane:
    """What one reader was given and is not done with, in order."""

    def __init__(self, ring: Ring) -> None:
        self.ring = ring
        self.held_bytes = 0
        self._spans: deque[Span] = deque()
        self._given = 0
        self._released = 0

    def __bool__(self) -> bool:
        return bool(self._spans)

    def give(self, frame: bytes | bytearray | memoryview) -> Span | None:
        """Give it the span of a frame. None: there is no room, or the reader is too far behind."""
        ring = self.ring
        if ring.is_shared and self._spans and self.held_bytes + len(frame) > ring.size_bytes * LANE_QUARTERS // 4:
            return None
        span = ring.take(frame)
        if span is not None:
            span.readers += 1
            self._spans.append(span)
            self._given += 1
            self.held_bytes += span.size
        return span

    def take_back(self) -> None:
        """The span given last could not be written, and the reader has not heard of it."""
        self._given -= 1
        self._drop(self._spans.pop())

    def release(self, count: int) -> None:
        """The reader is done with the first `count` spans of all that it was ever given. Raises ProtocolError."""
        if not self._released < count <= self._given:
            raise ProtocolError(f"released {count} frames after {self._released} of {self._given}")
        for _ in range(count - self._released):
            self._drop(self._spans.popleft())
        self._released = count

    def clear(self) -> None:
        """The reader is gone."""
        while self._spans:
            self._drop(self._spans.popleft())

    def _drop(self, span: Span) -> None:
        self.held_bytes -= span.size
        self.ring.give_back(span)
