"""The default bus of a test's process, with a broker inside the process, that remembers what its handlers were given."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FunctionType
from typing import Any

from eventsh.api import Events
from eventsh.errors import EventError
from eventsh.event import LIFECYCLE_SOURCE, Event
from eventsh.options import Options
from eventsh.runtime.bus import default_bus
from eventsh.testing.broker import HostedBroker
from eventsh.testing.recorder import DEADLINE_S

__all__ = ["RecordingEvents", "recording_bus"]

# Of the events that `settle` posts: handlers of all events see them too.
OWN_SOURCE = "eventsh.testing"


class RecordingEvents(Events):
    """`eventsh.Events` over the process's default bus, and what this process handled."""

    _handled: list[Event]
    _changed: threading.Condition

    def handled(self, source: str | None = None, event: str | None = None) -> list[Event]:
        """What has arrived at this process so far, in order; without eventsh's own events, unless asked for by source."""
        with self._changed:
            return [one for one in self._handled if _is_wanted(one, source, event)]

    def wait_handled(self, source: str, event: str | None = None, count: int = 1) -> list[Event]:
        """Wait until that many such events have arrived; give them. Raises TimeoutError."""
        with self._changed:
            if not self._changed.wait_for(lambda: len(self.handled(source, event)) >= count, DEADLINE_S):
                raise TimeoutError(f"{source} {event or '*'} did not arrive {count} times: {self.handled()}")
            return self.handled(source, event)

    def settle(self) -> None:
        """Wait until the handlers of all that was posted so far have returned. Raises NotConnected."""
        self.post_and_wait(OWN_SOURCE, "settled", timeout=DEADLINE_S)

    def _record(self, data: Any, event: str, source: str, pid: int | None) -> None:
        with self._changed:
            self._handled.append(Event(source, event, data, pid))
            self._changed.notify_all()


def _is_wanted(one: Event, source: str | None, event: str | None) -> bool:
    if source is None:
        return one.source not in (LIFECYCLE_SOURCE, OWN_SOURCE)
    return one.source == source and event in (None, one.event)


@contextmanager
def recording_bus(address: str) -> Iterator[RecordingEvents]:
    """The default bus, attached to a broker at `address`, a name of the inproc transport."""
    bus = default_bus()
    if bus.client is not None:
        raise EventError("the default bus of this process is configured already: close() it before this test")
    known = set(bus.registry.handlers())
    broker = HostedBroker(address, Options.from_values(linger=None))
    events = RecordingEvents._over(bus)
    # A condition's own lock may be taken twice: what is waited for asks `handled`.
    events._handled, events._changed = [], threading.Condition()
    try:
        events.register(events._record)
        events.configure(address, broker="never")
        events.wait_ready(DEADLINE_S)
        yield events
    finally:
        events.close()
        broker.stop()
        for handler in bus.registry.handlers():
            if handler in known or _is_of_a_module(handler.callback) or handler.callback is None:
                continue
            events_of_it = (handler.event,) if handler.event is not None else ()
            events.unregister(handler.callback, handler.source, *events_of_it)


def _is_of_a_module(callback: object) -> bool:
    """Whether it was registered when its module was imported, which happens once, maybe in the midst of a test."""
    return isinstance(callback, FunctionType) and "<locals>" not in callback.__qualname__
