"""What posters are told of their posts: that every live worker has them, who those are, and which handlers ran."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from operator import attrgetter
from typing import TYPE_CHECKING

from eventsh.errors import ProtocolError
from eventsh.protocol.frame import KIND_OFFSET, Flag, Kind, encode_frame
from eventsh.protocol.messages import Handled, Receipt

if TYPE_CHECKING:
    from eventsh.core.fanout import Fanout
    from eventsh.core.link import Link
    from eventsh.core.outlet import Outlet
    from eventsh.core.poster import Post, Poster, Posters
    from eventsh.core.roster import Roster
    from eventsh.core.slot import Slot

__all__ = ["Confirmations"]

_received = attrgetter("received")


class Confirmations:
    """How far everything is confirmed, and who has still to be told. `links` are all connections, the owner's."""

    def __init__(self, roster: Roster, fanout: Fanout, posters: Posters, outlet: Outlet, links: Iterable[Link]) -> None:
        # The last event that all live workers have received.
        self.floor = 0
        # How many posts to everybody are confirmed, and how many everybody was told of.
        self.posts = 0
        self._told = 0
        # Whether there is a worker that nobody waits for, and whether one for whom things are kept.
        self._leaves_out = self._leaves_behind = False
        # Posters that are to be told how far they are confirmed.
        self.due: set[Poster] = set()
        # The worker that had the least of all when `settle` looked at them.
        self._last: Slot | None = None
        self._roster = roster
        self._fanout = fanout
        self._posters = posters
        self._outlet = outlet
        self._links = links

    def settle(self) -> None:
        """Confirm what every live worker has. The caller spares itself the call where nothing is placed and nobody due."""
        placed, workers = self._fanout.placed, self._roster.workers
        last = self._last
        # The slot that was furthest behind when all were looked at may still lack what is to be confirmed next. Acks come
        # one by one, and to look at all slots for each took half of the router's time.
        if placed and not (
            last is not None
            and last.received < placed[0][0]
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
            floor = self._fanout.seq if last is None else last.received
            tap = self._fanout.tap
            if tap is not None and (synced := tap.synced) is not None:
                floor = min(floor, synced)
            self.floor = max(self.floor, floor)
            while placed and placed[0][0] <= self.floor:
                seq, post = placed.popleft()
                self.posts = max(self.posts, post.place)
                if post.last_seq == seq:
                    self.confirm(post)
        if self._leaves_behind and self.posts > self._told:
            # Whoever outlives this broker has to know how much those miss that are left behind.
            self.tell_all()
        if self.due:
            due, self.due = self.due, set()
            for poster in due:
                self._tell(poster)

    def greet(self, poster: Poster) -> None:
        """A client came."""
        if self._leaves_out:
            self._tell(poster)

    def tell_all(self) -> None:
        """Let all clients know how much is confirmed, if that matters to anybody."""
        if self._leaves_out and self.posts > self._told:
            self._told = self.posts
            # Not all posters that are remembered: those are thousands where people post at the command line.
            for link in self._links:
                if link.poster is not None:
                    self._tell(link.poster)
            self.due.clear()

    def _tell(self, poster: Poster) -> None:
        link = poster.link
        if link is None:
            return
        if link.output and link.output[-1][KIND_OFFSET] == Kind.CONFIRM:
            # The one before has not left, and this one says more. They would pile up for a process that is stopped, which
            # is what others are told for.
            link.output.pop()
        self._outlet.send(link, encode_frame(Kind.CONFIRM, origin_seq=poster.confirmed, seq=self.posts))

    def confirm(self, post: Post) -> None:
        """Everybody has it. The poster is told by the next `settle`, and of a receipt at once."""
        if post.is_done:
            return
        poster = post.poster
        if post.flags & Flag.RECEIPT and poster.link is not None:
            self._outlet.send(poster.link, _receipt(post).encode())
        if poster.confirm(post):
            self.due.add(poster)

    def take_handled(self, link: Link, frame: bytearray, now: float) -> None:
        """A worker tells which handlers ran, and its poster is told."""
        slot = link.slot
        if slot is None:
            raise ProtocolError("the handlers of one who gets no events")
        handled = Handled.decode(frame)
        handled.check()
        poster = self._posters.link_of(handled.origin)
        if poster is not None:
            self._outlet.send(poster, replace(handled, worker_id=slot.worker_id, pid=slot.pid).encode())


def _receipt(post: Post) -> Receipt:
    last_seq = post.last_seq or 0
    has: list[int] = []
    missing: list[int] = []
    for slot in post.targets:
        is_attached = slot.link is not None and not slot.lossy
        got_it = is_attached and slot.received >= last_seq and slot.can_read(post.flags)
        # An observer that takes unique events has no number of its own.
        (has if got_it else missing).append(-1 if slot.worker_id is None else slot.worker_id)
    return Receipt(post.first, sorted(has), sorted(missing), post.unique)
