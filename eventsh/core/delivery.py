"""What a client is given to dispatch at once: the events of one batch, or one local event."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from eventsh.errors import ProtocolError
from eventsh.event import LIFECYCLE_SOURCE
from eventsh.protocol.codec import decode
from eventsh.protocol.frame import Flag

if TYPE_CHECKING:
    from eventsh.core.trace import Trace

__all__ = ["Delivery", "UnknownForm", "decode_runs"]


class UnknownForm(ProtocolError):
    """A batch is in a form that this process or its broker does not know. Its poster broke no rule and stays connected."""


@dataclass(slots=True, eq=False)
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
    # It was sent before, or a process died that had it.
    is_redelivered: bool = False
    # For a session that reads frames whole: this one, which is not decoded.
    frame: bytearray | None = None
    # Set by the inbox: every handler has returned.
    done: bool = False
    # Progress of the dispatcher, so that an interrupted dispatch resumes where it was: the index of the next run, the run
    # that it has begun, and the shares of async handlers that are not finished.
    at: int = 0
    turn: Any = None
    shares: set[Any] | frozenset[Any] = frozenset()

    def hold(self, frame: bytearray | memoryview) -> None:
        """Keep the frame whole, for a session that does not decode it."""
        self.frame = bytearray(frame) if isinstance(frame, memoryview) else frame

    def expect(self, flags: int, trace: Trace | None) -> None:
        """Note who waits for it: the broker for the ack of a unique event, its poster for an answer."""
        self.is_unique = bool(flags & Flag.UNIQUE)
        self.trace = trace

    def read(self, body: memoryview, flags: int, *, is_own: bool) -> None:
        """Fill in the decoded batch. Raises ProtocolError."""
        self.is_replayed = bool(flags & Flag.REPLAYED)
        self.is_redelivered = bool(flags & Flag.RESENT)
        self.runs = decode_runs(body, self.count, is_own=is_own)

    def become_gap(self, data: dict[str, Any]) -> None:
        """Stand for a gap in the place of a batch that can't be read."""
        self.count = self.first_seq = 0
        self.pid = None
        self.is_replayed = False
        self.runs = [[LIFECYCLE_SOURCE, "gap", [data]]]

    def finish(self) -> None:
        """Note that every handler has returned."""
        self.done = True

    def add_share(self, share: Any) -> None:
        """Note that an async handler has some of the events. Most deliveries have none, and need no set."""
        if isinstance(self.shares, set):
            self.shares.add(share)
        else:
            self.shares = {share}

    def end_share(self, share: Any) -> None:
        """Note that an async handler has finished its events. Repeating the call changes nothing."""
        if isinstance(self.shares, set):
            self.shares.discard(share)

    @property
    def is_over(self) -> bool:
        """Whether every handler of every event was called and has returned."""
        return self.at == len(self.runs) and not self.shares


def decode_runs(body: memoryview, count: int, *, is_own: bool = False) -> list[Any]:
    """Decode the runs of a batch. The broker forwards bodies that it never looked at, so any peer may have written this one.

    Args:
        body: The JSON of the batch.
        count: The number of events that its header states.
        is_own: The broker itself is the poster (the origin is 0). Only its batches may hold events of eventsh's own source.

    Returns:
        The runs, each `[source, event, [data, ...]]`.

    Raises:
        UnknownForm: The poster emptied the batch because the broker did not know its form.
        ProtocolError: The batch is not runs of `count` events.
    """
    runs: list[Any] = decode(body)
    events = 0
    if runs == []:
        raise UnknownForm(
            f"a batch said to hold {count} events holds 0: the broker did not know the form of its events"
        )
    # Each is looked at: to catch the TypeError of a wrong shape would also catch one that a signal handler raises here.
    for run in runs if type(runs) is list else (None,):
        if type(run) is not list or len(run) != 3:
            raise ProtocolError("a batch holds something other than runs of events")
        source, event, data = run
        if type(source) is not str or type(event) is not str or type(data) is not list:
            raise ProtocolError("a batch holds something other than runs of events")
        if not (source and event):
            raise ProtocolError("a batch holds an event without a source or a name")
        # Compared as decoded, so that an escape in the JSON hides nothing; once for each run, not for each event.
        if source == LIFECYCLE_SOURCE and not is_own:
            raise ProtocolError(f"a process that is not the broker posted from the source {source!r}")
        events += len(data)
    if events != count:
        raise ProtocolError(f"a batch said to hold {count} events holds {events}")
    return runs
