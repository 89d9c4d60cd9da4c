"""What waits for the handlers of one client, in its order, what they have been given, and how far all of it is handled.

Knows no broker: a session puts in what has arrived, this process what it posts to itself alone.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from eventsh.core.delivery import Delivery, decode_runs
from eventsh.core.trace import Trace
from eventsh.errors import ProtocolError, QueueOverflow
from eventsh.event import LIFECYCLE_SOURCE, check_name
from eventsh.protocol.features import name_flags
from eventsh.protocol.frame import HEADER, HEADER_BYTES, Flag, read_key

if TYPE_CHECKING:
    from eventsh.core.registry import Registry

__all__ = ["Inbox"]


class Inbox:
    """The queue of one session. The session appends to `waiting` and counts in `events` by itself, for each batch would
    pay for the call; all else goes through the methods."""

    def __init__(
        self,
        registry: Registry,
        answers: list[bytearray],
        *,
        is_worker: bool,
        max_queue_len: int,
        timeout_s: float,
        reads_whole: bool,
        readable: int,
        on_unread: Callable[[int, int, int, str], dict[str, Any]],
    ) -> None:
        # The epoch that what arrives is of, and the last seq of it up to which every handler has returned.
        self.epoch = 0
        self.handled = 0
        # Batches with the epoch that they came in, and what is no batch.
        self.waiting: deque[tuple[int, bytearray | memoryview] | Delivery] = deque()
        # How many events the batches in it hold.
        self.events = 0
        # Deliveries that were given out and whose handlers have not all returned, in their order.
        self._open: deque[Delivery] = deque()
        # Deliveries of an earlier epoch whose handlers have not returned: nobody can be told when they do.
        self._stale = 0
        # Events wait for the first handler: a program that calls configure() and then register() must not lose what
        # arrives between the two. Not for ever, for a program may want to post only.
        self._holding = True
        self.hold_until: float | None = None
        # Counted in and out apart, for local events are posted in other threads than the one that handles them.
        self._local_in = 0
        self._local_out = 0
        self._registry = registry
        # What posters who wait for the handlers are told: the session sends it.
        self._answers = answers
        # Whether a poster who waits for the handlers waits for these too; for those of a unique event it does in any case.
        self.is_worker = is_worker
        self.max_queue_len = max_queue_len
        self.timeout_s = timeout_s
        # Give frames as they came, for a recorder.
        self._reads_whole = reads_whole
        # The flags of a frame that this process knows. Counts a batch that can't be read, and gives the gap's data.
        self._readable = readable
        self._on_unread = on_unread

    def begin(self, epoch: int, start: int) -> None:
        """Another epoch begins, behind the event `start`."""
        self.epoch = epoch
        self.handled = start
        self._stale += sum(not delivery.done for delivery in self._open)
        self._open.clear()

    def keep_frames(self) -> None:
        """Copy what waits and is only a view of memory that is about to go. In the thread that takes deliveries."""
        waiting = self.waiting
        # In place, for other threads may append at the end meanwhile.
        for place, item in enumerate(list(waiting)):
            if type(item) is tuple and isinstance(item[1], memoryview):
                waiting[place] = (item[0], bytearray(item[1]))

    def post_local(self, source: str, event: str, data: Any) -> None:
        """Put an event into this process's own queue, behind what has arrived. Raises QueueOverflow, UsageError."""
        source, event = check_name(source, "source"), check_name(event, "event")
        if self.local_queued >= self.max_queue_len:
            raise QueueOverflow(self.local_queued, self.max_queue_len, queue="local")
        self._local_in += 1
        self.waiting.append(Delivery(0, 1, None, [[source, event, [data]]]))

    @property
    def local_queued(self) -> int:
        """How many local events have not been handled."""
        return self._local_in - self._local_out

    def post_first(self, source: str, event: str, data: Any) -> None:
        """Put an event of eventsh's own before everything that waits."""
        self._local_in += 1
        self.waiting.appendleft(Delivery(0, 1, None, [[source, event, [data]]]))

    def release(self) -> None:
        """Stop waiting for a first handler."""
        self._holding = False

    def next_delivery(self, now: float) -> Delivery | None:
        """The next delivery to dispatch, or None. Each must be given back to `complete` once its handlers returned.

        A batch that can't be read becomes a gap in its place: nothing is lost without a report to the handlers.
        """
        if not self.waiting or (self._holding and self._holds(now)):
            return None
        item = self.waiting.popleft()
        if type(item) is tuple:
            return self._open_batch(*item)
        assert isinstance(item, Delivery)
        if item.last_seq:
            self._give_out(item)
        return item

    def _give_out(self, delivery: Delivery) -> None:
        if delivery.epoch == self.epoch:
            self._open.append(delivery)
        else:
            self._stale += 1

    def _holds(self, now: float) -> bool:
        if self.hold_until is None:
            self.hold_until = now + self.timeout_s
        self._holding = (
            not self._registry.ever_registered
            and now < self.hold_until
            # A sleeping giant of a queue would make the broker wait for this worker.
            and self.events < self.max_queue_len // 2
        )
        return self._holding

    def _open_batch(self, epoch: int, frame: bytearray | memoryview) -> Delivery:
        _, _, flags, count, pid, origin, number, seq, time_ns = HEADER.unpack_from(frame)
        self.events -= count
        delivery = Delivery(seq + count - 1, count, pid, [], epoch=epoch, first_seq=seq, time_ns=time_ns)
        self._give_out(delivery)
        if self._reads_whole and not flags & ~self._readable:
            delivery.frame = bytearray(frame) if isinstance(frame, memoryview) else frame
            return delivery
        try:
            self._read(delivery, frame, flags, origin, number)
        except ProtocolError as error:
            delivery.count = delivery.first_seq = 0
            delivery.pid = delivery.trace = None
            delivery.is_replayed = False
            delivery.runs = [[LIFECYCLE_SOURCE, "gap", [self._on_unread(epoch, seq, count, str(error))]]]
        return delivery

    def _read(self, delivery: Delivery, frame: bytearray | memoryview, flags: int, origin: int, number: int) -> None:
        """Fill in what the frame says. Raises ProtocolError for a batch that can't be read."""
        if unknown := flags & ~self._readable:
            raise ProtocolError(f"{name_flags(unknown)} not known here: a newer version of eventsh posted the batch")
        delivery.is_replayed = bool(flags & Flag.REPLAYED)
        start = HEADER_BYTES
        if flags & Flag.UNIQUE:
            delivery.is_unique = True
            start += 2 + len(read_key(frame))
        if flags & Flag.TRACE and (delivery.is_unique or self.is_worker):
            delivery.trace = Trace(origin, number)
        delivery.runs = decode_runs(memoryview(frame)[start:], delivery.count, is_own=not origin)

    def complete(self, delivery: Delivery) -> None:
        """Every handler of this delivery has returned."""
        if not delivery.last_seq:
            self._local_out += 1
            return
        if delivery.trace is not None:
            self._answers.append(delivery.trace.answer().encode())
        delivery.done = True
        if delivery.epoch != self.epoch:
            self._stale -= 1
            return
        waiting = self._open
        while waiting and waiting[0].done:
            self.handled = waiting.popleft().last_seq

    @property
    def is_idle(self) -> bool:
        """Whether nothing waits for its handlers, or for them to return."""
        return not self.waiting and not self._open and not self._stale

    @property
    def has_work(self) -> bool:
        """Whether `next_delivery` may have something."""
        return bool(self.waiting)
