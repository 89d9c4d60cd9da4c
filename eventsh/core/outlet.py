"""What the broker's rules want done outside: frames sent, connections ended, warnings logged. Knows no rule itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

from eventsh.protocol.messages import Error

if TYPE_CHECKING:
    from eventsh.core.link import Link

__all__ = ["Outlet"]


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
