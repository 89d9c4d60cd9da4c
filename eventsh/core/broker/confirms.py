"""Publisher confirms: which posts every live worker has received, receipts, and reports of the handlers that ran."""

from __future__ import annotations

from dataclasses import replace
from operator import attrgetter
from typing import TYPE_CHECKING

from eventsh.errors import ProtocolError
from eventsh.protocol.frame import KIND_OFFSET, Flag, Kind, encode_frame
from eventsh.protocol.messages import Handled, Receipt

if TYPE_CHECKING:
    from eventsh.core.broker.sequencer import Sequencer
    from eventsh.core.broker.state import BrokerState, ClientConnection, Post, Poster, Slot

__all__ = ["Confirms"]

_received = attrgetter("received")


class Confirms:
    """How far everything is confirmed, and the posters that do not know it yet."""

    def __init__(self, state: BrokerState, sequencer: Sequencer) -> None:
        # The last event that all live workers have received.
        self.floor = 0
        # How many broadcast posts are confirmed, and how many all clients know of.
        self.posts = 0
        self._announced = 0
        # Whether there is a worker that confirmations do not wait for, and whether events are kept for such a one.
        self._leaves_out = self._leaves_behind = False
        # Posters whose confirmation is still to be sent.
        self.due: set[Poster] = set()
        # The worker that had the least of all when `settle` looked at them.
        self._last: Slot | None = None
        self._slots = state.slots
        self._sequencer = sequencer
        self._posters = state.posters
        self._outgoing = state.outgoing
        self._connections = state.connections

    def settle(self) -> None:
        """Confirm what every live worker has. Needless where nothing is unconfirmed and no poster due."""
        unconfirmed, workers = self._sequencer.unconfirmed, self._slots.workers
        last = self._last
        # The slot that was furthest behind when all were looked at may still lack what is to be confirmed next. Acks come
        # one by one, and to look at all slots for each took half of the router's time.
        if unconfirmed and not (
            last is not None
            and last.received < unconfirmed[0][0]
            and last.is_live
            and last.is_behind
            and last.worker_id is not None
            and workers.get(last.worker_id) is last
        ):
            behind = []
            self._leaves_out = self._leaves_behind = False
            for slot in workers.values():
                if not slot.is_live:
                    self._leaves_out = True
                    self._leaves_behind = self._leaves_behind or not slot.is_expired
                elif slot.is_behind:
                    behind.append(slot)
            # Of several the one that is sent to last: most often it is the last to answer too.
            self._last = last = min(reversed(behind), key=_received, default=None)
            floor = self._sequencer.seq if last is None else last.received
            sink = self._sequencer.sink
            if sink is not None and (synced := sink.synced) is not None:
                floor = min(floor, synced)
            self.floor = max(self.floor, floor)
            while unconfirmed and unconfirmed[0][0] <= self.floor:
                seq, post = unconfirmed.popleft()
                self.posts = max(self.posts, post.position)
                if post.last_seq == seq:
                    self.confirm(post)
        if self._leaves_behind and self.posts > self._announced:
            # Clients that outlive this broker have to know how much those miss that are left behind.
            self.announce()
        if self.due:
            due, self.due = self.due, set()
            for poster in due:
                self._send(poster)

    def greet(self, poster: Poster) -> None:
        """Send a client that attached how much is confirmed, where that matters."""
        if self._leaves_out:
            self._send(poster)

    def announce(self) -> None:
        """Send all clients how much is confirmed, where that matters."""
        if self._leaves_out and self.posts > self._announced:
            self._announced = self.posts
            # Not all posters that are remembered: those are thousands where people post at the command line.
            for connection in self._connections:
                if connection.poster is not None:
                    self._send(connection.poster)
            self.due.clear()

    def _send(self, poster: Poster) -> None:
        connection = poster.connection
        if connection is None:
            return
        if connection.output and connection.output[-1][KIND_OFFSET] == Kind.CONFIRM:
            # The one before has not left, and this one says more. They would pile up for a process that is stopped.
            connection.output.pop()
        self._outgoing.send(connection, encode_frame(Kind.CONFIRM, origin_seq=poster.confirmed, seq=self.posts))

    def confirm(self, post: Post) -> None:
        """Confirm a post that all have. The next `settle` sends that; a receipt is sent at once."""
        if post.is_done:
            return
        poster = post.poster
        if post.flags & Flag.RECEIPT and poster.connection is not None:
            self._outgoing.send(poster.connection, _receipt(post).encode())
        if poster.confirm(post):
            self.due.add(poster)

    def take_handled(self, connection: ClientConnection, frame: bytearray, now: float) -> None:
        """Pass a worker's report of the handlers that ran on to the poster."""
        slot = connection.slot
        if slot is None:
            raise ProtocolError("handlers of a client that is not subscribed")
        handled = Handled.decode(frame)
        handled.check()
        poster = self._posters.connection_of(handled.origin)
        if poster is not None:
            self._outgoing.send(poster, replace(handled, worker_id=slot.worker_id, pid=slot.pid).encode())


def _receipt(post: Post) -> Receipt:
    last_seq = post.last_seq or 0
    has: list[int] = []
    missing: list[int] = []
    for slot in post.targets:
        is_attached = slot.connection is not None and not slot.is_dropping
        got_it = is_attached and slot.received >= last_seq and slot.can_read(post.flags)
        if slot.is_spare and not got_it:
            # Its process said goodbye first, and no other one is bound to come.
            continue
        # An observer that takes unique events has no number of its own.
        (has if got_it else missing).append(-1 if slot.worker_id is None else slot.worker_id)
    return Receipt(post.first, sorted(has), sorted(missing), post.unique)
