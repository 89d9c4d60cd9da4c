"""Give every event its place among all, and put it into the queues of those who are to get it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from eventsh.core.queue import Entry
from eventsh.core.slot import Slot
from eventsh.event import LIFECYCLE_SOURCE
from eventsh.protocol.codec import encode_data
from eventsh.protocol.frame import (
    FIRST_FLAGS,
    FLAGS_OFFSET,
    ORIGIN,
    ORIGIN_OFFSET,
    STAMP,
    STAMP_OFFSET,
    Kind,
    encode_frame,
)
from eventsh.protocol.messages import Gap

if TYPE_CHECKING:
    from eventsh.core.outlet import Outlet
    from eventsh.core.poster import Post
    from eventsh.core.roster import Roster
    from eventsh.core.tap import Tap

__all__ = ["Fanout"]

# What a new broker routes before the first worker of the one before it is back: short, for these come in milliseconds.
_FOUNDER_EVENTS = 256


class Fanout:
    """The order of events: one number for each, `seq` is the last one given."""

    def __init__(
        self, roster: Roster, outlet: Outlet, *, pid: int, wall_clock_ns: Callable[[], int], now: float
    ) -> None:
        self.seq = 0
        # Posts to everybody, as events.
        self.posts = 0
        # Everything since the start, for a while: workers of an earlier broker must miss nothing of it.
        self.founder: Slot | None = Slot(None, _FOUNDER_EVENTS, now)
        # Workers with a full queue: while there is one, nothing that a poster sent is placed.
        self.full: set[Slot] = set()
        # Placed and not confirmed, in the order of seq.
        self.placed: deque[tuple[int, Post]] = deque()
        # Whoever records.
        self.tap: Tap | None = None
        self.wall_clock_ns = wall_clock_ns
        self._roster = roster
        self._changed, self._notices = outlet.changed, outlet.notices
        self._pid = pid

    def place(self, post: Post, slots: Iterable[Slot] | None, now: float) -> None:
        """Stamp a post and queue it for these slots, or for everybody."""
        frame = post.frame
        assert frame is not None
        first = self.seq + 1
        post.last_seq = self.seq = self.seq + post.count
        ORIGIN.pack_into(frame, ORIGIN_OFFSET, post.poster.origin)
        STAMP.pack_into(frame, STAMP_OFFSET, first, self.wall_clock_ns())
        if slots is None:
            post.place = self.posts = self.posts + post.count
        self.placed.append((self.seq, post))
        self._offer(Entry(self.seq, post.count, frame), first, slots, now)

    def place_nowhere(self, post: Post) -> None:
        """Nobody gets it. It is confirmed in its turn, behind what its poster posted before."""
        post.frame = None
        post.last_seq = self.seq
        self.placed.append((self.seq, post))

    def place_own(self, event: str, data: dict[str, Any], slots: Iterable[Slot] | None, now: float) -> None:
        """An event of the broker's own. It has no poster (its origin is 0), so nobody waits for its confirmation.

        Raises NotSerializable; then nothing has changed."""
        body = b'[["' + LIFECYCLE_SOURCE.encode() + b'","' + event.encode() + b'",[' + encode_data(data) + b"]]]"
        self.seq = seq = self.seq + 1
        stamp = self.wall_clock_ns()
        frame = encode_frame(Kind.EVENTS, body, count=1, pid=self._pid, origin_seq=seq, seq=seq, time_ns=stamp)
        self._offer(Entry(seq, 1, frame), seq, slots, now)

    def announce(self, event: str, slot: Slot, now: float, **more: Any) -> None:
        """Tell everybody of what became of a worker."""
        self.place_own(event, {"worker_id": slot.worker_id, "pid": slot.pid, **more}, None, now)

    def _offer(self, entry: Entry, first: int, slots: Iterable[Slot] | None, now: float) -> None:
        if self.tap is not None:
            self.tap.take(entry, slots)
        founder = self.founder
        if founder is not None and slots is None:
            if founder.queue.is_full and not founder.lossy:
                founder.start_losing("the broker was new, and this worker not yet attached to it")
            founder.offer(entry, first, now)
        newer = entry.frame[FLAGS_OFFSET] > FIRST_FLAGS
        for slot in self._roster if slots is None else slots:
            if slot.leaving:
                continue
            if slot.queue.is_full and slot.is_observer and not slot.lossy:
                slot.start_losing("the observer was too slow")
            offered = self._readable(entry, slot) if newer else entry
            if slot.offer(offered, first, now) and slot.link is not None:
                self._changed[slot.link] = None
            if slot.queue.is_full and not slot.is_observer and not slot.lossy:
                self.full.add(slot)

    def _readable(self, entry: Entry, slot: Slot) -> Entry:
        """The entry, or the gap that a slot gets instead of a frame with flags that its process does not know."""
        flags = entry.frame[FLAGS_OFFSET]
        if slot.lossy or slot.draining or slot.can_read(flags):
            return entry
        gap = slot.gap_for(entry, self.posts)
        self.warn_unreadable(slot)
        return gap

    def warn_unreadable(self, slot: Slot) -> None:
        """Log that a receiver gets gaps for frames that it can't read, once for each connection: a poster may send many."""
        if slot.link is not None and not slot.link.warned_unreadable:
            slot.link.warned_unreadable = True
            self._notices.append(
                f"{slot.label} gets gaps in the place of batches that it or this broker can't read: a process with a newer"
                " version of eventsh posts them; update all processes of the pool"
            )

    def place_gap(
        self, slot: Slot, missed: int, reason: str, now: float, *, epoch: int = 0, posts: int = 0, exact: bool = True
    ) -> None:
        """Tell a receiver that is losing nothing of what it missed before it came. This has a number of its own, to be
        acknowledged."""
        self.seq = seq = self.seq + 1
        slot.dropped += missed
        self._notices.append(f"{slot.label} missed {missed if exact else 'an unknown number of'} events: {reason}")
        gap = Gap(missed, 1, seq, reason, epoch, posts, exact)
        if slot.offer(Entry(seq, 0, gap.encode(seq=seq)), seq, now) and slot.link is not None:
            self._changed[slot.link] = None

    def relieve(self, slot: Slot) -> None:
        """Something was taken out of this slot's queue."""
        if not slot.queue.is_full:
            self.full.discard(slot)

    def recover(self, slot: Slot, now: float) -> None:
        """Let a slot that was losing have events again, once it has worked off half of its queue."""
        if slot.queue.events <= slot.queue.limit // 2:
            if slot.missed:
                self._notices.append(f"{slot.label} missed {slot.missed} events: {slot.gap_reason}")
            if slot.end_losing(self.posts, now) and slot.link is not None:
                self._changed[slot.link] = None
