"""How far a client has got in the posts of each broker that it was attached to, for those that come after.

Posts to everybody are counted, for the numbers of events are no count: unique events that went to others have some too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from eventsh.options import MAX_SLOTS
from eventsh.protocol.messages import MAX_COUNT

if TYPE_CHECKING:
    from eventsh.protocol.messages import Gap

__all__ = ["SLOT_HOLDER", "Standing"]

# What a broker tells all its clients, as an Ask without an answer: that nobody holds a slot, or that somebody does again.
SLOT_HOLDER = "slot_holder"

# Brokers that died while this process was stopped or away, each with what it may have missed of it.
_EARLIER = 15
# A hello has to fit into what a broker accepts before it.
_VACANT = 128


class Standing:
    """In a client: what it says in its next hello."""

    __slots__ = ("_assigned", "_earlier", "_left", "_slots", "_vacant", "confirmed", "posts")

    def __init__(self) -> None:
        # Of the present epoch: how many posts to everybody this process has or was told of as missed, and how many are
        # confirmed as far as it knows.
        self.posts = 0
        self.confirmed = 0
        # The same of those before it, by epoch, in the order in which this process was attached to them. Their numbers give
        # no order here: a client can't know whether two brokers ran on one boot of one host. The last member is whether a gap
        # said that nobody knows how much of it this process missed.
        self._earlier: dict[int, tuple[int, int, bool]] = {}
        # By slot: the epoch in which its process went away, and how many posts of it were handled there.
        self._vacant: dict[int, tuple[int, int]] = {}
        # The worker slots that are held or kept: what a new broker has to know when this one dies. Of these, the ones that no
        # process has asked for by number, and those whose process said goodbye.
        self._slots: set[int] = set()
        self._assigned: set[int] = set()
        self._left: set[int] = set()

    @property
    def place(self) -> tuple[int, int]:
        """Posts to everybody of the present epoch: received or reported as missed, and confirmed."""
        return min(self.posts, MAX_COUNT), self.confirmed

    def reach(self, posts: int) -> None:
        """Note that this process has, or was told of as missed, so many posts of the present epoch."""
        self.posts = posts

    def confirm(self, posts: int) -> None:
        """Note that so many posts of the present epoch are confirmed."""
        self.confirmed = max(self.confirmed, posts)

    def begin(self, posts: int, before: int, place: tuple[int, int]) -> None:
        """Begin an epoch after `posts` of its posts; the one `before` ended at `place`. Repeating the call changes nothing."""
        if before:
            # To the end, if it was attached to that broker before another one: two can be at one address for a while.
            self._earlier.pop(before, None)
            self._earlier[before] = (*place, False)
            while len(self._earlier) > _EARLIER:
                del self._earlier[next(iter(self._earlier))]
        self.posts, self.confirmed = posts, 0

    def take_gap(self, gap: Gap) -> None:
        """This process was told what it missed."""
        if not gap.epoch:
            self.posts = max(self.posts, gap.posts)
        elif gap.exact or gap.epoch in self._earlier:
            posts, confirmed, is_unsure = self._earlier.get(gap.epoch, (0, 0, False))
            self._earlier[gap.epoch] = (max(posts, gap.posts), confirmed, is_unsure or not gap.exact)

    def begin_slots(self, slots: list[int], assigned: list[int]) -> None:
        """Begin with the slots of a welcome."""
        self._slots, self._assigned, self._left = set(slots), set(assigned), set()

    def note_worker(self, event: str, facts: Any) -> None:
        """Follow in the broker's own events which slots are held."""
        match event, facts:
            case "worker_joined", _:
                self._join(facts)
            case "workers_joined", {"workers": list(workers)}:
                for worker in workers:
                    self._join(worker)
            case "worker_left", {"worker_id": int(number), "kept": False}:
                self._slots.discard(number)

    def _join(self, facts: Any) -> None:
        match facts:
            case {"worker_id": int(number)} if 0 <= number < MAX_SLOTS:
                self._slots.add(number)
                self._left.discard(number)
                if facts.get("assigned") is True:
                    self._assigned.add(number)
                else:
                    self._assigned.discard(number)

    def note_holder(self, facts: dict[str, Any], epoch: int) -> None:
        """The broker told of a slot."""
        match facts:
            case {"worker_id": int(number), "removed": True}:
                self._vacant.pop(number, None)
                self._slots.discard(number)
            case {"worker_id": int(number), "posts": None}:
                self._vacant.pop(number, None)
            case {"worker_id": int(number), "posts": int(posts)} if 0 <= number < MAX_SLOTS and 0 <= posts <= MAX_COUNT:
                if facts.get("left") is True:
                    self._left.add(number)
                self._vacant.pop(number, None)
                self._vacant[number] = (epoch, posts)
                if len(self._vacant) > _VACANT:
                    del self._vacant[next(iter(self._vacant))]

    def places(self, epoch: int) -> list[list[int]]:
        """For the hello of one who was attached in `epoch`; 0: in none."""
        earlier = [[number, *place] for number, (*place, _) in reversed(self._earlier.items()) if number != epoch]
        return [[epoch, *self.place], *earlier] if epoch else earlier

    @property
    def slots(self) -> list[int]:
        """For the hello."""
        return sorted(self._slots)

    @property
    def assigned_slots(self) -> list[int]:
        """For the hello."""
        return sorted(self._slots & self._assigned)

    @property
    def left_slots(self) -> list[int]:
        """For the hello."""
        return sorted(self._slots & self._left)[:_VACANT]

    @property
    def unsure(self) -> list[int]:
        """For the hello."""
        return [epoch for epoch, (_, _, is_unsure) in self._earlier.items() if is_unsure]

    @property
    def vacant(self) -> list[list[int]]:
        """For the hello."""
        return [[number, *place] for number, place in self._vacant.items()]
