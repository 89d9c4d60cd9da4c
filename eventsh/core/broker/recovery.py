"""Recovery: report events that were lost with a previous broker to the workers that missed them.

Theory of operation. A broker that is killed takes with it the events that only it had: those that it had confirmed to their
posters without a worker that was stalled, dropping or just being restarted. Posters send again what was not confirmed; so a
worker missed exactly the events between its own progress and the highest confirmation that any client knows of. All clients
name both in their hellos.

A rival is a broker that served the same address beside this one, because the files of one of them had been removed. When
it ends, its workers missed the posts that were sequenced here since it began, and the workers of this broker missed its posts.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from eventsh.core.epochs import EpochOrder
from eventsh.core.standing import SLOT_HOLDER
from eventsh.protocol.messages import Ask

if TYPE_CHECKING:
    from eventsh.core.broker.sequencer import Sequencer
    from eventsh.core.broker.state import BrokerState, ClientConnection, Slot
    from eventsh.protocol.messages import Hello

__all__ = ["Recovery"]

# As many as a client names.
_EPOCHS = 16
# How often the number of posts is noted for `meet`, and how many notes are kept. A rival is found within some seconds. Of
# one that is older than the notes it is not known which posts its workers missed, and all are reported to them.
_MARK_S = 2.0
_MARKS = 64

_KILLED = "the broker that had it queued was killed"
_APART = "another broker served this address beside this one"
_UNHEARD_OF = "nobody had told this broker of the worker"
_REBOOTED = "the host of its broker was restarted: no client may be left that knows of all that it missed"
_UNSEEN = "the process before this one ended when no broker saw it: what it had been given and not handled is not known"


class Recovery:
    """How much was confirmed in earlier epochs; each slot knows how much of that its worker has."""

    def __init__(self, state: BrokerState, sequencer: Sequencer) -> None:
        self._epoch = state.epoch
        self._order = EpochOrder(state.epoch)
        self._slots = state.slots
        self._sequencer = sequencer
        self._outgoing = state.outgoing
        self._connections = state.connections
        # Broadcast posts that were confirmed in each earlier epoch, as far as is known.
        self._confirmed: dict[int, int] = {}
        # What was handled in a slot when its process went away: epoch and posts.
        self._left: dict[int, tuple[int, int]] = {}
        # The last epoch before this one, and the slots that had a process when it ended.
        self._last = 0
        self._held: set[int] = set()
        # Slots whose worker was attached to a broker of another boot and has not been sent the gap for that: the epoch.
        self._unsure: dict[int | None, int] = {}
        # Kept slots of this epoch that no process holds, and how many posts were handled there.
        self._vacant: dict[int, int] = {}
        # Rivals, by epoch: how many broadcast posts there were here when each began.
        self._rivals: dict[int, int] = {}
        self._marks: deque[tuple[float, int]] = deque(maxlen=_MARKS)

    # --- rivals ---

    def mark(self, now: float) -> None:
        """Note how many posts there are by now."""
        if not self._marks or now - self._marks[-1][0] >= _MARK_S:
            self._marks.append((now, self._sequencer.posts))

    def meet(self, epoch: int, since: float, confirmed: int, now: float) -> bool:
        """Learn of a rival that began at `since`, and has `confirmed` broadcast posts by now: the workers of this broker
        missed them. Return False when the rival is known already."""
        is_new = epoch not in self._rivals
        if is_new:
            self._add_rival(epoch, since)
        self._confirmed[epoch] = max(confirmed, self._confirmed.get(epoch, 0))
        self.report_all(now)
        return is_new

    def _add_rival(self, epoch: int, since: float) -> None:
        self._rivals[epoch] = max((posts for at, posts in self._marks if at <= since), default=0)
        while len(self._rivals) > _EPOCHS:
            del self._rivals[next(iter(self._rivals))]
        for slot in self._slots.workers.values():
            if slot.identity is not None:
                slot.inherit({epoch: 0, **(slot.earlier or {})})

    # --- progress of the workers ---

    def learn(self, hello: Hello) -> bool:
        """Learn what a client knows of earlier epochs; return whether some of that is new, so that `report` may have more to say."""
        before = (self._confirmed.copy(), self._left.copy(), self._held.copy())
        for epoch, _, confirmed in hello.places:
            if epoch != self._epoch:
                self._confirmed[epoch] = max(confirmed, self._confirmed.get(epoch, 0))
        while len(self._confirmed) > _EPOCHS:
            del self._confirmed[min(self._confirmed, key=self._order.key)]
        if hello.role != "poster" and hello.epoch != self._epoch:
            # A client that is not subscribed does not see workers come and go.
            if self._order.is_later(hello.epoch, self._last):
                self._last, self._held = hello.epoch, set()
            # Without a known order, of two boots before this one, the slots of both count.
            if not self._order.is_later(self._last, hello.epoch):
                vacant = {number for number, _, _ in hello.vacant}
                self._held.update(number for number in hello.slots if number not in vacant)
        for number, epoch, posts in hello.vacant:
            if epoch == self._epoch:
                continue
            known = self._left.get(number)
            # Of two who say different things of the same epoch, one has not heard the last of it.
            is_later = known is not None and self._order.is_later(epoch, known[0])
            if known is None or is_later or (epoch == known[0] and posts < known[1]):
                self._left[number] = (epoch, posts)
        return before != (self._confirmed, self._left, self._held)

    def expect(self, slot: Slot, hello: Hello, *, resumed: bool) -> None:
        """Prepare a slot for the worker that is about to get it. Call it before the welcome, and before `Slot.attach`."""
        if slot.is_observer:
            return
        own = {epoch: posts for epoch, posts, _ in hello.places if epoch != self._epoch}
        is_same = slot.identity == hello.identity
        # The gap for another boot is still in the queue of a process that came back in time.
        if not is_same or slot.is_expired:
            self._unsure.pop(slot.worker_id, None)
            others = [epoch for epoch in own if self._order.is_of_other_boot(epoch)]
            if others and others[0] not in hello.unsure:
                self._unsure[slot.worker_id] = others[0]
        if own:
            # Where a gap is in its queue, more than it knows of: of its epochs, and of those in which it was not a worker.
            known = slot.earlier if is_same and slot.earlier is not None else {}
            slot.inherit(known | {epoch: max(posts, known.get(epoch, 0)) for epoch, posts in own.items()})
        elif not hello.epoch and resumed and slot.identity is None:
            # A new process, the first here: what is known of the one before it, as soon as that is.
            slot.inherit({})
        elif hello.epoch and not is_same:
            slot.inherit(None)
        if own and not resumed and hello.epoch != self._epoch:
            slot.note_passed(self._sequencer.posts - self._rivals.get(hello.epoch, 0))

    # --- gaps for the workers ---

    def report_all(self, now: float) -> None:
        for slot in self._slots.workers.values():
            self.report(slot, now)

    def report(self, slot: Slot, now: float) -> None:
        """Report to a worker what it missed, as far as that is known by now."""
        if slot.identity is None or slot.is_observer or slot.is_dropping or slot.is_leaving:
            return
        if slot.passed:
            passed = slot.take_passed()
            reason = _APART if self._rivals.keys() & (slot.earlier or {}) else _UNHEARD_OF
            self._sequencer.enqueue_gap(slot, passed, reason, now, posts=self._sequencer.posts)
        had = slot.earlier
        if had == {}:
            had = self._inherit(slot, now)
            slot.inherit(had)
        if not had:
            return
        last = max((epoch for epoch in had if epoch not in self._rivals), key=self._order.key, default=None)
        for epoch in sorted({*self._confirmed, *had}, key=self._order.key):
            confirmed = max(self._confirmed.get(epoch, 0), had.get(epoch, 0))
            # It should have been a worker in each epoch since, too.
            is_owed = last is not None and self._order.is_later(epoch, last)
            missed = confirmed - had.get(epoch, 0 if is_owed else confirmed)
            if missed > 0 or self._unsure.get(slot.worker_id) == epoch:
                slot.admit_missed(epoch, confirmed)
                self._enqueue_gap(slot, missed, epoch, confirmed, now)

    def _enqueue_gap(self, slot: Slot, missed: int, epoch: int, posts: int, now: float) -> None:
        """Send a worker the gap for an earlier epoch; with it, it has `posts` of that epoch or knows that it missed them.

        An epoch of another boot ended with clients that may have been the only ones to know of confirmed posts. So none of
        its workers can be sure to have all, and each gets such a gap once."""
        exact = not self._order.is_of_other_boot(epoch)
        if self._unsure.get(slot.worker_id) == epoch:
            del self._unsure[slot.worker_id]
        reason = _APART if epoch in self._rivals else _KILLED if exact else _REBOOTED
        self._sequencer.enqueue_gap(slot, missed, reason, now, epoch=epoch, posts=posts, exact=exact)

    def _inherit(self, slot: Slot, now: float) -> dict[int, int] | None:
        """Return what the last process of an earlier epoch had, for the first one that took its slot in this."""
        assert slot.worker_id is not None
        if slot.worker_id in self._left:
            epoch, posts = self._left.pop(slot.worker_id)
            if self._order.is_of_other_boot(epoch):
                self._unsure[slot.worker_id] = epoch
            return {epoch: posts}
        if slot.worker_id in self._held:
            self._held.remove(slot.worker_id)
            self._sequencer.enqueue_gap(slot, 0, _UNSEEN, now, epoch=self._last, exact=False)
            return None
        return {}

    # --- for the clients that may outlive this broker ---

    def leave(self, slot: Slot) -> None:
        """Announce how far a worker had got that goes away, or is about to, and whose slot is kept. Its process may not come
        back, and then no client would know."""
        if slot.worker_id is not None:
            # What it was given before its goodbye, it will have handled.
            behind = 0 if slot.connection is not None and not slot.is_dropping else slot.posts_behind
            self._vacant[slot.worker_id] = max(0, self._sequencer.posts - behind)
            self._announce(slot.worker_id, self._connections)

    def forget(self, slot: Slot) -> None:
        """Announce that a slot is kept no longer, or only for its present process, and let go of all that its next one would
        be told: there is none."""
        number = slot.worker_id
        assert number is not None
        self._vacant.pop(number, None)
        self._left.pop(number, None)
        self._unsure.pop(number, None)
        self._held.discard(number)
        self._announce(number, self._connections, is_removed=True)

    def greet(self, connection: ClientConnection, slot: Slot | None, hello: Hello) -> None:
        """Send a client that attached, as the worker of this slot or as none, which slots are vacant."""
        number = None if slot is None else slot.worker_id
        if number is not None and (number in self._vacant or number in self._left):
            self._vacant.pop(number, None)
            self._announce(number, self._connections)
        for number in self._vacant:
            self._announce(number, [connection])
        # It did not learn that a process came: to the next broker it would name as missed what that process was told of.
        for number, _, _ in hello.vacant:
            holder = self._slots.workers.get(number)
            if number not in self._vacant and holder is not None and holder.identity is not None:
                self._announce(number, [connection])

    def _announce(self, number: int, connections: Iterable[ClientConnection], *, is_removed: bool = False) -> None:
        slot = self._slots.workers.get(number)
        facts: dict[str, Any] = {"worker_id": number, "posts": self._vacant.get(number)}
        if slot is not None and slot.goodbye is not None:
            facts["left"] = True
        if is_removed:
            facts["removed"] = True
        frame = Ask(0, SLOT_HOLDER, facts).encode()
        for connection in connections:
            if connection.is_greeted and not connection.is_closing:
                self._outgoing.send(connection, frame)
