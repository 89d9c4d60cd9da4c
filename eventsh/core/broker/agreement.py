"""Features of the wire that the broker and all its receivers know, and their announcement to the clients."""

from __future__ import annotations

from typing import TYPE_CHECKING

from eventsh.core.broker.state import Absence
from eventsh.protocol.features import ALL_KNOW
from eventsh.protocol.messages import Features

if TYPE_CHECKING:
    from eventsh.core.broker.state import BrokerState, ClientConnection

__all__ = ["Agreement"]


class Agreement:
    """`features` are the broker's own."""

    def __init__(self, state: BrokerState, features: frozenset[str]) -> None:
        self.features = features
        self.all_know = features
        self._slots = state.slots
        self._outgoing = state.outgoing
        self._connections = state.connections

    def greet(self, connection: ClientConnection) -> None:
        """Send the present state to a client that has been welcomed. Call it once its slot is attached."""
        if not self.settle():
            self._send(connection)

    def settle(self) -> bool:
        """Send the features that all know to every client if they have changed; return whether they have.

        Call it after each change of the receivers. A slot without a process counts with the features of its last holder,
        for its next holder gets the frames that are queued meanwhile; a slot that had none yet counts as knowing nothing.
        """
        # Called for each hello. Most slots know the same, so the intersection is of few sets.
        expired = Absence.EXPIRED
        known = {
            slot.features
            for slot in self._slots
            if slot.absence is not expired and (slot.goodbye is None or not slot.is_leaving)
        }
        all_know = self.features.intersection(*known)
        if all_know == self.all_know:
            return False
        self.all_know = all_know
        for connection in self._connections:
            self._send(connection)
        return True

    def _send(self, connection: ClientConnection) -> None:
        if connection.is_greeted and not connection.is_closing and ALL_KNOW in connection.features:
            self._outgoing.send(connection, Features(sorted(self.all_know)).encode())
