"""What the workers of an earlier broker missed of it, and are told by this one.

A broker that is killed takes with it what only it had: what was confirmed to its posters without a worker that was
stalled, losing or just being restarted. What is not confirmed its posters send again; so a worker missed exactly what lies
between how far it had got itself and how far anybody knows that it was confirmed. All clients say both in their hellos.

A rival is a broker that served the same address beside this one, because the files of one of them had been removed. When
it ends, its workers missed the posts that were routed here since it began, and the workers of this broker missed its posts.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from typing import TYPE_CHECKING

from eventsh.core.standing import SLOT_HOLDER
from eventsh.protocol.messages import Ask

if TYPE_CHECKING:
    from eventsh.core.fanout import Fanout
    from eventsh.core.link import Link
    from eventsh.core.outlet import Outlet
    from eventsh.core.roster import Roster
    from eventsh.core.slot import Slot
    from eventsh.protocol.messages import Hello

__all__ = ["Debts"]

# As many as a client tells of.
_EPOCHS = 16
_MAX_SLOT = 65535
# How often the number of posts is noted for `meet`, and how many notes are kept. A rival is found within some seconds. Of
# one that is older than the notes it is not known which posts its workers missed, and they are told of all.
_MARK_S = 2.0
_MARKS = 64

_KILLED = "the broker that had it queued was killed"
_APART = "another broker served this address beside this one"
_UNHEARD_OF = "nobody had told this broker of the worker"
_UNSEEN = "the process before this one ended when no broker saw it: what it had been given and not handled is not known"


class Debts:
    """What was confirmed in earlier epochs, for each slot knows what its worker has of it. `links` are all connections, the
    owner's."""

    def __init__(self, epoch: int, roster: Roster, fanout: Fanout, outlet: Outlet, links: Iterable[Link]) -> None:
        self._epoch = epoch
        self._roster = roster
        self._fanout = fanout
        self._outlet = outlet
        self._links = links
        # Posts to everybody that were confirmed in each earlier epoch, as far as is known.
        self._confirmed: dict[int, int] = {}
        # What was handled in a slot when its process went away: epoch and posts.
        self._left: dict[int, tuple[int, int]] = {}
        # The last epoch before this one, and the slots that had a process when it ended.
        self._last = 0
        self._held: set[int] = set()
        # Kept slots of this epoch that nobody holds, and how many posts were handled there.
        self._vacant: dict[int, int] = {}
        # Rivals, by epoch: how many posts to everybody there were here when each began.
        self._rivals: dict[int, int] = {}
        self._marks: deque[tuple[float, int]] = deque(maxlen=_MARKS)

    # --- rivals ---

    def mark(self, now: float) -> None:
        """Note how many posts there are by now."""
        if not self._marks or now - self._marks[-1][0] >= _MARK_S:
            self._marks.append((now, self._fanout.posts))

    def meet(self, epoch: int, since: float, confirmed: int, now: float) -> bool:
        """Learn of a rival that began at `since`, and has `confirmed` so many posts to everybody by now: the workers of this
        broker missed them. Return False when the rival is known already."""
        is_new = epoch not in self._rivals
        if is_new:
            self._add_rival(epoch, since)
        self._confirmed[epoch] = max(confirmed, self._confirmed.get(epoch, 0))
        self.pay_all(now)
        return is_new

    def _add_rival(self, epoch: int, since: float) -> None:
        self._rivals[epoch] = max((posts for at, posts in self._marks if at <= since), default=0)
        while len(self._rivals) > _EPOCHS:
            del self._rivals[next(iter(self._rivals))]
        for slot in self._roster.workers.values():
            if slot.identity is not None:
                slot.earlier = {epoch: 0, **(slot.earlier or {})}

    # --- who has what ---

    def learn(self, hello: Hello) -> bool:
        """A client says what it knows of earlier epochs. True when some of that is new, and `pay` may have to tell others."""
        before = (self._confirmed.copy(), self._left.copy(), self._held.copy())
        for epoch, _, confirmed in hello.places:
            if epoch != self._epoch:
                self._confirmed[epoch] = max(confirmed, self._confirmed.get(epoch, 0))
        while len(self._confirmed) > _EPOCHS:
            del self._confirmed[min(self._confirmed)]
        if hello.role != "poster" and hello.epoch != self._epoch:
            # Who gets no events does not see workers come and go.
            if hello.epoch > self._last:
                self._last, self._held = hello.epoch, set()
            if hello.epoch == self._last:
                vacant = {number for number, _, _ in hello.vacant}
                self._held.update(number for number in hello.slots if 0 <= number <= _MAX_SLOT and number not in vacant)
        for number, epoch, posts in hello.vacant:
            if epoch == self._epoch or number > _MAX_SLOT:
                continue
            known = self._left.get(number)
            # Of two who say different things of the same epoch, one has not heard the last of it.
            if known is None or epoch > known[0] or (epoch == known[0] and posts < known[1]):
                self._left[number] = (epoch, posts)
        return before != (self._confirmed, self._left, self._held)

    def expect(self, slot: Slot, hello: Hello, *, resumed: bool) -> None:
        """A worker is about to get this place. Call it before the welcome, and before the place is its own."""
        if slot.is_observer:
            return
        own = {epoch: posts for epoch, posts, _ in hello.places if epoch != self._epoch}
        is_same = slot.identity == hello.identity
        if own:
            # Where a notice is in its queue, more than it knows of: of its epochs, and of those that it was no worker in.
            known = slot.earlier if is_same and slot.earlier is not None else {}
            slot.earlier = known | {epoch: max(posts, known.get(epoch, 0)) for epoch, posts in own.items()}
        elif not hello.epoch and resumed and slot.identity is None:
            # A new process, the first here: what is known of the one before it, as soon as that is.
            slot.earlier = {}
        elif hello.epoch and not is_same:
            slot.earlier = None
        if own and not resumed and hello.epoch != self._epoch:
            slot.passed = self._fanout.posts - self._rivals.get(hello.epoch, 0)

    # --- telling the workers ---

    def pay_all(self, now: float) -> None:
        for slot in self._roster.workers.values():
            self.pay(slot, now)

    def pay(self, slot: Slot, now: float) -> None:
        """Tell a worker what it missed, as far as that is known by now."""
        if slot.identity is None or slot.is_observer or slot.lossy or slot.leaving:
            return
        if slot.passed:
            passed, slot.passed = slot.passed, 0
            reason = _APART if self._rivals.keys() & (slot.earlier or {}) else _UNHEARD_OF
            self._fanout.place_gap(slot, passed, reason, now, posts=self._fanout.posts)
        had = slot.earlier
        if had == {}:
            had = slot.earlier = self._inherit(slot, now)
        if not had:
            return
        last = max((epoch for epoch in had if epoch not in self._rivals), default=math.inf)
        for epoch, confirmed in sorted(self._confirmed.items()):
            # It should have been a worker in each epoch since, too.
            missed = confirmed - had.get(epoch, 0 if epoch > last else confirmed)
            if missed > 0:
                had[epoch] = confirmed
                reason = _APART if epoch in self._rivals else _KILLED
                self._fanout.place_gap(slot, missed, reason, now, epoch=epoch, posts=confirmed)

    def _inherit(self, slot: Slot, now: float) -> dict[int, int] | None:
        """What the last process of an earlier epoch had, for the first one that took its slot in this."""
        assert slot.worker_id is not None
        if slot.worker_id in self._left:
            epoch, posts = self._left.pop(slot.worker_id)
            return {epoch: posts}
        if slot.worker_id in self._held:
            self._held.remove(slot.worker_id)
            self._fanout.place_gap(slot, 0, _UNSEEN, now, epoch=self._last, exact=False)
            return None
        return {}

    # --- telling those who may outlive this broker ---

    def leave(self, slot: Slot) -> None:
        """A worker went away, or is about to, and its place is kept. Its process may not come back, and then nobody but this
        broker knew how far it had got."""
        if slot.worker_id is not None:
            # What it was given before its goodbye, it will have handled.
            behind = 0 if slot.link is not None and not slot.lossy else slot.posts_behind
            self._vacant[slot.worker_id] = max(0, self._fanout.posts - behind)
            self._tell(slot.worker_id, self._links)

    def greet(self, link: Link, slot: Slot | None, hello: Hello) -> None:
        """A client came, as the worker of this slot or as none."""
        number = None if slot is None else slot.worker_id
        if number is not None and (number in self._vacant or number in self._left):
            self._vacant.pop(number, None)
            self._tell(number, self._links)
        for number in self._vacant:
            self._tell(number, [link])
        # It did not hear that somebody came: to the next broker it would say that what was told to them is still owed.
        for number, _, _ in hello.vacant:
            holder = self._roster.workers.get(number)
            if number not in self._vacant and holder is not None and holder.identity is not None:
                self._tell(number, [link])

    def _tell(self, number: int, links: Iterable[Link]) -> None:
        frame = Ask(0, SLOT_HOLDER, {"worker_id": number, "posts": self._vacant.get(number)}).encode()
        for link in links:
            if link.is_greeted and not link.is_closing:
                self._outlet.send(link, frame)
