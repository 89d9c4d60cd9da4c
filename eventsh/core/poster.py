"""Who posts: the origins that the broker knows, and which of their posts are not confirmed."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from eventsh.errors import ProtocolError
from eventsh.protocol.frame import FIRST_FLAGS, HEADER, Flag, read_key

if TYPE_CHECKING:
    from eventsh.core.link import Link
    from eventsh.core.slot import Slot

__all__ = ["Post", "Poster", "Posters"]

# Numbers are u64 on the wire.
_MAX_NUMBER = 1 << 64
# Posters that have left and have nothing pending are remembered so that they may reconnect; this many, 200 bytes each.
_REMEMBERED = 4096


class Post:
    """One frame of a poster, from its arrival until it is confirmed."""

    __slots__ = (
        "count",
        "first",
        "flags",
        "frame",
        "is_done",
        "key",
        "last_seq",
        "place",
        "poster",
        "targets",
        "unique",
        "wish",
    )

    def __init__(self, poster: Poster, first: int, count: int, flags: int, frame: bytearray) -> None:
        self.poster = poster
        self.first = first
        self.count = count
        self.flags = flags
        # Held until it is routed, and a unique one until its handlers returned: another worker may have to get it.
        self.frame: bytearray | None = frame
        self.key = b""
        # What all live workers must have received; None until it is routed, or while a unique one seeks a new worker.
        self.last_seq: int | None = None
        # How many posts to everybody there were with it; 0: it is none.
        self.place = 0
        self.is_done = False
        # For a receipt: who was to get it, and what became of its key.
        self.targets: list[Slot] = []
        self.unique: str | None = None
        # The slot that a unique event is for, if it can take it.
        self.wish: int | None = None


class Poster:
    """One origin of events, over all its connections to this broker."""

    __slots__ = (
        "confirmed",
        "identity",
        "link",
        "number",
        "origin",
        "pending",
        "pending_events",
        "returned",
        "unreadable",
    )

    def __init__(self, origin: int, identity: str) -> None:
        self.origin = origin
        self.identity = identity
        self.link: Link | None = None
        # The last number that was accepted, and the last up to which everything is confirmed.
        self.number = 0
        self.confirmed = 0
        # The last of its batches that a receiver could not read; 0: it wrote none.
        self.unreadable = 0
        self.pending: deque[Post] = deque()
        self.pending_events = 0
        # Posts by their first number that were accepted, could be given to nobody, and are the poster's to send again.
        # They stay in `pending`: nothing behind them may be confirmed before they come back.
        self.returned: dict[int, Post] = {}

    def accept(self, frame: bytearray, window: int) -> Post | None:
        """Take a frame of this poster; None when it is known already. Raises ProtocolError."""
        _, _, flags, count, _, _, first, _, _ = HEADER.unpack_from(frame)
        if not count or not 0 < first <= _MAX_NUMBER - count:
            raise ProtocolError(f"a batch of {count} events from number {first}")
        if first <= self.number:
            return self._take_again(first, flags, frame)
        if self.number and first != self.number + 1:
            raise ProtocolError(f"post {first} came after post {self.number}")
        if flags & (Flag.UNIQUE | Flag.RECEIPT) and count != 1:
            raise ProtocolError(f"a unique event or one with a receipt travels alone, not in a batch of {count}")
        if flags & Flag.TRACE and not flags & Flag.RECEIPT:
            raise ProtocolError("an event with a trace and no receipt")
        if self.pending_events and self.pending_events + count > window:
            raise ProtocolError(f"more than {window} events are under way unconfirmed (max_queue_len of the broker)")
        post = Post(self, first, count, flags, frame)
        if flags & Flag.UNIQUE:
            post.key = _key_of(flags, frame)
            if flags & Flag.DIRECTED:
                post.wish = HEADER.unpack_from(frame)[7] - 1
        self.number = first + count - 1
        self.pending.append(post)
        self.pending_events += count
        return post

    def _take_again(self, first: int, flags: int, frame: bytearray) -> Post | None:
        # Read first: a frame that is refused must not take the post with it.
        key = _key_of(flags, frame) if first in self.returned else b""
        post = self.returned.pop(first, None)
        if post is not None:
            post.flags, post.frame, post.key = flags, frame, key
            self.pending_events += post.count
        return post

    def confirm(self, post: Post) -> bool:
        """Everything that was to be done with `post` is done. True when that confirms something to the poster."""
        post.is_done = True
        self.pending_events -= post.count
        pending = self.pending
        before = self.confirmed
        while pending and pending[0].is_done:
            first = pending.popleft()
            self.confirmed = max(self.confirmed, first.first + first.count - 1)
        return self.confirmed > before

    def take_back(self, post: Post) -> None:
        """Let go of a post that nobody could take; the poster still has it and sends it again if it comes back."""
        post.frame = None
        self.pending_events -= post.count
        self.returned[post.first] = post


def _key_of(flags: int, frame: bytearray) -> bytes:
    # A newer form may keep its key elsewhere, and must be refused no more than another frame that only receivers can't read:
    # its poster would send it again for ever.
    return read_key(frame) if flags <= FIRST_FLAGS else b""


class Posters:
    """Every poster that is attached, and the latest of those that were."""

    def __init__(self) -> None:
        self._by_origin: dict[int, Poster] = {}

    def __len__(self) -> int:
        return len(self._by_origin)

    def attach(self, origin: int, identity: str, link: Link) -> Poster | None:
        """The poster for a connection; None when another one that is attached has this origin."""
        known = self._by_origin.pop(origin, None)
        if known is not None and known.identity != identity:
            if known.link is not None or known.pending_events:
                self._by_origin[origin] = known
                return None
            # By chance a new poster drew the origin of one that has left: it starts afresh.
            known = None
        poster = known or Poster(origin, identity)
        poster.link = link
        self._by_origin[origin] = poster
        self._forget()
        return poster

    def link_of(self, origin: int) -> Link | None:
        """Where the poster with this origin is attached."""
        poster = self._by_origin.get(origin)
        return None if poster is None else poster.link

    def _forget(self) -> None:
        if len(self._by_origin) <= _REMEMBERED:
            return
        for origin, poster in self._by_origin.items():
            if poster.link is None and not poster.pending_events:
                del self._by_origin[origin]
                return
