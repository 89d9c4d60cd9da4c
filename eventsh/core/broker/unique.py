"""Unique events: which worker gets one, and redelivery when that worker is lost."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from eventsh.core.broker.keys import KeyTable
from eventsh.core.broker.state import UniqueFate
from eventsh.protocol.frame import Flag, shorten_key

if TYPE_CHECKING:
    from collections.abc import Iterable

    from eventsh.core.broker.sequencer import Sequencer
    from eventsh.core.broker.state import BrokerState, Post, Poster, Slot
    from eventsh.protocol.messages import Taken

__all__ = ["UniqueAssigner"]


# How many of an earlier broker's events are known at most: those of a whole pool, 100 bytes each.
_INHERITED = 65536


class UniqueAssigner:
    """The keys of unique events, and the events that wait for a worker."""

    def __init__(self, state: BrokerState, sequencer: Sequencer) -> None:
        options = state.options
        self.keys = KeyTable(options.unique_timeout or options.timeout, options.max_unique_keys)
        self.ignored_repeats = 0
        self._slots = state.slots
        self._sequencer = sequencer
        # Events that no worker can take at present.
        self._parked: deque[Post] = deque()
        # How many of them a worker was given before.
        self._parked_again = 0
        # Unique events, by origin and number, that workers have from an earlier broker.
        self._inherited: dict[tuple[int, int], Slot] = {}

    @property
    def has_parked(self) -> bool:
        return bool(self._parked)

    def route(self, post: Post, now: float) -> bool:
        """Assign a new unique event to a worker, drop a repeat, or let it wait for a worker. False: not now.

        While workers of an earlier broker have not named the unique events that they have, every one waits: it may be one of
        those, sent again, or a repeat of one.
        """
        if not self._slots.is_complete:
            self._parked.append(post)
            return True
        holder = self._inherited.get((post.poster.origin, post.first)) if post.flags & Flag.RESENT else None
        if holder is not None:
            # The process that has it drops it, and acknowledges it as if it were new. The key is its own, so it is not a repeat,
            # and if its worker has died since, another one gets it.
            slot = holder if holder.connection is not None else self._choose(post)
            if slot is None:
                self._parked.append(post)
            else:
                self._assign(post, slot, now)
            return True
        if self.keys.is_taken(post.key, now):
            self.ignored_repeats += 1
            post.settle_unique(UniqueFate.REPEAT)
            self._sequencer.skip(post)
            return True
        if self.keys.is_full(now):
            return False
        slot = self._choose(post)
        if slot is not None:
            # Only now: an event that nobody gets, or that is a gap for the one who does, must not keep its key from the next.
            if slot.can_read(post.flags):
                self.keys.take(post.key, now)
            self._assign(post, slot, now)
        elif post.flags & Flag.RECEIPT:
            post.settle_unique(UniqueFate.NOBODY)
            self._sequencer.skip(post)
        else:
            self._parked.append(post)
        return True

    def inherit(self, taken: Taken, slot: Slot, now: float, wall_ns: int) -> None:
        """Learn which unique events a worker has from an earlier broker. Their keys stay taken for what is left of their
        time."""
        # Without ages the worker has version 0.1.0, and the time of day is all there is.
        ages_s = [age_ms / 1000 for age_ms in taken.ages_ms] or [
            max(0.0, (wall_ns - time_ns) / 1e9) for _, _, time_ns, _ in taken.events
        ]
        for (origin, number, _, key), age_s in zip(taken.events, ages_s, strict=True):
            self._inherited[origin, number] = slot
            if age_s < self.keys.timeout_s and not self.keys.is_full(now):
                self.keys.take(shorten_key(bytes.fromhex(key)), now, age_s=age_s)
        while len(self._inherited) > _INHERITED:
            del self._inherited[next(iter(self._inherited))]

    def assign_again(self, posts: Iterable[Post], slot: Slot, now: float) -> None:
        """Give a process that came back to its slot what it was given before and did not receive."""
        for post in posts:
            self._assign(post, slot, now)

    def reassign(self, slot: Slot, now: float) -> None:
        """Give the unique events that a lost worker did not handle to others. Their keys stay taken."""
        for post in slot.take_uniques():
            self.retry(post, now)
        self._sequencer.note_room(slot, now)

    def retry(self, post: Post, now: float) -> None:
        """Give a unique event that another worker had to one that can take it, or let it wait. Its key stays taken."""
        other = self._choose(post)
        if other is None:
            post.defer()
            self._parked.append(post)
            self._parked_again += 1
        else:
            self._assign(post, other, now)

    def unpark(self, now: float) -> None:
        """Assign waiting events: a worker came, or can take events again."""
        if not self._parked_again and not self._slots.is_complete:
            # New ones all wait on; with many of them, looking at each at every ack would be all that a broker does.
            return
        parked, self._parked = self._parked, deque()
        for post in parked:
            slot = self._choose(post)
            if slot is not None and post.unique is not None:
                self._parked_again -= 1
                self._assign(post, slot, now)
            elif slot is None or not self.route(post, now):
                self._parked.append(post)

    def return_to(self, poster: Poster) -> None:
        """Return waiting events to a poster whose connection ended: it sends them again. But not what a worker was given before,
        for the poster may know that as confirmed."""
        for post in [post for post in self._parked if post.poster is poster and post.unique is None]:
            self._parked.remove(post)
            poster.take_back(post)

    def _choose(self, post: Post) -> Slot | None:
        """Return the preferred worker of an event if it is live, else the one with the least to do; of equals, the one that was
        given the fewest. One that can't read it only if there is no other: the event is a gap for that one, and waits for none."""
        preferred = None if post.preferred is None else self._slots.workers.get(post.preferred)
        if preferred is not None and preferred.can_take_unique and preferred.can_read(post.flags):
            return preferred
        able = [slot for slot in self._slots if slot.can_take_unique]
        able = [slot for slot in able if slot.can_read(post.flags)] or able
        return min(able, key=lambda slot: (slot.queue.events, slot.uniques_given), default=None)

    def _assign(self, post: Post, slot: Slot, now: float) -> None:
        if post.unique is not None:
            post.renew_frame()
        post.settle_unique(UniqueFate.GIVEN)
        post.target([slot])
        if post.is_suspect:
            slot.hold()
        self._sequencer.enqueue(post, (slot,), now)
        slot.give(post)
        if post.is_suspect:
            self._sequencer.send_alone(post, slot)
