"""What waits for the handlers of one client, in its order, what they have been given, and how far all of it is handled.

Knows no broker: a session puts in what has arrived, this process what it posts to itself alone.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from eventsh.core.delivery import Delivery, UnknownForm
from eventsh.core.outbox import RESERVE
from eventsh.core.trace import Trace
from eventsh.errors import ProtocolError, QueueOverflow
from eventsh.event import LIFECYCLE_SOURCE, check_name
from eventsh.protocol.features import name_flags
from eventsh.protocol.frame import HEADER, HEADER_BYTES, Flag, read_key

if TYPE_CHECKING:
    from eventsh.core.registry import Registry

__all__ = ["Inbox"]


class Inbox:
    """The queue of one session. The session appends to `waiting` by itself, for each batch would pay for the call; all
    else goes through the methods.

    A signal handler may raise between any two steps, so each change takes effect by one operation, or repeating it changes
    nothing."""

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
        on_unread: Callable[[int, bytearray | memoryview, ProtocolError], dict[str, Any]],
        is_handler: Callable[[], bool],
    ) -> None:
        # The epoch that what arrives is of, and the last seq of it up to which every handler has returned.
        self.epoch = 0
        self.handled = 0
        # Batches with the epoch that they came in, and deliveries. The first one is under way from `next_delivery` to
        # `complete` or `set_aside`: a dispatch that an exception interrupted finds it here again.
        self.waiting: deque[tuple[int, bytearray | memoryview] | Delivery] = deque()
        # Deliveries of this epoch that were begun and whose handlers have not all returned, in their order.
        self._open: deque[Delivery] = deque()
        # The same of earlier epochs: their brokers are gone, so that no ack is owed for them.
        self._stale: list[Delivery] = []
        # Local deliveries that were set aside.
        self._local_aside: set[Delivery] = set()
        # Events wait for the first handler: a program that calls configure() and then register() must not lose what
        # arrives between the two. Not for ever, for a program may want to post only.
        self._holding = True
        self.hold_until: float | None = None
        # Counted in and out apart, for local events are posted in other threads than the one that handles them. An
        # interrupted post or completion can make the difference too large, never too small: `_count_local` corrects it.
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
        # The flags of a frame that this process knows. Counts a batch that can't be read, by its epoch, its frame and the
        # error, and returns the gap's data.
        self._readable = readable
        self._on_unread = on_unread
        # Whether the caller is a handler, which has the reserve of the outbox here too.
        self._is_handler = is_handler

    def set_role(self, *, is_worker: bool) -> None:
        self.is_worker = is_worker

    def begin(self, epoch: int, start: int) -> None:
        """Begin another epoch, after the event `start`. Repeating the call changes nothing."""
        self._stale = [delivery for delivery in dict.fromkeys((*self._stale, *self._open)) if not delivery.done]
        self._open.clear()
        self.epoch = epoch
        self.handled = start

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
            self._check_room()
        delivery = Delivery(0, 1, None, [[source, event, [data]]])
        self._local_in += 1
        self.waiting.append(delivery)

    def _check_room(self) -> None:
        of_handlers = self._is_handler()
        limit = self.max_queue_len * (RESERVE if of_handlers else 1)
        if self.local_queued >= limit and (queued := self._count_local()) >= limit:
            raise QueueOverflow(queued, limit, queue="local", of_handlers=of_handlers)

    @property
    def local_queued(self) -> int:
        """How many local events have not been handled."""
        return self._local_in - self._local_out

    def _count_local(self) -> int:
        """Count the local events themselves, and correct the counters by that."""
        waiting = sum(type(item) is Delivery and not item.last_seq and not item.done for item in list(self.waiting))
        queued = waiting + len(self._local_aside)
        self._local_out = self._local_in - queued
        return queued

    def post_first(self, source: str, event: str, data: Any) -> None:
        """Put an event of eventsh's own before everything that waits."""
        delivery = Delivery(0, 1, None, [[source, event, [data]]])
        self._local_in += 1
        self.waiting.appendleft(delivery)

    def take_local(self, under_way: Delivery | None = None) -> list[Delivery]:
        """Take out the program's own events that wait for their handlers, for an inbox that replaces this one. One that its
        handlers have is left out."""
        taken: list[Delivery] = []
        for _ in range(len(self.waiting)):
            try:
                item = self.waiting.popleft()
            except IndexError:  # another thread took it
                break
            if item is under_way:
                continue
            if isinstance(item, Delivery) and not item.last_seq and item.runs[0][0] != LIFECYCLE_SOURCE:
                taken.append(item)
        return taken

    def put_local(self, deliveries: list[Delivery]) -> None:
        """Put in events that another inbox had."""
        self._local_in += len(deliveries)
        self.waiting.extend(deliveries)

    def release(self) -> None:
        """Stop waiting for a first handler."""
        self._holding = False

    def next_delivery(self, now: float) -> Delivery | None:
        """Return the delivery to dispatch, or None. It stays the first until the owner passes it to `complete`, or to
        `set_aside` if some of its handlers are still at work.

        A batch that can't be read becomes a gap in its place: nothing is lost without a report to the handlers.
        """
        waiting = self.waiting
        if not waiting or (self._holding and self._holds(now)):
            return None
        item = waiting[0]
        delivery = self._open_batch(*item) if type(item) is tuple else item
        assert isinstance(delivery, Delivery)
        if delivery.last_seq:
            self._track(delivery)
        return delivery

    def _track(self, delivery: Delivery) -> None:
        """Note that the first delivery is begun."""
        if delivery.epoch != self.epoch:
            if delivery not in self._stale:
                self._stale.append(delivery)
        elif not self._open or self._open[-1] is not delivery:
            self._open.append(delivery)

    def _holds(self, now: float) -> bool:
        if self.hold_until is None:
            self.hold_until = now + self.timeout_s
        self._holding = (
            not self._registry.ever_registered
            and now < self.hold_until
            # A sleeping giant of a queue would make the broker wait for this worker.
            and self._waiting_events() < self.max_queue_len // 2
        )
        return self._holding

    def _waiting_events(self) -> int:
        return sum(HEADER.unpack_from(item[1])[3] for item in list(self.waiting) if type(item) is tuple)

    def _open_batch(self, epoch: int, frame: bytearray | memoryview) -> Delivery:
        """Put the delivery of the first batch into the place of its frame."""
        _, _, flags, count, pid, origin, number, seq, time_ns = HEADER.unpack_from(frame)
        delivery = Delivery(seq + count - 1, count, pid, [], epoch=epoch, first_seq=seq, time_ns=time_ns)
        if self._reads_whole and not flags & ~self._readable:
            delivery.hold(frame)
        else:
            # First: the broker waits for the ack of a unique event, and its poster for the answer, also if it can't be read.
            is_traced = flags & Flag.TRACE and (flags & Flag.UNIQUE or self.is_worker)
            delivery.expect(flags, Trace(origin, number) if is_traced else None)
            try:
                self._read(delivery, frame, flags, origin)
            except ProtocolError as error:
                delivery.become_gap(self._on_unread(epoch, frame, error))
                if delivery.trace is not None:
                    delivery.trace.note_unread(str(error))
        self.waiting[0] = delivery
        return delivery

    def _read(self, delivery: Delivery, frame: bytearray | memoryview, flags: int, origin: int) -> None:
        """Fill in what the frame says. Raises ProtocolError for a batch that can't be read."""
        if unknown := flags & ~self._readable:
            raise UnknownForm(f"{name_flags(unknown)} not known here: a newer version of eventsh posted the batch")
        start = HEADER_BYTES
        if delivery.is_unique:
            start += 2 + len(read_key(frame))
        delivery.read(memoryview(frame)[start:], flags, is_own=not origin)

    def set_aside(self, delivery: Delivery) -> None:
        """Make room for the next delivery: all handlers of this one were called, and some have not returned."""
        if not delivery.last_seq and not delivery.done:
            self._local_aside.add(delivery)
        if self.waiting and self.waiting[0] is delivery:
            self.waiting.popleft()

    def complete(self, delivery: Delivery) -> None:
        """Note that every handler of this delivery has returned. Repeating the call changes nothing."""
        if not delivery.done:
            if delivery.trace is not None:
                self._answers.append(delivery.trace.answer().encode())
            delivery.finish()
            if not delivery.last_seq:
                self._local_out += 1
        self._local_aside.discard(delivery)
        self.set_aside(delivery)
        if self._stale:
            self._stale = [stale for stale in self._stale if not stale.done]
        while self._open and self._open[0].done:
            self.handled = self._open[0].last_seq
            self._open.popleft()

    def owed(self) -> list[Delivery]:
        """The deliveries that were set aside and are over, but not completed: an exception interrupted that."""
        aside = (*self._stale, *self._open, *self._local_aside)
        first = self.waiting[0] if self.waiting else None
        return [delivery for delivery in aside if delivery is not first and (delivery.done or delivery.is_over)]

    @property
    def is_idle(self) -> bool:
        """Whether nothing waits for its handlers, or for them to return."""
        return not self.waiting and not self._open and not self._stale

    @property
    def has_work(self) -> bool:
        """Whether `next_delivery` may have something."""
        return bool(self.waiting)
