"""The broker's recordings: a file of all that crosses it, and a flight recorder. The router's tap.

Decides when the flight recorder is written out. Everything but the writing happens in the broker's loop.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from eventsh.errors import EventError
from eventsh.escape import expressible
from eventsh.event import LIFECYCLE_SOURCE
from eventsh.protocol.frame import FLAGS_OFFSET, HEADER_BYTES, Flag
from eventsh.recording.flight import Ring, flight_path, write_flight
from eventsh.recording.format import NO_WORKER, RecordKind
from eventsh.recording.recorder import Recorder, RecorderOptions
from eventsh.recording.writer import Limits

if TYPE_CHECKING:
    from eventsh.core.broker.state import Slot
    from eventsh.core.queue import Entry
    from eventsh.options import Options

__all__ = ["BrokerRecording"]

_log = logging.getLogger("eventsh.recording")

_UNIQUE = int(Flag.UNIQUE)
# How the broker's own event begins by which it tells observers that handlers failed. What scripts wrote goes to some
# alone too.
_HANDLER_ERROR = f'[["{LIFECYCLE_SOURCE}","handler_error",'.encode()
# Handlers that fail a thousand times a second are one incident.
_BETWEEN_ERRORS_S = 60.0


class BrokerRecording:
    """What one broker records. In the running loop."""

    def __init__(self, options: Options, *, epoch: int, pid: int, address: str, on_synced: Callable[[], None]) -> None:
        """Open the file, if there is to be one. `on_synced` is called in the loop when posts may be confirmed. Raises
        RecordingError."""
        self._loop = loop = asyncio.get_running_loop()
        facts = {"epoch": epoch, "address": expressible(address), "pid": pid, "by": "broker"}
        self._start = {**facts, "time_ns": time.time_ns()}
        self._directory = os.path.abspath(options.flight_dir or ".")
        self._error_after = 0.0
        self._dumps: set[asyncio.Future[Any]] = set()
        self._begun_dump: str | None = None
        self._last_dump: str | None = None
        self._dumped_events = 0
        self._dump_error: str | None = None
        self._recorder: Recorder | None = None
        if options.record is not None:

            def tell() -> None:
                loop.call_soon_threadsafe(on_synced)

            limits = Limits(options.record_max_size, options.record_max_age)
            wanted = RecorderOptions(options.record_fsync, limits, options.record_compress)
            self._recorder = Recorder(options.record, self._start, wanted, on_change=tell)
        self._ring = None if options.flight_recorder is None else Ring(options.flight_recorder)

    @property
    def synced(self) -> int | None:
        return None if self._recorder is None else self._recorder.synced

    def take(self, entry: Entry, slots: Iterable[Slot] | None) -> None:
        frame = entry.frame
        worker = NO_WORKER
        if slots is not None:
            if frame[FLAGS_OFFSET] & _UNIQUE:
                for slot in slots:
                    worker = NO_WORKER if slot.worker_id is None else slot.worker_id
            elif frame.startswith(_HANDLER_ERROR, HEADER_BYTES):
                self._take_error()
        if self._recorder is not None:
            self._recorder.take(frame, worker)
        if self._ring is not None:
            self._ring.take(frame, worker)

    def _take_error(self) -> None:
        if self._ring is not None and self._loop.time() >= self._error_after:
            self._error_after = self._loop.time() + _BETWEEN_ERRORS_S
            # Once this frame too is in the ring.
            self._loop.call_soon(self.dump, "handler_error")

    def dump(self, reason: str) -> None:
        """Write the flight recorder out, in a thread; the log says where."""
        if self._ring is None:
            _log.warning("there is no flight recorder to be written out: start the broker with --flight-recorder")
            return
        # The path itself, which JSON may not express.
        self._begun_dump = path = flight_path(self._directory, self._begun_dump)
        work = self._loop.run_in_executor(None, write_flight, path, self._ring.frames(), self._start, reason)
        self._dumps.add(work)
        work.add_done_callback(self._dumped)

    def _dumped(self, work: asyncio.Future[tuple[str, int]]) -> None:
        self._dumps.discard(work)
        if work.cancelled():
            return
        error = work.exception()
        if error is not None:
            self._dump_error = str(error)
            _log.error("the flight recorder could not be written out: %s", error)
            return
        self._dump_error = None
        path, self._dumped_events = work.result()
        self._last_dump = expressible(path)
        _log.warning("the last %d events are in %s", self._dumped_events, self._last_dump)

    def status(self) -> dict[str, Any]:
        facts: dict[str, Any] = {"state": "off"} if self._recorder is None else self._recorder.status()
        if self._ring is not None:
            flight = {"events": self._ring.events, "bytes": self._ring.size_bytes, "max_bytes": self._ring.max_bytes}
            dump = {"last_dump": self._last_dump, "dumped": self._dumped_events, "error": self._dump_error}
            facts["flight"] = {**flight, **dump}
        return facts

    def answer(self, what: str, arguments: dict[str, Any]) -> Any:
        if what == "record_mark":
            if self._recorder is None:
                raise EventError("this broker records nothing: start it with --record FILE")
            name = arguments.get("name")
            if not isinstance(name, str) or not name:
                raise EventError("a marker needs a name")
            self._recorder.add(RecordKind.MARKER, {"name": name, "time_ns": time.time_ns()})
            return {"path": expressible(self._recorder.path)}
        if what == "record_flight":
            if self._ring is None:
                raise EventError("this broker has no flight recorder: start it with --flight-recorder 64MB")
            # Whoever asks sees in the status when it is done.
            self.dump("asked for")
            return {"path": None if self._begun_dump is None else expressible(self._begun_dump)}
        return None

    async def close(self) -> None:
        """Finish the file, and whatever is being written out."""
        if self._dumps:
            await asyncio.wait(self._dumps)
        if self._recorder is not None:
            await self._loop.run_in_executor(None, self._recorder.close)
