"""Recordings in tests: an incident as a list of events, and replayed into this process's handlers, in no time.

    @pytest.mark.eventlog("incident.evlog")
    def test_the_cache_survives_the_incident(eventlog):
        result = eventlog.replay()
        assert not result.failures
        assert eventlog.events[-1].event == "purge"

No broker, no socket and no waiting: handlers are called in the recorded order by the dispatcher that calls them in a
worker, in a loop whose clock is the recording's, so an `asyncio.sleep` in a handler takes as long as it would have then
and no time now.
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from math import inf, nextafter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eventsh.api import default_events
from eventsh.core.delivery import Delivery, decode_runs
from eventsh.errors import EventError, RecordingError
from eventsh.event import LIFECYCLE_SOURCE, Event
from eventsh.protocol.codec import decode, encode_data
from eventsh.protocol.frame import HEADER, HEADER_BYTES, Flag, read_key
from eventsh.recording.frames import Frame, RecordedEvent, Repeats, events_of
from eventsh.recording.positions import Span
from eventsh.recording.reader import Damage
from eventsh.runtime.dispatch import Dispatcher, HandlerFailure

if TYPE_CHECKING:
    from eventsh.api import AsyncEvents, Events
    from eventsh.runtime.bus import Bus

__all__ = ["EventLog", "Replayed", "read_recording", "replay_events"]

# A handler that waits for something that never comes would have the test wait too.
_MOST_TURNS = 1_000_000


def read_recording(
    path: str | Path,
    source: str | None = None,
    event: str | None = None,
    *,
    begin: str | None = None,
    end: str | None = None,
) -> list[RecordedEvent]:
    """The events of a recording, in order, each once; of one source or name, from one place to another (as in `eventsh log
    show --from`). eventsh's own are left out unless asked for by source. Raises RecordingError, for damage too: a test
    should not pass on half of an incident."""
    found: list[RecordedEvent] = []
    repeats = Repeats()
    for item in Span(str(path), begin, end):
        if isinstance(item, Damage):
            raise RecordingError(f"{item.path}: {item.reason}")
        if isinstance(item, Frame) and not repeats.has(item.data):
            found += [each for each in events_of(item) if _is_wanted(each, source, event)]
    return found


def _is_wanted(one: RecordedEvent, source: str | None, event: str | None) -> bool:
    if source is None:
        return one.source != LIFECYCLE_SOURCE and event in (None, one.event)
    return one.source == source and event in (None, one.event)


@dataclass(slots=True)
class Replayed:
    """What a replay did: how many events were handled, how handlers failed, and what they posted (which goes nowhere)."""

    handled: int = 0
    failures: list[HandlerFailure] = field(default_factory=list)
    posted: list[Event] = field(default_factory=list)


class EventLog:
    """A recording that a test works with. `clock` gives the recorded time at which a replay is, in seconds since 1970, for
    programs whose clock can be replaced."""

    def __init__(self, path: str | Path, source: str | None = None, event: str | None = None) -> None:
        self.path = Path(path)
        self.events = read_recording(path, source, event)
        self.now = self.events[0].time_ns / 1e9 if self.events else 0.0

    def clock(self) -> float:
        return self.now

    def replay(self, bus: Events | AsyncEvents | None = None, *, worker: int | None = None) -> Replayed:
        """Call the handlers of `bus`, by default those registered with `eventsh.on` and `eventsh.register`, as if they
        were in a worker: with all broadcasts and, with `worker`, only the unique events which that worker got.
        `eventsh.replayed()` is True in them. The bus must not be configured. Returns when all handlers have."""
        events = self.events
        if worker is not None:
            events = [event for event in events if event.unique is None or event.worker == worker]
        return replay_events(events, bus, on_time=self._set)

    def _set(self, now: float) -> None:
        self.now = now


class _VirtualLoop(asyncio.SelectorEventLoop):
    """A loop that never waits: where others would, its clock goes on by as much."""

    def __init__(self, on_time: Callable[[float], None], began_ns: int) -> None:
        # From 0 on, for a float of the seconds since 1970 is too coarse to be added to.
        self._now = 0.0
        self._began_s = began_ns / 1e9
        self._on_time = on_time
        super().__init__(_Skipping(self))

    def time(self) -> float:
        return self._now

    def skip(self, seconds: float) -> None:
        # At least by the least that there is, or it would stand still before a time that it never reaches.
        self._now = max(self._now + seconds, nextafter(self._now, inf))
        self._on_time(self._began_s + self._now)


class _Skipping(selectors.DefaultSelector):
    def __init__(self, loop: _VirtualLoop) -> None:
        super().__init__()
        self._loop = loop
        self._turns = 0

    def select(self, timeout: float | None = None) -> Any:
        ready = super().select(0)
        if ready or timeout == 0:
            self._turns = 0
            return ready
        self._turns += 1
        if timeout is None or self._turns > _MOST_TURNS:
            # Nothing in this process will ever wake it. What other threads do is not waited for.
            raise EventError("a handler waits for something that does not come in a replay")
        self._loop.skip(timeout)
        return ready


def replay_events(
    events: Iterable[RecordedEvent],
    bus: Events | AsyncEvents | None = None,
    *,
    on_time: Callable[[float], None] = lambda now: None,
) -> Replayed:
    """As `EventLog.replay`, for events of your own making. `on_time` is told the time as it goes on, in seconds."""
    inner = (default_events() if bus is None else bus)._bus
    if inner.client is not None:
        raise EventError("the bus is configured: a replay would mix with what it gets; close() it before")
    events = list(events)
    result = Replayed()
    began_ns = events[0].time_ns if events else 0
    try:
        with asyncio.Runner(loop_factory=lambda: _VirtualLoop(on_time, began_ns)) as runner:
            dispatcher = Dispatcher(
                inner.registry,
                # Handlers can't be too slow for a clock that waits for them.
                timeout_s=1e9,
                on_failure=result.failures.append,
                on_complete=lambda delivery: None,
                clock=runner.get_loop().time,
            )
            try:
                runner.run(_replay(events, began_ns, inner, result, dispatcher))
            finally:
                dispatcher.close()
    finally:
        # Numbers of posts begin anew, as nothing was ever sent.
        inner.renew()
    return result


async def _replay(
    events: list[RecordedEvent], began_ns: int, bus: Bus, result: Replayed, dispatcher: Dispatcher
) -> None:
    loop = asyncio.get_running_loop()
    for event in events:
        early_s = (event.time_ns - began_ns) / 1e9 - loop.time()
        if early_s > 0:
            await asyncio.sleep(early_s)
        # A handler gets what a worker would get: plain types, and no object that an earlier replay has changed.
        runs = [[event.source, event.event, [decode(encode_data(event.data))]]]
        dispatcher.dispatch(Delivery(event.seq or 1, 1, event.pid, runs, is_replayed=True))
        # So that async handlers begin at the event's own time.
        await asyncio.sleep(0)
        _collect(bus, result)
    await dispatcher.drain()
    _collect(bus, result)
    result.handled = dispatcher.handled


def _collect(bus: Bus, result: Replayed) -> None:
    """Take what handlers have posted out of the bus."""
    frames = bus.outbox.take()
    bus.outbox.confirm(bus.outbox.numbered)
    for frame in frames:
        _, _, flags, count, pid, _, _, _, _ = HEADER.unpack_from(frame)
        start = HEADER_BYTES + (2 + len(read_key(frame)) if flags & Flag.UNIQUE else 0)
        for source, event, datas in decode_runs(memoryview(frame)[start:], count):
            result.posted += [Event(source, event, data, pid) for data in datas]
