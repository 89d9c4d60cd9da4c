"""The posters that the broker knows: those that are attached, and the latest of those that were."""

from __future__ import annotations

from typing import TYPE_CHECKING

from eventsh.core.broker.state import Poster

if TYPE_CHECKING:
    from eventsh.core.broker.state import ClientConnection

__all__ = ["Posters"]

# Posters that have left and have nothing pending are remembered so that they may reconnect; this many, 200 bytes each.
_REMEMBERED = 4096


class Posters:
    """Posters by origin."""

    def __init__(self) -> None:
        self._by_origin: dict[int, Poster] = {}

    def __len__(self) -> int:
        return len(self._by_origin)

    def attach(self, origin: int, identity: str, connection: ClientConnection, confirmed: int) -> Poster | None:
        """Return the poster for a connection; None when another one that is attached has this origin.

        `confirmed`: the last of its posts that earlier brokers confirmed, if it names that."""
        known = self._by_origin.pop(origin, None)
        if known is not None and known.identity != identity:
            if known.connection is not None or known.is_busy:
                self._by_origin[origin] = known
                return None
            # By chance a new poster drew the origin of one that has left: it starts afresh.
            known = None
        poster = known or Poster(origin, identity, confirmed)
        poster.attach(connection)
        self._by_origin[origin] = poster
        self._forget()
        return poster

    def connection_of(self, origin: int) -> ClientConnection | None:
        """Return the connection of the poster with this origin, if it is attached."""
        poster = self._by_origin.get(origin)
        return None if poster is None else poster.connection

    def _forget(self) -> None:
        if len(self._by_origin) <= _REMEMBERED:
            return
        for origin, poster in self._by_origin.items():
            if poster.connection is None and not poster.is_busy:
                del self._by_origin[origin]
                return
