"""Record what is given to it, by a thread that holds nobody up.

Whoever gives frames never waits and never sees an error. What can't be written, or comes faster than the disk takes it,
is counted and becomes a hole in the recording, at its place; recording goes on as soon as it can.
"""

from __future__ import annotations

import errno
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from eventsh.errors import RecordingError
from eventsh.escape import expressible
from eventsh.protocol.frame import HEADER
from eventsh.recording.format import NO_WORKER, RecordKind
from eventsh.recording.hole import Hole
from eventsh.recording.segments import Compressor
from eventsh.recording.writer import Fsync, Limits, SyncError, Writer

__all__ = ["Recorder", "RecorderOptions"]

_log = logging.getLogger("eventsh.recording")

# The thread writes as soon as there is so much, or after so long: a killed process loses no more than that.
_WAKE_BYTES = 1024 * 1024
_DELAY_S = 0.02
# At most so much waits for the disk; more is a hole.
_PENDING_BYTES = 64 * 1024 * 1024
# What one write takes at most: if it fails, so much more is lost than had to be.
_WRITE_BYTES = 2 * 1024 * 1024
# Between two attempts to go on after an error: at first, and at most. A disk that is nearly full takes a little and fails
# again, so what fails again soon is waited for twice as long.
_RETRY_S = 0.5
_LONGEST_RETRY_S = 10.0
_FULL = (errno.ENOSPC, errno.EDQUOT)
# While nothing can be written, so many markers and the like are kept for later.
_LATE = 100


@dataclass(frozen=True, slots=True)
class RecorderOptions:
    """How to record. `compress` finished files; `fresh`: the file must not be there."""

    fsync: Fsync = "interval"
    limits: Limits | None = None
    compress: bool = False
    fresh: bool = False
    pending_bytes: int = _PENDING_BYTES


# A frame with its worker, or a record of another kind.
_Frame = tuple[bytes | bytearray, int]
_Pending = _Frame | tuple[RecordKind, dict[str, Any]]


class Recorder:
    """A recording that is being made. `take`, `mark` and `hole` belong to one thread, the caller's.

    `on_change` is called in the recorder's thread when `synced` has changed, with `fsync="always"`.
    """

    def __init__(
        self,
        path: str,
        start: dict[str, Any],
        options: RecorderOptions | None = None,
        *,
        on_change: Callable[[], None] | None = None,
    ) -> None:
        """Open the file and begin. Raises RecordingError."""
        self.options = options or RecorderOptions()
        self.path = os.path.abspath(path)
        self.error: str | None = None
        self.missed = 0
        self.holes = 0
        self._on_change = on_change
        self._waits_for_disk = self.options.fsync == "always"
        self._synced = 0
        self._pending: deque[_Pending] = deque()
        # Counted in by the caller and out by the thread, so that neither needs a lock.
        self._in_bytes = 0
        self._out_bytes = 0
        self._epoch = int(start["epoch"])
        # What comes faster than it can be written. Both threads may end it and count holes, so there is a lock, which costs
        # nothing where there is no flood.
        self._flood: Hole | None = None
        self._flood_lock = threading.Lock()
        # What can't be written at all, and records of other kinds that came meanwhile.
        self._hole: Hole | None = None
        self._late: deque[tuple[RecordKind, dict[str, Any]]] = deque(maxlen=_LATE)
        # What did not fit on a full disk: with less room than this it makes no sense to go on.
        self._refused_bytes = 0
        self._retry_s = _RETRY_S
        self._retry_at = 0.0
        self._went_on_at = 0.0
        self._is_woken = False
        self._wake = threading.Event()
        self._is_much = threading.Event()
        self._closing = False
        self._compressor = Compressor() if self.options.compress else None
        try:
            self._writer = Writer(
                path,
                limits=self.options.limits,
                fsync=self.options.fsync,
                on_finished=self._compressor.add if self._compressor is not None else None,
                fresh=self.options.fresh,
            )
            if self._compressor is not None:
                self._compressor.take_up(path)
            try:
                self._begin(start)
            except OSError as error:
                self._writer.close()
                raise RecordingError(f"can't record to {path}: {error.strerror}") from error
        except RecordingError:
            if self._compressor is not None:
                self._compressor.close()
            raise
        self._thread = threading.Thread(target=self._run, name="eventsh-record", daemon=True)
        self._thread.start()

    def _begin(self, start: dict[str, Any]) -> None:
        if self._writer.repaired_bytes:
            _log.warning(
                "%s: the last recording was not finished: %d bytes of a record that is not whole were cut off",
                self.path,
                self._writer.repaired_bytes,
            )
        self._writer.start(start)
        if self.options.fsync != "never":
            self._writer.sync()

    # --- in the caller's thread ---

    @property
    def synced(self) -> int | None:
        """The last seq that is on disk, or that a hole on disk accounts for; None: nobody need wait for that, as the policy
        says or as it can't be had."""
        if not self._waits_for_disk or self._hole is not None:
            return None
        return self._synced

    def take(self, frame: bytes | bytearray, worker: int = NO_WORKER) -> None:
        """Record a frame of events, with the slot that it was given to. It is not copied and must not change."""
        if self._in_bytes - self._out_bytes > self.options.pending_bytes:
            self._miss_in_flood(frame)
            return
        if self._flood is not None:
            self._end_flood()
        self._pending.append((frame, worker))
        self._in_bytes += len(frame)
        if not self._is_woken:
            self._is_woken = True
            self._wake.set()
        elif self._in_bytes - self._out_bytes > _WAKE_BYTES and not self._is_much.is_set():
            self._is_much.set()

    def add(self, kind: RecordKind, facts: dict[str, Any]) -> None:
        """Record a marker, a hole, or the start of another epoch, at this place."""
        if self._flood is not None:
            self._end_flood()
        if kind is RecordKind.START:
            self._epoch = facts["epoch"]
        elif kind is RecordKind.HOLE:
            self._count(1, facts.get("missed"))
        self._pending.append((kind, facts))
        self._is_woken = True
        self._wake.set()

    def _miss_in_flood(self, frame: bytes | bytearray) -> None:
        with self._flood_lock:
            is_new = self._flood is None
            if self._flood is None:
                self._flood = Hole(self._epoch, "the disk was too slow", time.time_ns())
            self._flood.miss(frame)
        if is_new:
            # The thread may have caught up just now: it has to look once more, for this.
            self._is_woken = True
            self._wake.set()

    def _end_flood(self) -> None:
        with self._flood_lock:
            hole = self._flood
            if hole is None:
                return
            # In this order: what is taken once there is no flood is behind its hole.
            self._pending.append((RecordKind.HOLE, hole.facts()))
            self._flood = None
        self._count(1, hole.missed)
        _log.warning("%s: %s events are not recorded: %s", self.path, hole.missed, hole.reason)

    def status(self) -> dict[str, Any]:
        """What it does, for `eventsh status`."""
        hole = self._hole or self._flood
        return {
            "state": "recording" if hole is None else "paused",
            "path": expressible(self.path),
            "events": self._writer.events,
            "bytes": self._writer.size_bytes,
            "pending_bytes": self._in_bytes - self._out_bytes,
            "fsync": self.options.fsync,
            "holes": self.holes + (hole is not None and not hole.is_empty),
            "missed": self.missed + ((hole.missed or 0) if hole is not None else 0),
            "error": self.error or (self._compressor.error if self._compressor is not None else None),
        }

    def close(self) -> None:
        """Write what was taken, say that this is the end, and wait until it is on disk. Blocks."""
        if self._flood is not None:
            self._end_flood()
        self._closing = True
        self._wake.set()
        self._is_much.set()
        if self._compressor is not None:
            # While the file is still locked: whoever goes on with it takes up what is given up here.
            self._compressor.close()
        self._thread.join()

    # --- in its own thread ---

    def _run(self) -> None:
        while not self._closing:
            self._wake.wait(None if self._hole is None and not self._needs_look() else _RETRY_S)
            self._wake.clear()
            if not self._waits_for_disk and not self._closing:
                self._is_much.wait(_DELAY_S)
            self._is_much.clear()
            # From here on the next frame wakes it again: it may find nothing, but is never overlooked.
            self._is_woken = False
            self._work()
        self._work()
        self._finish()

    def _needs_look(self) -> bool:
        return (self.options.fsync == "interval" and self._writer.is_dirty) or (
            self.options.limits is not None and self.options.limits.max_age_s is not None
        )

    def _work(self) -> None:
        """Write what waits, or as much of it as can be."""
        if self._hole is not None and (time.monotonic() < self._retry_at or not self._try_to_go_on()):
            self._drop()
            return
        try:
            while self._pending or self._flood is not None:
                if not self._pending:
                    self._end_flood()
                self._write(self._next_frames())
            self._writer.rotate_if_due()
            self._sync()
        except OSError as error:
            self._pause(error)
            self._drop()

    def _next_frames(self) -> list[_Frame]:
        """The frames up to the next record of another kind, which is written if it is the first."""
        frames: list[_Frame] = []
        size = 0
        while self._pending and size < _WRITE_BYTES:
            first, second = self._pending[0]
            if isinstance(first, RecordKind):
                if frames:
                    break
                assert isinstance(second, dict)
                self._add(first, second)
                self._pending.popleft()
                continue
            assert isinstance(second, int)
            self._pending.popleft()
            frames.append((first, second))
            size += len(first)
        return frames

    def _add(self, kind: RecordKind, facts: dict[str, Any]) -> None:
        if kind is RecordKind.START:
            self._writer.start(facts)
        else:
            self._writer.add(kind, facts)
        if self._waits_for_disk and kind is RecordKind.HOLE:
            self._sync()
            self._set_synced(facts["last_seq"])

    def _write(self, frames: list[_Frame]) -> None:
        size = sum(len(frame) for frame, _ in frames)
        try:
            self._writer.write(frames)
        except OSError as error:
            self._refused_bytes = size if error.errno in _FULL else 0
            self._pause(error)
            self._miss(frames[self._writer.done :])
            raise
        finally:
            self._out_bytes += size
        if self._waits_for_disk and frames:
            self._sync()
            _, _, _, count, _, _, _, seq, _ = HEADER.unpack_from(frames[-1][0])
            self._set_synced(seq + count - 1)

    def _set_synced(self, seq: int) -> None:
        self._synced = max(self._synced, seq)
        self._tell()

    def _sync(self) -> None:
        try:
            self._writer.sync_if_due()
        except OSError as error:
            self._pause(error)
            raise

    def _tell(self) -> None:
        if self._on_change is not None:
            self._on_change()

    def _pause(self, error: OSError) -> None:
        if self._hole is not None:
            return
        reason = "the disk is full" if error.errno in _FULL else str(error.strerror or error)
        self.error = reason
        self._hole = Hole(self._writer.epoch, reason, time.time_ns())
        if isinstance(error, SyncError):
            # What was written since the last time may be gone, and nobody can say how much of it.
            self._hole.missed = None
        now = time.monotonic()
        is_again = now - self._went_on_at < _LONGEST_RETRY_S
        self._retry_s = min(self._retry_s * 2, _LONGEST_RETRY_S) if is_again else _RETRY_S
        self._retry_at = now + self._retry_s
        _log.warning(
            "%s: recording pauses: %s; the broker goes on, and recording too as soon as it can", self.path, reason
        )
        # Confirmations no longer wait for the disk.
        self._tell()

    def _miss(self, frames: list[_Frame]) -> None:
        assert self._hole is not None
        for frame, _ in frames:
            self._hole.miss(frame)

    def _drop(self) -> None:
        """While it is paused: count what comes."""
        assert self._hole is not None
        with self._flood_lock:
            flood, self._flood = self._flood, None
        for _ in range(len(self._pending)):
            first, second = self._pending.popleft()
            if isinstance(first, RecordKind):
                assert isinstance(second, dict)
                self._pass_by(first, second)
                continue
            self._out_bytes += len(first)
            self._hole.miss(first)
        if flood is not None:
            self._hole.add(flood.missed, flood.first_seq, flood.last_seq)

    def _pass_by(self, kind: RecordKind, facts: dict[str, Any]) -> None:
        """A record that comes while nothing can be written: another hole becomes a part of this one."""
        assert self._hole is not None
        if kind is not RecordKind.HOLE:
            self._late.append((kind, facts))
        else:
            self._hole.add(facts.get("missed"), facts.get("first_seq") or 0, facts.get("last_seq") or 0)
            self._count(-1, facts.get("missed"))

    def _try_to_go_on(self) -> bool:
        hole = self._hole
        assert hole is not None
        try:
            if self._refused_bytes and not self._writer.has_room(self._refused_bytes):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            if not hole.is_empty:
                self._writer.add(RecordKind.HOLE, hole.facts())
                self._count(1, hole.missed)
                # What goes wrong from here on is no part of it: it is in the file.
                self._hole = Hole(hole.epoch, hole.reason, time.time_ns(), last_seq=hole.last_seq)
            while self._late:
                self._add(*self._late[0])
                self._late.popleft()
            self._writer.sync_if_due()
        except OSError:
            self._retry_at = time.monotonic() + self._retry_s
            return False
        self._went_on_at = time.monotonic()
        self._hole = None
        self.error = None
        if self._waits_for_disk:
            # They are accounted for: nobody waits for them when others are waited for again.
            self._set_synced(hole.last_seq)
        _log.warning("%s: recording goes on; %s events are not in it", self.path, hole.missed)
        return True

    def _count(self, holes: int, missed: int | None) -> None:
        """A hole is in the recording, or is about to be; -1: it is not, for it became a part of another one."""
        with self._flood_lock:
            self.holes += holes
            self.missed += holes * (missed or 0)

    def _finish(self) -> None:
        if self._hole is not None and not self._try_to_go_on():
            _log.error("%s: ended with a hole that could not be recorded", self.path)
        try:
            self._writer.finish()
        except OSError as error:
            _log.error("%s: the end of the recording could not be written: %s", self.path, error.strerror)
        self._writer.close()
