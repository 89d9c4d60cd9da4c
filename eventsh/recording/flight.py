"""The flight recorder: the last events, in memory, written out when something has happened. No I/O but in `write`."""

from __future__ import annotations

import os
import time
from collections import deque
from typing import Any

from eventsh.errors import RecordingError
from eventsh.protocol.frame import HEADER
from eventsh.recording.format import RecordKind
from eventsh.recording.writer import Writer

__all__ = ["Ring", "flight_path", "write_flight"]

# What an entry costs beside its frame: a list of many small frames must not take far more than it is allowed.
_ENTRY_BYTES = 200
_FRAMES_A_WRITE = 512


class Ring:
    """As many of the last frames as fit into `max_bytes`."""

    __slots__ = ("_bytes", "_frames", "events", "max_bytes")

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.events = 0
        self._bytes = 0
        self._frames: deque[tuple[bytes | bytearray, int]] = deque()

    @property
    def size_bytes(self) -> int:
        return self._bytes

    def take(self, frame: bytes | bytearray, worker: int) -> None:
        """Add a frame, and let go of the oldest that are too many. It is not copied and must not change."""
        frames = self._frames
        frames.append((frame, worker))
        self.events += HEADER.unpack_from(frame)[3]
        self._bytes += len(frame) + _ENTRY_BYTES
        while self._bytes > self.max_bytes and len(frames) > 1:
            oldest, _ = frames.popleft()
            self.events -= HEADER.unpack_from(oldest)[3]
            self._bytes -= len(oldest) + _ENTRY_BYTES

    def frames(self) -> list[tuple[bytes | bytearray, int]]:
        """What is in it now, oldest first."""
        return list(self._frames)


def flight_path(directory: str, taken: str | None) -> str:
    """Where to write now: a name of the local time, which no file has, and which is not the one `taken` just before."""
    stem = os.path.join(directory, time.strftime("flight-%Y%m%d-%H%M%S", time.localtime()))
    path = f"{stem}.evlog"
    number = 1
    while os.path.exists(path) or path == taken:
        number += 1
        path = f"{stem}-{number}.evlog"
    return path


def write_flight(
    path: str, frames: list[tuple[bytes | bytearray, int]], start: dict[str, Any], reason: str
) -> tuple[str, int]:
    """Write frames into a new recording; gives its path and the number of events. Blocks. Raises RecordingError."""
    writer = Writer(path, fresh=True)
    try:
        writer.start({**start, "reason": reason})
        for first in range(0, len(frames), _FRAMES_A_WRITE):
            writer.write(frames[first : first + _FRAMES_A_WRITE])
        writer.add(RecordKind.MARKER, {"name": reason, "time_ns": time.time_ns()})
        writer.finish()
        return path, writer.events
    except OSError as error:
        raise RecordingError(f"can't write {path}: {error.strerror}") from error
    finally:
        writer.close()
