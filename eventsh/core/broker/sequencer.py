"""Sequence numbers and queues: number every event, enqueue it for its receivers, drop and report what a queue can't hold."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from eventsh.core.broker.budget import Budget
from eventsh.core.broker.room import Room
from eventsh.core.broker.state import Slot
from eventsh.core.queue import Entry, Queue
from eventsh.event import LIFECYCLE_SOURCE
from eventsh.protocol.codec import encode_data
from eventsh.protocol.features import WORKERS_JOINED
from eventsh.protocol.frame import (
    FIRST_FLAGS,
    FLAGS_OFFSET,
    HEADER_BYTES,
    ORIGIN,
    ORIGIN_OFFSET,
    STAMP,
    STAMP_OFFSET,
    Flag,
    Kind,
    decode_header,
    encode_frame,
)
from eventsh.protocol.messages import Gap

if TYPE_CHECKING:
    from eventsh.core.broker.sink import EventSink
    from eventsh.core.broker.state import BrokerState, Post

__all__ = ["Sequencer"]

# What a new broker routes before the first worker of the one before it is back: short, for these come in milliseconds.
_BACKLOG_EVENTS = 256
# What a poster wants to be told of an event: it was answered when the event was posted.
_ANSWERED = Flag.RECEIPT | Flag.TRACE


class Sequencer:
    """The order of events: one number for each, `seq` is the last one given."""

    def __init__(self, state: BrokerState, *, wall_clock_ns: Callable[[], int]) -> None:
        self.seq = 0
        # Broadcast posts, as events.
        self.posts = 0
        # Everything since the start, for a while: workers of an earlier broker must miss nothing of it.
        queue = Queue(_BACKLOG_EVENTS, state.options.max_queue_bytes // 16)
        budget = Budget(state.options.timeout, state.started_at)
        self.startup_backlog: Slot | None = Slot(None, queue, budget, state.started_at)
        # Workers with a full queue, which spend their budgets: while there is one, nothing that a poster sent is enqueued.
        self.full: set[Slot] = set()
        # Enqueued and not confirmed, in the order of seq.
        self.unconfirmed: deque[tuple[int, Post]] = deque()
        # The recorder, if there is one.
        self.sink: EventSink | None = None
        self.wall_clock_ns = wall_clock_ns
        self._slots = state.slots
        self._room = Room(state.slots, state.options)
        self._changed, self._warn = state.outgoing.changed, state.outgoing.warn
        self._pid = state.pid

    def set_sink(self, sink: EventSink | None) -> None:
        self.sink = sink

    def end_startup(self) -> None:
        """Let go of the events since the start: workers of an earlier broker that come now are not expected any more."""
        self.startup_backlog = None

    # --- events ---

    def enqueue(self, post: Post, slots: Iterable[Slot] | None, now: float) -> None:
        """Number a post, stamp its frame and queue it for these slots, or for all."""
        frame = post.frame
        assert frame is not None
        first = self.seq + 1
        self.seq += post.count
        ORIGIN.pack_into(frame, ORIGIN_OFFSET, post.poster.origin)
        STAMP.pack_into(frame, STAMP_OFFSET, first, self.wall_clock_ns())
        if slots is None:
            self.posts += post.count
            post.sequence(self.seq, self.posts)
        else:
            post.sequence(self.seq)
        self.unconfirmed.append((self.seq, post))
        self._offer(Entry(self.seq, post.count, frame, now), first, slots, now)

    def skip(self, post: Post) -> None:
        """Enqueue a post for nobody. It is confirmed in its turn, after what its poster posted before."""
        post.release_frame()
        post.sequence(self.seq)
        self.unconfirmed.append((self.seq, post))

    def enqueue_own(self, event: str, data: dict[str, Any], slots: Iterable[Slot] | None, now: float) -> None:
        """Enqueue an event of the broker's own. It has no poster (its origin is 0), so nobody waits for its confirmation.

        Raises NotSerializable; then nothing has changed."""
        body = b'[["' + LIFECYCLE_SOURCE.encode() + b'","' + event.encode() + b'",[' + encode_data(data) + b"]]]"
        self.seq = seq = self.seq + 1
        stamp = self.wall_clock_ns()
        frame = encode_frame(Kind.EVENTS, body, count=1, pid=self._pid, origin_seq=seq, seq=seq, time_ns=stamp)
        self._offer(Entry(seq, 1, frame, now), seq, slots, now)

    def enqueue_again(self, frame: bytearray, slots: Iterable[Slot], now: float) -> None:
        """Enqueue an event anew, as one of the broker's own that names its first poster's process: it is not one of the posts that
        are counted, for its place among those was reported as a gap."""
        self.seq = seq = self.seq + 1
        header = decode_header(frame)
        again = encode_frame(
            Kind.EVENTS,
            memoryview(frame)[HEADER_BYTES:],
            flags=header.flags & ~_ANSWERED | Flag.RESENT,
            count=header.count,
            pid=header.pid,
            origin_seq=seq,
            seq=seq,
            time_ns=self.wall_clock_ns(),
        )
        self._offer(Entry(seq, header.count, again, now), seq, slots, now)

    def announce(self, event: str, slot: Slot, now: float, **more: Any) -> None:
        """Enqueue a lifecycle event about a worker for all."""
        self.enqueue_own(event, {"worker_id": slot.worker_id, "pid": slot.pid, **more}, None, now)

    def announce_joined(self, workers: list[dict[str, Any]], now: float) -> None:
        """Enqueue one event about all these workers, and for receivers that do not know it one about each.

        A slot without a process gets the one event if its last process knew it, or if it had none. A process of the first
        version that takes such a slot then reads the holders in its welcome only."""
        joined = "workers_joined", {"workers": workers}
        older = [slot for slot in self._slots if slot.identity is not None and WORKERS_JOINED not in slot.features]
        if not older:
            self.enqueue_own(*joined, None, now)
            return
        for worker in workers:
            self.enqueue_own("worker_joined", worker, older, now)
        others = set(older)
        newer = [slot for slot in self._slots if slot not in others]
        self.enqueue_own(*joined, newer if self.startup_backlog is None else [*newer, self.startup_backlog], now)

    def _offer(self, entry: Entry, first: int, slots: Iterable[Slot] | None, now: float) -> None:
        if self.sink is not None:
            self.sink.take(entry, slots)
        backlog = self.startup_backlog
        if backlog is not None and slots is None:
            if backlog.queue.is_full and not backlog.is_dropping:
                backlog.start_dropping("the broker was new, and this worker not yet attached to it", now)
            backlog.offer(entry, first, now)
        self._room.count(len(entry.frame))
        newer = entry.frame[FLAGS_OFFSET] > FIRST_FLAGS
        for slot in self._slots if slots is None else slots:
            if slot.goodbye is not None and slot.is_leaving:
                continue
            if slot.queue.is_full and slot.drop_reason is None and not slot.holds_posters:
                slot.start_dropping(_why_at_once(slot), now)
            offered = self._readable(entry, slot) if newer else entry
            if slot.offer(offered, first, now) and slot.connection is not None:
                self._changed[slot.connection] = None
            if slot.queue.is_full and slot.drop_reason is None and slot.holds_posters:
                self._hold_posters(slot, now)

    def _readable(self, entry: Entry, slot: Slot) -> Entry:
        """Return the entry, or the gap that a slot gets instead of a frame with flags that its process does not know."""
        flags = entry.frame[FLAGS_OFFSET]
        if slot.is_dropping or slot.goodbye is not None or slot.can_read(flags):
            return entry
        gap = slot.gap_for(entry, self.posts)
        self.warn_unreadable(slot)
        return gap

    def warn_unreadable(self, slot: Slot) -> None:
        """Log that a receiver gets gaps for frames that it can't read, once for each connection: a poster may send many."""
        if slot.connection is not None and slot.connection.note_unreadable():
            self._warn(
                f"{slot.label} gets gaps in the place of batches that it or this broker can't read: a process with a newer"
                " version of eventsh posts them; update all processes of the pool"
            )

    def send_alone(self, post: Post, slot: Slot) -> None:
        """Send a unique event that was queued for a slot on hold once all before it is handled, and nothing after it until then."""
        assert post.last_seq is not None
        if slot.send_carefully(post.last_seq) and slot.connection is not None:
            self._changed[slot.connection] = None

    def send_on(self, slot: Slot) -> None:
        """Send what waits for a slot on hold, as far as its last ack allows."""
        if slot.send_queued() and slot.connection is not None:
            self._changed[slot.connection] = None

    # --- gaps ---

    def enqueue_gap(
        self, slot: Slot, missed: int, reason: str, now: float, *, epoch: int = 0, posts: int = 0, exact: bool = True
    ) -> None:
        """Report events to a receiver that it missed before it came, where nothing is dropped for it now. The gap has a number of
        its own, to be acknowledged."""
        self.seq = seq = self.seq + 1
        slot.count_dropped(missed)
        self._warn(f"{slot.label} missed {missed if exact else 'an unknown number of'} events: {reason}")
        gap = Gap(missed, 1, seq, reason, epoch, posts, exact)
        if slot.offer(Entry(seq, 0, gap.encode(seq=seq), now), seq, now) and slot.connection is not None:
            self._changed[slot.connection] = None

    def _hold_posters(self, slot: Slot, now: float) -> None:
        """Have posters wait for room in a slot's queue, as far as its budget allows."""
        slot.budget.spend(now)
        self.full.add(slot)
        if slot.budget.is_empty(now):
            self._drop(slot, now)

    def drop_exhausted(self, now: float) -> None:
        """Drop the events of slots whose full queue has held posters up for as long as it may."""
        for slot in [slot for slot in self.full if slot.budget.is_empty(now)]:
            self._drop(slot, now)

    def _drop(self, slot: Slot, now: float) -> None:
        queue = slot.queue
        self.forget(slot, now)
        reason = f"{slot.label} was too slow: its full queue held posters up for {slot.budget.limit_s:g} s (timeout)"
        slot.start_dropping(reason, now)
        if not slot.is_muted:
            self._warn(
                f"{reason}; it holds {queue.events} events, {queue.bytes} bytes, and what follows is dropped for it"
            )

    def note_room(self, slot: Slot, now: float) -> None:
        """Note that something left this slot's queue."""
        if not slot.budget.is_refilling and not slot.queue.is_full:
            self.full.discard(slot)
            slot.budget.refill(now)

    def forget(self, slot: Slot, now: float) -> None:
        """Wait for this slot's queue no longer: the slot is given up, or nothing more is queued for it."""
        self.full.discard(slot)
        slot.budget.rest(now)

    def resume(self, slot: Slot, now: float) -> None:
        """Queue events again for a slot that was dropping, once it has worked off half of its queue."""
        if slot.queue.is_half_empty:
            if slot.missed and not slot.is_muted:
                self._warn(f"{slot.label} missed {slot.missed} events: {slot.drop_reason}")
            if slot.end_dropping(self.posts, now) and slot.connection is not None:
                self._changed[slot.connection] = None


def _why_at_once(slot: Slot) -> str:
    if slot.is_observer:
        return "the observer was too slow"
    return f"{slot.label} was about to leave, and its queue was full: posters do not wait for that"
