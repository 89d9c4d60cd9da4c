"""Effects of the broker's rules: frames to send, connections to end, warnings to log.

It has one rule of its own: what a peer asks for and does not read is bounded, as everything is.
"""

from __future__ import annotations

from sys import getsizeof
from typing import TYPE_CHECKING

from eventsh.protocol.messages import Error

if TYPE_CHECKING:
    from eventsh.core.broker.state import ClientConnection

__all__ = ["Outgoing"]

# What may wait in memory for a peer to read it, beside the events that are queued for it. No peer that reads comes near it:
# the most that is sent at once are the scripts for a worker that attaches, and all answers to a question, each 8 MiB.
_MAX_UNREAD_MIB = 32
# After this many bytes the unread ones are counted again, for a lot can be asked for in one read. Counting costs as much as a
# few frames.
_CHECK_BYTES = 1024 * 1024


class Outgoing:
    """What the owner has still to do. `changed`: connections that have output or are to be closed."""

    __slots__ = ("changed", "warnings")

    def __init__(self) -> None:
        # A part that appends to a connection's output itself notes the connection here.
        self.changed: dict[ClientConnection, None] = {}
        # One for each trouble that began, not one for each event.
        self.warnings: list[str] = []

    def send(self, connection: ClientConnection, frame: bytearray) -> None:
        connection.send(frame)
        self.changed[connection] = None
        if connection.unchecked_bytes >= _CHECK_BYTES:
            connection.begin_check()
            self.check_unread(connection)

    def warn(self, message: str) -> None:
        """Log a warning."""
        self.warnings.append(message)

    def check_unread(self, connection: ClientConnection) -> None:
        """End the connection of a peer for which too much waits that is not queued for it, and so not bounded by its queue:
        answers, or events that it says it has and never read. To be called now and then."""
        unread = connection.unsent() + sum(map(getsizeof, connection.output))
        if unread <= _MAX_UNREAD_MIB << 20 or connection.is_closing:
            return
        slot = connection.slot
        if slot is not None:
            unread -= sum(getsizeof(entry.frame) for entry in slot.queue if entry.last > slot.received)
        if unread > _MAX_UNREAD_MIB << 20:
            # It will not read these either, and need not be kept in memory for that.
            connection.output.clear()
            why = f"reads nothing of what it asks for, and more than {_MAX_UNREAD_MIB} MiB wait"
            self.warn(f"{connection.label} {why}: its connection is ended")
            self.refuse(connection, "unread", f"this client {why}")

    def refuse(self, connection: ClientConnection, code: str, message: str) -> None:
        """Send an Error, and end the connection."""
        if not connection.is_closing:
            self.send(connection, Error(code, message).encode())
            connection.close()

    def close(self, connection: ClientConnection) -> None:
        """End the connection once what was sent has left."""
        connection.close()
        self.changed[connection] = None

    def abort(self, connection: ClientConnection) -> None:
        """End the connection now: nothing that is sent will arrive."""
        connection.abort()
        self.changed[connection] = None
