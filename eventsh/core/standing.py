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

    __slots__ = ("_earlier", "_vacant", "confirmed", "posts")

    def __init__(self) -> None:
        # Of the present epoch: how many posts to everybody this process has or was told of as missed, and how many are
        # confirmed as far as it knows.
        self.posts = 0
        self.confirmed = 0
        # The same of those before it, by epoch.
        self._earlier: dict[int, tuple[int, int]] = {}
        # By slot: the epoch in which its process went away, and how many posts of it were handled there.
        self._vacant: dict[int, tuple[int, int]] = {}

    @property
    def place(self) -> tuple[int, int]:
        """Posts to everybody of the present epoch: received or reported as missed, and confirmed."""
        return min(self.posts, MAX_COUNT), self.confirmed

    def begin(self, posts: int, before: int, place: tuple[int, int]) -> None:
        """Begin an epoch after `posts` of its posts; the one `before` ended at `place`. Repeating the call changes nothing."""
        if before:
            self._earlier[before] = place
            while len(self._earlier) > _EARLIER:
                del self._earlier[min(self._earlier)]
        self.posts, self.confirmed = posts, 0

    def take_gap(self, gap: Gap) -> None:
        """This process was told what it missed."""
        if not gap.exact:
            return
        if not gap.epoch:
            self.posts = max(self.posts, gap.posts)
        else:
            posts, confirmed = self._earlier.get(gap.epoch, (0, 0))
            self._earlier[gap.epoch] = (max(posts, gap.posts), confirmed)

    def note_holder(self, facts: dict[str, Any], epoch: int) -> None:
        """The broker told of a slot."""
        match facts:
            case {"worker_id": int(number), "posts": None}:
                self._vacant.pop(number, None)
            case {"worker_id": int(number), "posts": int(posts)} if 0 <= number < MAX_SLOTS and 0 <= posts <= MAX_COUNT:
                self._vacant.pop(number, None)
                self._vacant[number] = (epoch, posts)
                if len(self._vacant) > _VACANT:
                    del self._vacant[next(iter(self._vacant))]

    def places(self, epoch: int) -> list[list[int]]:
        """For the hello of one who was attached in `epoch`; 0: in none."""
        earlier = [[number, *place] for number, place in sorted(self._earlier.items(), reverse=True)]
        return [[epoch, *self.place], *earlier] if epoch else earlier

    @property
    def vacant(self) -> list[list[int]]:
        """For the hello."""
        return [[number, *place] for number, place in self._vacant.items()]
