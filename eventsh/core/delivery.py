"""What a client is given to dispatch at once: the events of one batch, or one local event."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from eventsh.errors import ProtocolError
from eventsh.event import LIFECYCLE_SOURCE
from eventsh.protocol.codec import decode

if TYPE_CHECKING:
    from eventsh.core.trace import Trace

__all__ = ["Delivery", "decode_runs"]


@dataclass(slots=True)
class Delivery:
    """Some events in order, as runs of neighbours with the same source and event.

    `last_seq` is the number of the last event, 0 for local ones; `count` is how many events of posters it stands for.
    `pid` is the poster's, None for local events and for those that eventsh itself makes.
    """

    last_seq: int
    count: int
    pid: int | None
    # Each is [source, event, [data, ...]]: a list as it was decoded, or a tuple.
    runs: list[Any]
    epoch: int = 0
    # For observers: the number of the first event, and when the broker stamped it; 0 for local ones.
    first_seq: int = 0
    is_unique: bool = False
    time_ns: int = 0
    # For an event whose poster waits for the handlers.
    trace: Trace | None = None
    is_replayed: bool = False
    # For a session that reads frames whole: this one, which is not decoded.
    frame: bytearray | None = None
    # The two marks that its owners make: every handler has returned, and how many async calls are still owed.
    done: bool = False
    pending: int = 0


def decode_runs(body: memoryview, count: int, *, is_own: bool = False) -> list[Any]:
    """The runs of a batch with `count` events. Raises ProtocolError: the broker passes on what it never looked at.

    `is_own`: it is the broker's own (its origin is 0). Only such a batch may hold events of eventsh's own source."""
    runs = decode(body)
    events = 0
    try:
        for source, event, data in runs:
            if type(source) is not str or type(event) is not str or type(data) is not list:
                raise ProtocolError("a batch holds something other than runs of events")
            if source == LIFECYCLE_SOURCE and not is_own:
                raise ProtocolError(f"a process that is not the broker posted from the source {source!r}")
            events += len(data)
    except (TypeError, ValueError):
        raise ProtocolError("a batch holds something other than runs of events") from None
    if type(runs) is not list or events != count:
        raise ProtocolError(f"a batch said to hold {count} events holds {events}")
    return runs
