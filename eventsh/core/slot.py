"""One receiver as the broker sees it: what is queued for it, what it has, and what it missed.

Each receiver has its own queue, so that a slow one delays nobody for longer than the timeout. One shared queue would
let one stopped process stop the pool. The frames in the queues are shared: a stalled worker costs references until the
others are done with them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from eventsh.core.queue import Entry, Queue
from eventsh.protocol.messages import Gap

if TYPE_CHECKING:
    from eventsh.core.link import Link
    from eventsh.core.poster import Post

__all__ = ["Slot"]


class Slot:
    """A worker's or an observer's place. A worker's survives its process, so that the next one misses nothing."""

    __slots__ = (
        "absent_since",
        "draining",
        "dropped",
        "failed",
        "gap_reason",
        "handled",
        "identity",
        "in_doubt",
        "in_doubt_first",
        "is_gone",
        "is_observer",
        "last_seq",
        "leaving",
        "link",
        "lossy",
        "missed",
        "missed_first",
        "missed_last",
        "pid",
        "progress_at",
        "queue",
        "received",
        "stalled",
        "takes_unique",
        "uniques",
        "uniques_given",
        "worker_id",
    )

    def __init__(self, worker_id: int | None, limit: int, now: float) -> None:
        self.worker_id = worker_id
        self.is_observer = worker_id is None
        self.identity: str | None = None
        self.pid: int | None = None
        self.link: Link | None = None
        # The process that held it has ended: it will not come back for its place.
        self.is_gone = True
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
        self.progress_at = now
        # It gets nothing more until it has caught up; what passes by is counted in `missed`.
        self.lossy = False
        # It has not taken what it was sent for `timeout`: confirmations do not wait for it.
        self.stalled = False
        self.missed = 0
        self.missed_first = 0
        self.missed_last = 0
        self.gap_reason = ""
        # Events that the last process had received and not handled when its queue was dropped: missed only if that
        # process does not come back.
        self.in_doubt = 0
        self.in_doubt_first = 0
        self.handled = 0
        self.dropped = 0
        self.failed = 0

    @property
    def is_live(self) -> bool:
        """Whether an event counts as delivered only once this receiver has it."""
        return self.link is not None and not (self.is_observer or self.draining or self.lossy or self.stalled)

    @property
    def label(self) -> str:
        """Who it is, for people."""
        return f"the observer with pid {self.pid}" if self.is_observer else f"worker {self.worker_id}"

    @property
    def is_behind(self) -> bool:
        return self.received < self.last_seq

    @property
    def can_take_unique(self) -> bool:
        return self.link is not None and self.takes_unique and not (self.draining or self.lossy or self.stalled)

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
        if not self.missed:
            self.missed_first = first
        self.missed += count
        self.missed_last = last
        self.dropped += count

    def start_losing(self, reason: str) -> None:
        """Give it nothing more until `end_losing`, and remember how much that was."""
        self.lossy = True
        self.gap_reason = reason

    def drop_queue(self) -> None:
        """Let everything that is queued go, because nobody took the slot for long."""
        for entry in self.queue:
            if entry.last > self.received:
                self.miss(entry.events, entry.last - entry.events + 1, entry.last)
            elif entry.events:
                self.in_doubt_first = self.in_doubt_first or entry.last - entry.events + 1
                self.in_doubt += entry.events
        self.queue.clear()
        self.received = self.last_seq

    def end_losing(self, now: float) -> bool:
        """Tell it of the gap at its place in the stream. True when its link has something to send."""
        self.lossy = False
        if not self.missed:
            return False
        gap = Gap(self.missed, self.missed_first, self.missed_last, self.gap_reason)
        last, first = self.missed_last, self.missed_first
        self.missed = 0
        return self.offer(Entry(last, 0, gap.encode(seq=last)), first, now)

    def attach(self, link: Link, identity: str, pid: int, received: int, handled: int, now: float) -> None:
        """Give the place to a process. `received` and `handled` are what this same process had of this stream before;
        any other one gets everything that its predecessor had not handled."""
        is_same = identity == self.identity
        self.link, link.slot = link, self
        self.identity, self.pid = identity, pid
        self.is_gone = self.draining = self.leaving = self.stalled = False
        self.progress_at = now
        if is_same:
            self.take_ack(min(received, self.last_seq), min(handled, self.last_seq), now)
        else:
            if self.in_doubt:
                self.miss(self.in_doubt, self.in_doubt_first, max(self.missed_last, self.last_seq))
                self.missed_first = min(self.missed_first, self.in_doubt_first)
            if self.queue:
                first = self.queue.peek()
                self.received = first.last - max(first.events, 1)
        self.in_doubt = self.in_doubt_first = 0

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
        for seq in [seq for seq in self.uniques if seq <= handled]:
            del self.uniques[seq]
