"""The features of the wire that the broker and all its receivers know, and their announcement to the clients."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from eventsh.protocol.features import ALL_KNOW
from eventsh.protocol.messages import Features

if TYPE_CHECKING:
    from eventsh.core.link import Link
    from eventsh.core.outlet import Outlet
    from eventsh.core.roster import Roster

__all__ = ["Agreement"]


class Agreement:
    """`features` are the broker's own; `links` are all connections, the owner's."""

    def __init__(self, features: frozenset[str], roster: Roster, outlet: Outlet, links: Iterable[Link]) -> None:
        self.features = features
        self.all_know = features
        self._roster = roster
        self._outlet = outlet
        self._links = links

    def greet(self, link: Link) -> None:
        """Send the present state to a client that has been welcomed. Call it once its slot is attached."""
        if not self.settle():
            self._send(link)

    def settle(self) -> bool:
        """Send the features that all know to every client if they have changed; return whether they have.

        Call it after each change of the receivers. A slot without a process counts with the features of its last holder,
        for its next holder gets the frames that are queued meanwhile; a slot that had none yet counts as knowing nothing.
        """
        all_know = self.features
        for slot in self._roster:
            if not (slot.is_expired or slot.leaving):
                all_know = all_know & slot.features
        if all_know == self.all_know:
            return False
        self.all_know = all_know
        for link in self._links:
            self._send(link)
        return True

    def _send(self, link: Link) -> None:
        if link.is_greeted and not link.is_closing and ALL_KNOW in link.features:
            self._outlet.send(link, Features(sorted(self.all_know)).encode())
