"""The sources, events and keys that a shell has seen, for its completion. Pure, and bounded."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

__all__ = ["Names"]

# Names that are made up as they go, such as one an order, must not fill the memory: the oldest are forgotten.
_MAX_SOURCES = 256
_MAX_EVENTS = 256
# What a person types is never deeper, and each costs a look at every event that is noted.
_MAX_KEYS = 100


class Names:
    """What can be typed as SOURCE, EVENT and the keys of DATA."""

    def __init__(self) -> None:
        self._events: dict[str, dict[str, Any]] = {}

    def note(self, source: str, event: str, data: Any = None) -> None:
        """An event was seen, or a handler of it is registered. `data` is kept until the next one."""
        events = self._events.pop(source, None)
        if events is None:
            events = {}
            if len(self._events) >= _MAX_SOURCES:
                del self._events[next(iter(self._events))]
        self._events[source] = events
        known = events.pop(event, None)
        if len(events) >= _MAX_EVENTS:
            del events[next(iter(events))]
        events[event] = known if data is None else data

    def note_handlers(self, handlers: Iterable[dict[str, Any]]) -> None:
        """What is registered in a worker."""
        for handler in handlers:
            source, event = handler["source"], handler["event"]
            if source is not None:
                self._events.setdefault(source, {})
                if event is not None:
                    self._events[source].setdefault(event, None)

    def sources(self) -> list[str]:
        return sorted(self._events)

    def events(self, source: str | None) -> list[str]:
        """The events of a source; of None, all."""
        found = self._events.values() if source is None else [self._events.get(source, {})]
        return sorted({event for events in found for event in list(events)})

    def keys(self, source: str, event: str) -> list[str]:
        """The keys of the last data of an event, in their order."""
        data = self._events.get(source, {}).get(event)
        return list(data)[:_MAX_KEYS] if isinstance(data, dict) else []
