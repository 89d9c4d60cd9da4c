"""Every error that eventsh raises, as one tree.

EventError
├── UsageError                what the caller asked for can't be done as asked
│   ├── ConfigureError        an option or an address is wrong
│   ├── NotSerializable       the data is no JSON value
│   └── PayloadTooLarge       the encoded event is over the limit
├── OverloadError             too much at once; try again when there is room
│   └── QueueOverflow         the queue of posts is full
├── UnreachableError          the broker can't be had
│   ├── NotConnected          not attached, or not within the time allowed
│   ├── AuthenticationError   one of the two sides could not prove who it is
│   └── TransportError        listening, connecting or sending failed
├── ProtocolError             the peer broke the rules of the wire
├── RecordingError            a recording can't be read or written
└── PluginError               a plugin can't be loaded or broke its contract

An error holds facts as attributes, and its text says what the caller can do next.
"""

from __future__ import annotations

__all__ = [
    "AuthenticationError",
    "ConfigureError",
    "EventError",
    "NotConnected",
    "NotSerializable",
    "OverloadError",
    "PayloadTooLarge",
    "PluginError",
    "ProtocolError",
    "QueueOverflow",
    "RecordingError",
    "TransportError",
    "UnreachableError",
    "UsageError",
]


class EventError(Exception):
    """The base of every error that eventsh raises."""


class UsageError(EventError):
    """What the caller asked for can't be done as asked; asking again changes nothing."""


class ConfigureError(UsageError):
    """An option or an address is wrong. `option` is its name where one option is at fault."""

    def __init__(self, message: str, *, option: str | None = None) -> None:
        super().__init__(message)
        self.option = option


class NotSerializable(UsageError):
    """The data of an event is not a JSON value. Nothing was posted."""


class PayloadTooLarge(UsageError):
    """An encoded event is over `max_payload_len`. Nothing was posted, no unique key was taken."""

    def __init__(self, source: str, event: str, size_bytes: int, limit_bytes: int) -> None:
        super().__init__(source, event, size_bytes, limit_bytes)
        self.source = source
        self.event = event
        self.size_bytes = size_bytes
        self.limit_bytes = limit_bytes

    def __str__(self) -> str:
        return (
            f"event {self.event!r} of {self.source!r} is {self.size_bytes} bytes encoded, over the limit"
            f" of {self.limit_bytes}: post less, or raise max_payload_len"
        )


class OverloadError(EventError):
    """Too much at once. The same call can succeed later."""


class QueueOverflow(OverloadError):
    """A queue of this process is full. Nothing was posted; call drain() and post again.

    A handler may fill a queue to twice the limit, its reserve. With `of_handlers` that is full too, and waiting in the handler
    may be what keeps it full: post less, or let the handler fail.
    """

    def __init__(
        self, queued: int, limit: int, *, queue: str = "post", unit: str = "events", of_handlers: bool = False
    ) -> None:
        super().__init__(queued, limit, queue, unit, of_handlers)
        self.queued = queued
        self.limit = limit
        self.queue = queue
        self.unit = unit
        self.of_handlers = of_handlers

    def __str__(self) -> str:
        option = "max_queue_bytes" if self.unit == "bytes" else "max_queue_len"
        holds = f"the {self.queue} queue holds {self.queued} {self.unit}, its limit"
        if self.of_handlers:
            return (
                f"{holds} for handlers is {self.limit} (twice {option}): post less in a handler, await drain() in an"
                f" async one of AsyncEvents, or raise {option}"
            )
        return f"{holds} is {self.limit}: wait with drain(), post more slowly, or raise {option}"


class UnreachableError(EventError):
    """The broker can't be had, now or at all."""


class NotConnected(UnreachableError):
    """Not attached to a broker, or not within the time that the caller allowed."""


class AuthenticationError(UnreachableError):
    """One of the two sides could not prove who it is."""


class TransportError(UnreachableError):
    """Listening, connecting or sending failed. The text names the address and the cause."""


class ProtocolError(EventError):
    """The peer broke the rules of the wire. Its connection is closed, no other one is affected."""


class RecordingError(EventError):
    """A recording can't be read or written."""


class PluginError(EventError):
    """A plugin can't be loaded or broke its contract. The text names the plugin."""
