"""One receiver as the broker sees it: what is queued for it, what it has, and what it missed.

Each receiver has its own queue, so that a slow one delays nobody for longer than the timeout. One shared queue would
let one stopped process stop the pool. The frames in the queues are shared: a stalled worker costs references until the
others are done with them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from eventsh.core.queue import Entry, Queue
from eventsh.protocol.features import name_flags
from eventsh.protocol.frame import FLAGS_OFFSET, Flag, decode_header
from eventsh.protocol.messages import Gap

if TYPE_CHECKING:
    from eventsh.core.link import Link
    from eventsh.core.poster import Post

__all__ = ["Slot"]


class Slot:
    """A worker's or an observer's place. A worker's survives its process, so that the next one misses nothing."""

    __slots__ = (
        "absent_since",
        "doubts",
        "draining",
        "dropped",
        "earlier",
        "failed",
        "features",
        "gap_reason",
        "handled",
        "identity",
        "is_expired",
        "is_gone",
        "is_observer",
        "is_telling",
        "last_seq",
        "leaving",
        "link",
        "lossy",
        "missed",
        "missed_first",
        "missed_last",
        "passed",
        "pid",
        "progress_at",
        "queue",
        "received",
        "stalled",
        "takes_unique",
        "uniques",
        "uniques_given",
        "unread",
        "unread_before",
        "worker_id",
    )

    def __init__(self, worker_id: int | None, limit: int, now: float) -> None:
        self.worker_id = worker_id
        self.is_observer = worker_id is None
        self.identity: str | None = None
        self.pid: int | None = None
        self.link: Link | None = None
        # No process is known that will come for it: the last one has ended, or said goodbye. While one may come back, from
        # a connection that broke or from an earlier broker, posts are not confirmed without it: if this broker died
        # before it is back, nobody would have them for it.
        self.is_gone = True
        # It is about to tell which unique events it has from an earlier broker.
        self.is_telling = False
        # Everything that is not acknowledged as handled, sent or not.
        self.queue = Queue(limit)
        # It has everything up to here. Exact also where it got nothing for a while: see `offer`.
        self.received = 0
        self.last_seq = 0
        self.takes_unique = False
        # The unique events that it was given and has not handled, by seq.
        self.uniques: dict[int, Post] = {}
        self.uniques_given = 0
        self.draining = False
        self.leaving = False
        self.absent_since = now
        # Nobody came for it in time: its queue was dropped.
        self.is_expired = False
        self.progress_at = now
        # It gets nothing more until it has caught up; what passes by is counted in `missed`.
        self.lossy = False
        # It has not taken what it was sent for `timeout`: confirmations do not wait for it.
        self.stalled = False
        self.missed = 0
        self.missed_first = 0
        self.missed_last = 0
        self.gap_reason = ""
        # What was in the queue when it was dropped. The last process may have received more of it than it could say, and
        # has not missed that if it comes back. First and last seq, events missed, events counted in `dropped`.
        self.doubts: list[tuple[int, int, int, int]] = []
        # How many posts to everybody of each earlier epoch it has, or is told of. None: not known, and no matter.
        self.earlier: dict[int, int] | None = None
        # Posts of this epoch that it is still to be told of, for they came before anybody knew of it.
        self.passed = 0
        self.handled = 0
        self.dropped = 0
        self.failed = 0
        # Events that its processes could not read and reported as a gap; the same of all processes before the attached one.
        self.unread = 0
        self.unread_before = 0
        # The features of the wire that its last process knows. A slot that had no process yet counts as knowing none.
        self.features: frozenset[str] = frozenset()

    @property
    def is_live(self) -> bool:
        """Whether an event counts as delivered only once this receiver has it."""
        return not (self.is_gone or self.is_observer or self.draining or self.lossy or self.stalled)

    @property
    def label(self) -> str:
        """Who it is, for people."""
        return f"the observer with pid {self.pid}" if self.is_observer else f"worker {self.worker_id}"

    @property
    def is_behind(self) -> bool:
        return self.received < self.last_seq

    @property
    def can_take_unique(self) -> bool:
        if self.link is None or not self.takes_unique or self.draining or self.lossy or self.stalled:
            return False
        # A full observer would lose it; a full worker's queue takes one frame more.
        return not (self.is_observer and self.queue.is_full)

    @property
    def state(self) -> str:
        """In a word, for people."""
        if self.link is None:
            return "absent"
        if self.draining:
            return "draining"
        if self.lossy:
            return "losing"
        return "stalled" if self.stalled else "attached"

    @property
    def posts_behind(self) -> int:
        """How many posts to everybody are not handled here, sent or not. At most: of what it missed, some was eventsh's own."""
        queued = sum(map(_posts_in, self.queue))
        return queued + self.passed + self.missed + sum(missed for _, _, missed, _ in self.doubts)

    def offer(self, entry: Entry, first: int, now: float) -> bool:
        """Queue an entry and send it if the receiver is attached. True when its link has something to send."""
        if self.lossy:
            self.miss(entry.events, first, entry.last)
            return False
        if self.received >= self.last_seq:
            # It has all there was for it until now, whatever numbers passed by that were not for it.
            self.received = first - 1
            self.progress_at = now
        self.last_seq = entry.last
        self.queue.append(entry)
        if self.link is None or self.draining:
            return False
        self.link.output.append(entry.frame)
        return True

    def miss(self, count: int, first: int, last: int) -> None:
        """Count events that this receiver does not get."""
        self._add_missed(count, first, last)
        self.dropped += count

    def _add_missed(self, count: int, first: int, last: int) -> None:
        self.missed_first = min(self.missed_first, first) if self.missed else first
        self.missed_last = max(self.missed_last, last) if self.missed else last
        self.missed += count

    def start_losing(self, reason: str) -> None:
        """Give it nothing more until `end_losing`, and remember how much that was."""
        self.lossy = True
        self.gap_reason = reason

    def drop_queue(self) -> None:
        """Let everything that is queued go, because nobody took the slot for long."""
        # Unique events are not missed: another worker gets them.
        self.queue.discard(set(self.uniques))
        for entry in self.queue:
            if entry.events:
                self.doubts.append((entry.last - entry.events + 1, entry.last, entry.events, entry.events))
                self.dropped += entry.events
            else:
                # The notice of an earlier gap: its events are counted as dropped already.
                gap = Gap.decode(entry.frame)
                if gap.epoch and self.earlier is not None:
                    # Not told after all.
                    self.earlier[gap.epoch] = gap.posts - gap.missed
                    self.dropped -= gap.missed
                elif not gap.epoch:
                    self.doubts.append((gap.first_seq, gap.last_seq, gap.missed, 0))
        self.queue.clear()
        self.received = self.last_seq

    def _settle_doubts(self, received: int) -> None:
        for first, last, missed, counted in self.doubts:
            if last > received:
                self._add_missed(missed, first, last)
            else:
                self.dropped -= counted
        self.doubts.clear()

    def start_from(self, other: Slot, posts: int, now: float) -> None:
        """Begin, as a new place, with everything that `other` was offered and got or missed."""
        self.received, self.last_seq = 0, other.last_seq
        for entry in other.queue:
            self.queue.append(entry)
        if other.missed:
            self.miss(other.missed, other.missed_first, other.missed_last)
            self.gap_reason = other.gap_reason
            self.end_losing(posts, now)

    def end_losing(self, posts: int, now: float) -> bool:
        """Tell it of the gap at its place in the stream, which is behind `posts` to everybody. True when its link has something
        to send."""
        self.lossy = False
        if not self.missed:
            return False
        gap = Gap(self.missed, self.missed_first, self.missed_last, self.gap_reason, posts=posts)
        last, first = self.missed_last, self.missed_first
        self.missed = 0
        return self.offer(Entry(last, 0, gap.encode(seq=last)), first, now)

    def attach(self, link: Link, identity: str, pid: int, had: tuple[int, int] | None, now: float) -> None:
        """Give the place to a process. `had` is what it has received and handled of this epoch before, None for a
        process to which this epoch is new: that one gets everything that its predecessor had not handled."""
        self.link, link.slot = link, self
        self.features = link.features
        if self.identity != identity:
            self.unread_before = self.unread
        self.identity, self.pid = identity, pid
        self.is_gone = self.draining = self.leaving = self.stalled = self.is_expired = False
        self.progress_at = now
        self._settle_doubts(had[0] if had is not None else 0)
        if had is not None:
            # Its own word counts, though another process may have held the place meanwhile and have got further.
            self.received = min(had[0], self.last_seq)
            self.take_ack(self.received, min(had[1], self.received), now)
        elif self.queue:
            first = self.queue.peek()
            self.received = first.last - max(first.events, 1)

    def note_unread(self, events: int) -> None:
        """Note how many events the attached process could not read until now."""
        self.unread = max(self.unread, self.unread_before + events)

    def can_read(self, flags: int) -> bool:
        """Whether the attached process, and the broker, know these flags of a frame."""
        return self.link is None or not flags & ~self.link.readable

    def gap_for(self, entry: Entry, posts: int) -> Entry:
        """Make the gap that the attached process gets in the place of a frame that it can't read. `posts` to everybody have
        been made with it."""
        header = decode_header(entry.frame)
        reason = f"{name_flags(header.flags)} not known to the broker or to {self.label}: a newer version of eventsh posted it"
        gap = Gap(entry.events, header.seq, entry.last, reason, posts=posts)
        self.dropped += entry.events
        return Entry(entry.last, 0, gap.encode(seq=entry.last))

    def replace_unreadable(self, posts: int) -> bool:
        """Put gaps in the places of queued frames that the attached process did not receive and can't read; return whether
        there are any. `posts` to everybody have been made with the last one of the queue.

        Queued frames stay as they are until a process takes the slot: the next one may know what the last one did not."""
        backlog = [entry for entry in self.queue if entry.last > self.received]
        if all(self.can_read(entry.frame[FLAGS_OFFSET]) for entry in backlog):
            return False
        posts -= self.missed
        entries: list[Entry] = []
        for entry in reversed(list(self.queue)):
            is_unread = entry.last > self.received and not self.can_read(entry.frame[FLAGS_OFFSET])
            entries.append(self.gap_for(entry, posts) if is_unread else entry)
            posts -= _posts_in(entry)
        self.queue.clear()
        self.queue.put_back(entries[::-1])
        return True

    def send_backlog(self) -> None:
        """Send what is queued and the attached process does not have, before anything new."""
        assert self.link is not None
        backlog = [entry.frame for entry in self.queue if entry.last > self.received]
        self.link.output += backlog
        if not backlog:
            self.received = self.last_seq

    def take_unreceived_uniques(self) -> list[Post]:
        """The unique events whose confirmation was put off by `detach` and that the process did not get, out of the
        queue; they have to be given again. Those that it did get are left, with their seq."""
        again = {seq: post for seq, post in self.uniques.items() if post.last_seq is None and seq > self.received}
        for seq in again:
            del self.uniques[seq]
        if again:
            self.queue.discard(set(again))
        return list(again.values())

    def detach(self, now: float) -> None:
        """Its connection is gone. What it had not handled stays queued."""
        self.link = None
        self.is_gone = self.is_gone or self.draining
        self.draining = False
        self.absent_since = now
        for post in self.uniques.values():
            if post.last_seq is not None and post.last_seq > self.received:
                post.last_seq = None

    def take_uniques(self) -> list[Post]:
        """The unique events that it did not handle, taken out of its queue for another worker."""
        posts = list(self.uniques.values())
        if posts:
            self.queue.discard(set(self.uniques))
            self.uniques.clear()
        return posts

    def take_ack(self, received: int, handled: int, now: float) -> None:
        """The receiver has everything up to `received` and has handled everything up to `handled`."""
        if received > self.received:
            self.received = received
            self.progress_at = now
            self.stalled = False
        released = self.queue.release(handled)
        if released:
            self.handled += released
            self.progress_at = now
        # In the order of seq, as they were given.
        while self.uniques and (seq := next(iter(self.uniques))) <= handled:
            del self.uniques[seq]


def _posts_in(entry: Entry) -> int:
    """How many posts to everybody an entry of a queue stands for."""
    if not entry.events:
        gap = Gap.decode(entry.frame)
        return 0 if gap.epoch else gap.missed
    header = decode_header(entry.frame)
    return entry.events if header.origin and not header.flags & Flag.UNIQUE else 0
