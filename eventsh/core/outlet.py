"""What the broker's rules want done outside: frames sent, connections ended, warnings logged.

It has one rule of its own: what a peer asks for and does not read is bounded, as everything is.
"""

from __future__ import annotations

from sys import getsizeof
from typing import TYPE_CHECKING

from eventsh.protocol.messages import Error

if TYPE_CHECKING:
    from eventsh.core.link import Link

__all__ = ["Outlet"]

# What may wait in memory for a peer to read it, beside the events that are queued for it. Nobody comes near it who reads:
# the most that is told at once are the scripts for a worker that attaches, and all answers to a question, each 8 MiB.
_MAX_UNREAD_MIB = 32
# After so much it is looked at again, for a lot can be asked for in one read. Looking costs as much as a few frames.
_LOOK_BYTES = 1024 * 1024


class Outlet:
    """What the owner has still to do."""

    __slots__ = ("changed", "notices")

    def __init__(self) -> None:
        # Links that have output or are to be closed. Whoever appends to a link's output by itself notes it here.
        self.changed: dict[Link, None] = {}
        # One for each trouble that began, not one for each event.
        self.notices: list[str] = []

    def send(self, link: Link, frame: bytearray) -> None:
        link.output.append(frame)
        self.changed[link] = None
        link.told_bytes += len(frame)
        if link.told_bytes >= _LOOK_BYTES:
            link.told_bytes = 0
            self.check_unread(link)

    def check_unread(self, link: Link) -> None:
        """End the connection of a peer for which too much waits that is not queued for it, and so not bounded by its queue:
        answers, or events that it says it has and never read. To be called now and then."""
        unread = link.unsent() + sum(map(getsizeof, link.output))
        if unread <= _MAX_UNREAD_MIB << 20 or link.is_closing:
            return
        slot = link.slot
        if slot is not None:
            unread -= sum(getsizeof(entry.frame) for entry in slot.queue if entry.last > slot.received)
        if unread > _MAX_UNREAD_MIB << 20:
            # It will not read these either, and need not be kept in memory for that.
            link.output.clear()
            why = f"reads nothing of what it asks for, and more than {_MAX_UNREAD_MIB} MiB wait"
            self.notices.append(f"{link.label} {why}: its connection is ended")
            self.refuse(link, "unread", f"this client {why}")

    def refuse(self, link: Link, code: str, message: str) -> None:
        """Say why, and end the connection."""
        if not link.is_closing:
            self.send(link, Error(code, message).encode())
            link.is_closing = True

    def close(self, link: Link) -> None:
        """End the connection once what was sent has left."""
        link.is_closing = True
        self.changed[link] = None

    def abort(self, link: Link) -> None:
        """End the connection now: nothing that is sent will arrive."""
        link.is_closing = link.is_gone = True
        self.changed[link] = None
