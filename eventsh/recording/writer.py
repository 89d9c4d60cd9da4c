"""Write a recording's files: appending, going on with one that was left unfinished, rotation, and what is on disk.

Its calls block, and may raise OSError: then the file ends with a whole record, and the next call may succeed.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from eventsh.errors import RecordingError
from eventsh.recording.format import (
    FILE_HEADER_BYTES,
    RECORD_BYTES,
    FileHeader,
    RecordDecoder,
    RecordEncoder,
    RecordKind,
    decode_checkpoint,
    decode_file_header,
    decode_start,
    encode_file_header,
)
from eventsh.recording.frames import Frame
from eventsh.recording.reader import Reader
from eventsh.recording.seek import last_checkpoint
from eventsh.recording.segments import ZSTD_SUFFIX, finished_paths, segment_number, segment_path

__all__ = ["Fsync", "Limits", "SyncError", "Writer"]

_log = logging.getLogger("eventsh.recording")

Fsync: TypeAlias = Literal["never", "interval", "always"]
Frames: TypeAlias = Iterable[tuple[bytes | bytearray, int]]

# How often `interval` has the system write to the disk: what a power failure may cost.
SYNC_INTERVAL_S = 1.0
_READ_BYTES = 1024 * 1024
# After a rotation that failed.
_ROTATE_AGAIN_S = 10.0
# What one call of pwritev takes on Linux and macOS.
_MOST_PARTS = 1024
# What a frame needs beside itself: its head, a checkpoint before it, and the end of the file.
_BESIDE_BYTES = RECORD_BYTES + (RECORD_BYTES + 64) + (RECORD_BYTES + 64)


@dataclass(frozen=True, slots=True)
class Limits:
    """When a file is finished and the next one begun; None: never. A file holds at least one frame, however large."""

    max_bytes: int | None = None
    max_age_s: float | None = None


class SyncError(OSError):
    """The system could not have on disk what it had taken: nobody knows how much of it is."""


def open_locked(path: str, flags: int) -> int:
    """Open a file to append to, which nobody else appends to. Others must not read what an event may hold: it is created
    for its owner alone."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | flags, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise RecordingError("another process records to it") from None
    return descriptor


class Writer:
    """The file that a recording ends with."""

    def __init__(
        self,
        path: str,
        *,
        limits: Limits | None = None,
        fsync: Fsync = "interval",
        on_finished: Callable[[str], None] | None = None,
        fresh: bool = False,
        checkpoint_bytes: int | None = None,
    ) -> None:
        """Create the file, or go on with it; with `fresh` it must not be there. `on_finished` is told of each file that a
        rotation ends. Raises RecordingError."""
        self.path = path
        self.fsync: Fsync = fsync
        # What a killed writer had left unfinished at the end, and was cut off.
        self.repaired_bytes = 0
        # How many frames of the last `write` are in the file, if it failed.
        self.done = 0
        self.is_dirty = False
        self._limits = limits or Limits()
        self._on_finished = on_finished
        self._checkpoint = {} if checkpoint_bytes is None else {"checkpoint_bytes": checkpoint_bytes}
        self._start: dict[str, Any] | None = None
        self._descriptor = -1
        self._not_before = 0.0
        try:
            if fresh and (older := finished_paths(path)):
                raise RecordingError(f"files of an older recording are there, such as {older[0]}")
            if not fresh and not os.path.exists(path) and os.path.exists(_next_path(path)):
                # Killed in the midst of a rotation.
                os.rename(_next_path(path), path)
            self._descriptor = open_locked(path, os.O_EXCL if fresh else 0)
            size = os.fstat(self._descriptor).st_size
            if size < FILE_HEADER_BYTES:
                self._begin(size)
            else:
                self._go_on(size)
        except OSError as error:
            self._close_file()
            raise RecordingError(f"can't record to {path}: {error.strerror}") from error
        except RecordingError as error:
            self._close_file()
            raise RecordingError(f"can't record to {path}: {error}") from None
        self._begun_at = self._synced_at = time.monotonic()

    @property
    def events(self) -> int:
        """How many events are in the recording, in all its files."""
        return self._encoder.events

    @property
    def size_bytes(self) -> int:
        """How long the file is."""
        return self._written

    @property
    def epoch(self) -> int:
        """Of the last events."""
        return self._encoder.epoch

    def _begin(self, size: int) -> None:
        """A file that was only just begun when its writer was killed is taken; one that is something else is not. Where the
        last file of a recording was moved away, this one follows those that are left."""
        segment, events = _end_of(finished_paths(self.path))
        header = encode_file_header(FileHeader(segment, time.time_ns(), events))
        if os.pread(self._descriptor, 8, 0) != header[: min(size, 8)]:
            raise RecordingError("it is no recording")
        self.repaired_bytes = size
        os.ftruncate(self._descriptor, 0)
        _write_all(self._descriptor, [header], 0)
        self._encoder = RecordEncoder(FILE_HEADER_BYTES, events=events, **self._checkpoint)
        self._segment = segment
        self._first_event = events
        self._remember()

    def _go_on(self, size: int) -> None:
        """Find the last whole record, and cut off what is behind it."""
        read = _reader(self._descriptor)
        header = decode_file_header(read(0, FILE_HEADER_BYTES))
        self._segment = header.segment
        self._first_event = header.events
        self._encoder = encoder = RecordEncoder(FILE_HEADER_BYTES, events=header.events, **self._checkpoint)
        last = last_checkpoint(read, size)
        decoder = RecordDecoder(FILE_HEADER_BYTES if last is None else last.offset)
        offset = decoder.offset
        while decoder.error is None and (data := read(offset, _READ_BYTES)):
            offset += len(data)
            for record in decoder.receive_data(data):
                if record.kind == RecordKind.EVENTS:
                    encoder.passed(record.payload)
                elif record.kind == RecordKind.CHECKPOINT:
                    encoder.resume(decode_checkpoint(record))
                elif record.kind == RecordKind.START:
                    encoder.epoch = decode_start(record)["epoch"]
        encoder.offset = decoder.offset
        self.repaired_bytes = size - decoder.offset
        if self.repaired_bytes:
            os.ftruncate(self._descriptor, decoder.offset)
        self._remember()

    def _remember(self) -> None:
        self._written = self._encoder.offset
        self._state = self._encoder.state()

    def start(self, facts: dict[str, Any]) -> None:
        """Say whose events follow: `facts` has at least "epoch". To be called before the first frame."""
        self._start = facts
        self.add(RecordKind.START, facts)

    def add(self, kind: RecordKind, facts: dict[str, Any]) -> None:
        """Append a hole, a marker or the like."""
        self._encoder.add_facts(kind, facts)
        self._flush()

    def write(self, frames: Frames) -> None:
        """Append frames of events, each with the slot that it was given to or NO_WORKER, and rotate where it is time.
        After an OSError the first `done` of them are in the file."""
        self.done = count = 0
        limit = self._limits.max_bytes
        encoder = self._encoder
        for frame, worker in frames:
            if (
                limit is not None
                and encoder.offset + len(frame) + _BESIDE_BYTES > limit
                and encoder.events > self._first_event
            ):
                self._flush()
                self.done = count
                self._try_to_rotate()
                encoder = self._encoder
            encoder.add_events(frame, worker)
            count += 1
        self._flush()
        self.done = count

    def rotate_if_due(self) -> None:
        """Begin another file if this one is older than allowed and has events."""
        age = self._limits.max_age_s
        if age is not None and time.monotonic() - self._begun_at >= age and self.events > self._first_event:
            self._try_to_rotate()

    def _try_to_rotate(self) -> None:
        """A directory in which no file can be made is no reason to lose events: the old file grows on."""
        if time.monotonic() < self._not_before:
            return
        try:
            self.rotate()
        except SyncError:
            # That is no matter of the new file.
            raise
        except (OSError, RecordingError) as error:
            self._not_before = time.monotonic() + _ROTATE_AGAIN_S
            reason = getattr(error, "strerror", None) or error
            _log.warning("%s: no new file can be begun, the old one grows on: %s", self.path, reason)

    def rotate(self) -> None:
        """Finish the file, and go on in another one."""
        header = FileHeader(self._segment + 1, time.time_ns(), self.events)
        following = RecordEncoder(FILE_HEADER_BYTES, events=self.events, **self._checkpoint)
        following.time_ns = self._encoder.time_ns
        following.add_facts(RecordKind.START, {**(self._start or {}), "epoch": self._encoder.epoch})
        following.seq = self._encoder.seq
        finished = segment_path(self.path, self._segment)
        for each in (finished, finished + ZSTD_SUFFIX):
            if os.path.lexists(each):
                raise FileExistsError(errno.EEXIST, f"{each} is there, of another recording", each)
        descriptor = -1
        try:
            descriptor = open_locked(_next_path(self.path), os.O_TRUNC)
            _write_all(descriptor, [encode_file_header(header), *following.take()], 0)
            self.finish()
            os.rename(self.path, finished)
            os.rename(_next_path(self.path), self.path)
        except OSError:
            if descriptor >= 0:
                os.close(descriptor)
                with suppress(OSError):
                    os.unlink(_next_path(self.path))
            raise
        os.close(self._descriptor)
        self._descriptor, self._encoder = descriptor, following
        self._segment, self._first_event = header.segment, header.events
        self._begun_at = time.monotonic()
        self._remember()
        if self._on_finished is not None:
            self._on_finished(finished)

    def finish(self) -> None:
        """Say that the file ends here in good order, and have it on disk."""
        self.add(RecordKind.END, {"events": self.events, "time_ns": time.time_ns()})
        if self.fsync != "never":
            self.sync()

    def has_room(self, size_bytes: int) -> bool:
        """Whether so much more fits on the disk. May raise OSError."""
        about = os.fstatvfs(self._descriptor)
        return about.f_bavail * about.f_frsize >= size_bytes

    def sync(self) -> None:
        """Have everything on disk. Raises SyncError."""
        try:
            os.fdatasync(self._descriptor)
        except OSError as error:
            raise SyncError(error.errno, error.strerror) from error
        self.is_dirty = False
        self._synced_at = time.monotonic()

    def sync_if_due(self) -> None:
        """As the policy says."""
        if not self.is_dirty or self.fsync == "never":
            return
        if self.fsync == "always" or time.monotonic() - self._synced_at >= SYNC_INTERVAL_S:
            self.sync()

    def close(self) -> None:
        """Let go of the file, as it is. Call `finish` before."""
        self._close_file()

    def _flush(self) -> None:
        parts = self._encoder.take()
        try:
            _write_all(self._descriptor, parts, self._written)
        except OSError:
            self._encoder.restore(self._state)
            # What was written of it is cut off; if even that fails, the next write goes over it.
            with suppress(OSError):
                os.ftruncate(self._descriptor, self._written)
            raise
        self.is_dirty = True
        self._remember()

    def _close_file(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def _next_path(path: str) -> str:
    return path + ".next"


def _end_of(finished: list[str]) -> tuple[int, int]:
    """The number of the file that follows these, and how many events are in the recording before it."""
    if not finished:
        return 0, 0
    reader = Reader(finished[-1], one_file=True)
    events = reader.header().events
    for item in reader:
        if isinstance(item, Frame):
            events = item.first - 1 + item.events
    return segment_number(finished[-1]) + 1, events


def _reader(descriptor: int) -> Callable[[int, int], bytes]:
    return lambda offset, count: os.pread(descriptor, count, offset)


def _write_all(descriptor: int, parts: list[bytes | bytearray], offset: int) -> None:
    for start in range(0, len(parts), _MOST_PARTS):
        some = parts[start : start + _MOST_PARTS]
        left = sum(map(len, some))
        while left:
            written = os.pwritev(descriptor, some, offset)
            offset += written
            left -= written
            if left:
                some = [b"".join(some)[written:]]
