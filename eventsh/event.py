"""What an event is, and the names that eventsh itself uses in events."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from eventsh.errors import EventError, UsageError

__all__ = ["LIFECYCLE_SOURCE", "Event", "EventList", "check_name"]

# The source of every event that eventsh itself makes: started, stopping, worker_joined, workers_joined, worker_left, gap,
# handler_error, dead_letter.
LIFECYCLE_SOURCE = "eventsh"


@dataclass(frozen=True, slots=True)
class Event:
    """One event as a handler gets it. `pid` is the poster's, None for a local event."""

    source: str
    event: str
    data: Any
    pid: int | None


def check_name(value: object, word: str) -> str:
    """Check that `value` can be a source, an event or a key: a string that is not empty.

    Args:
        value: The name.
        word: How the error calls it.

    Returns:
        The name as a plain string. A subclass of str (a member of an enum of strings) is its base: its own hash, text or
        equality could be another's.

    Raises:
        UsageError: It is not a string, or empty.
    """
    # Not isinstance(), which believes what a proxy or a mock calls its __class__.
    if not issubclass(type(value), str):
        raise UsageError(f"{word} must be a string, not {type(value).__name__}")
    name = str.__str__(value)
    if not name:
        raise UsageError(f"{word} must not be empty")
    return name


class EventList:
    """The events of one source, by name, so that a typing error fails where it is made.

    `names.purge` and `names["purge"]` give "purge"; a name that was not listed raises EventError.
    """

    __slots__ = ("_names", "_source")

    def __init__(self, source: str, *names: str) -> None:
        self._source = check_name(source, "source")
        self._names = frozenset(check_name(name, "event") for name in names)

    def __getitem__(self, name: str) -> str:
        if name not in self._names:
            known = ", ".join(sorted(self._names)) or "none"
            raise EventError(f"source {self._source!r} has no event {name!r}; its events: {known}")
        return name

    def __getattr__(self, name: str) -> str:
        # Names of the language's own protocols must fail as AttributeError: copy, pickle and hasattr rely on it.
        if name.startswith("__"):
            raise AttributeError(name)
        return self[name]

    def __iter__(self) -> Any:
        return iter(sorted(self._names))

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __repr__(self) -> str:
        return f"EventList({', '.join(repr(name) for name in (self._source, *sorted(self._names)))})"
