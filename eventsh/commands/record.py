"""`eventsh record`: record what crosses a broker, as an observer for whom nobody waits; and ask a broker that records.

An observer sees no unique events: those are recorded by the broker itself (`serve --record`).
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from eventsh.commands.arguments import check_utf8
from eventsh.commands.observer import new_observer
from eventsh.errors import EventError, RecordingError
from eventsh.escape import expressible
from eventsh.recording.format import RecordKind
from eventsh.recording.frames import Frame, choose
from eventsh.recording.hole import Hole
from eventsh.recording.recorder import Recorder, RecorderOptions
from eventsh.runtime.blocking import BlockingClient
from eventsh.runtime.endpoint import find_endpoint
from eventsh.runtime.loop import new_event_loop

if TYPE_CHECKING:
    from eventsh.commands.patterns import Pattern
    from eventsh.core.delivery import Delivery
    from eventsh.recording.writer import Fsync

__all__ = ["Recorded", "add_marker", "record", "write_flight_recorder"]

# Between two looks whether the flight recorder has been written.
_LOOK_S = 0.05


@dataclass(frozen=True, slots=True)
class Recorded:
    """What came of a recording. `missed` events are known not to be in it; `reason` is why it ended."""

    path: str
    events: int
    bytes: int
    missed: int
    holes: int
    seconds: float
    reason: str


class _Taker:
    """Takes the place of the dispatcher: what arrives goes to the recorder, frame by frame."""

    pending = 0

    def __init__(self, path: str, pattern: Pattern, options: RecorderOptions, max_bytes: int | None) -> None:
        self.recorder: Recorder | None = None
        self.done: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._path = path
        self._pattern = pattern
        self._takes_all = pattern.source_glob in (None, "*") and pattern.event_glob in (None, "*")
        self._options = options
        self._max_bytes = max_bytes
        self._bytes = 0
        self._epoch = 0
        # The broker was gone: how much it sent meanwhile nobody knows.
        self._was_away = False

    def finish(self, reason: str) -> None:
        if not self.done.done():
            self.done.set_result(reason)

    def attached(self, epoch: int, address: str) -> None:
        """The observer is attached, again perhaps. Raises RecordingError when the file can't be opened."""
        facts = {"epoch": epoch, "address": expressible(address), "pid": os.getpid(), "by": "observer"}
        start = {**facts, "time_ns": time.time_ns()}
        if self.recorder is None:
            self.recorder = Recorder(self._path, start, self._options)
        else:
            if self._was_away:
                hole = {"missed": None, "reason": "the broker was gone", "epoch": self._epoch}
                self.recorder.add(RecordKind.HOLE, {**hole, "ended_ns": time.time_ns()})
            if epoch != self._epoch:
                self.recorder.add(RecordKind.START, start)
        self._epoch = epoch
        self._was_away = False

    def lost(self) -> None:
        self._was_away = True

    def dispatch(self, delivery: Delivery) -> bool:
        recorder = self.recorder
        if recorder is None or self.done.done():
            return True
        if delivery.frame is not None:
            self._take(recorder, delivery.frame)
        elif delivery.last_seq and delivery.runs:
            # What this observer alone is told: that it was too slow.
            recorder.add(RecordKind.HOLE, dict(delivery.runs[0][2][0]))
        return True

    def _take(self, recorder: Recorder, data: bytearray) -> None:
        if self._takes_all:
            self._write(recorder, data)
            return
        frame = Frame(bytes(data), self._epoch, -1, 1)
        matches = self._pattern.matches
        try:
            chosen = choose(frame, lambda event: matches(event.source, event.event))
        except RecordingError as error:
            # Whether it matches can't be known.
            hole = Hole(self._epoch, str(error), frame.time_ns)
            hole.miss(data)
            recorder.add(RecordKind.HOLE, hole.facts())
            return
        for each in chosen:
            self._write(recorder, each.data)

    def _write(self, recorder: Recorder, data: bytes | bytearray) -> None:
        if self.done.done():
            return
        self._bytes += len(data) + 16
        if self._max_bytes is not None and self._bytes + 1024 > self._max_bytes:
            self.finish("size")
            return
        recorder.take(data)

    def abandon(self) -> None:
        pass

    def close(self) -> None:
        pass


def record(
    address: str | None,
    path: str,
    pattern: Pattern,
    *,
    seconds: float | None,
    max_bytes: int | None,
    fsync: Fsync,
    on_state: Callable[[bool], None],
    timeout_s: float,
) -> Recorded:
    """Record until `seconds` are over, `max_bytes` are reached, or a signal (SIGINT, SIGTERM) says so, which is no error.

    `on_state` is told when the recorder is attached, and when it no longer is; it attaches again by itself, and what it
    missed is a hole in the recording. Raises TransportError when no broker listens at the start, NotConnected when it
    does not answer, RecordingError when the file can't be written, KeyboardInterrupt for a signal that came before it was
    attached, when there is no file yet. Call it in the main thread.
    """
    options = RecorderOptions(fsync=fsync)
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        done = runner.run(_record(address, path, pattern, options, seconds, max_bytes, on_state, timeout_s))
    if done is None:
        raise KeyboardInterrupt
    return done


async def _record(
    address: str | None,
    path: str,
    pattern: Pattern,
    options: RecorderOptions,
    seconds: float | None,
    max_bytes: int | None,
    on_state: Callable[[bool], None],
    timeout_s: float,
) -> Recorded | None:
    loop = asyncio.get_running_loop()
    taker = _Taker(path, pattern, options, max_bytes)

    def tell(attached: bool) -> None:
        if taker.done.done():
            return
        if attached:
            try:
                taker.attached(client.session.inbox.epoch, str(client.address))
            except RecordingError as error:
                taker.done.set_exception(error)
                return
        else:
            taker.lost()
        on_state(attached)

    client = new_observer(address, taker, tell, reads_whole=True)
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, taker.finish, "signal")
    began = time.monotonic()
    client.start()
    first = loop.create_task(client.waiters.wait_first_attempt(timeout_s))
    try:
        await asyncio.wait((first, taker.done), return_when=asyncio.FIRST_COMPLETED)
        if first.done():
            await first
        if seconds is not None:
            loop.call_later(seconds, taker.finish, "time")
        reason = await taker.done
    finally:
        first.cancel()
        taker.done.cancel()
        await client.close(leave=True, timeout=1.0)
        if taker.recorder is not None:
            await loop.run_in_executor(None, taker.recorder.close)
    if taker.recorder is None:
        return None
    about = taker.recorder.status()
    took = time.monotonic() - began
    return Recorded(path, about["events"], about["bytes"], about["missed"], about["holes"], took, reason)


def add_marker(address: str | None, name: str, *, timeout_s: float) -> str:
    """Have the broker put a marker into its recording; gives that recording's path. Raises EventError when it records
    nothing, and as `status` does."""
    check_utf8(name, "name of a marker")
    with BlockingClient(*find_endpoint(address), timeout_s=timeout_s) as client:
        return str(client.ask("record_mark", {"name": name})["path"])


def write_flight_recorder(address: str | None, *, timeout_s: float) -> dict[str, Any]:
    """Have the broker write its flight recorder out, and wait until it has; gives its `path` and `events`. Raises
    EventError when it has none, RecordingError when it can't be written, and as `status` does."""
    with BlockingClient(*find_endpoint(address), timeout_s=timeout_s) as client:
        path = client.ask("record_flight")["path"]
        until = time.monotonic() + timeout_s
        while True:
            flight = client.ask("status")["recording"]["flight"]
            if flight["last_dump"] == path:
                return {"path": path, "events": flight["dumped"]}
            if flight["error"] is not None:
                raise RecordingError(flight["error"])
            if time.monotonic() > until:
                raise EventError(f"not written within {timeout_s:g} s: {path}")
            time.sleep(_LOOK_S)
