"""What the router passes to a recorder: each frame that got its number, whole and stamped."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from eventsh.core.broker.state import Slot
    from eventsh.core.queue import Entry

__all__ = ["EventSink"]


class EventSink(Protocol):
    """Gets all that crosses the broker. Its calls are on the hot path, and none of them may raise."""

    @property
    def synced(self) -> int | None:
        """Posts are confirmed up to this seq only, for the rest is not on disk; None: nobody waits for that."""

    def take(self, entry: Entry, slots: Iterable[Slot] | None) -> None:
        """Accept a frame that got its number. It never changes from here on, so it need not be copied. `slots` get it, None:
        all do."""

    def status(self) -> dict[str, Any]:
        """Describe itself for `eventsh status`."""

    def answer(self, what: str, arguments: dict[str, Any]) -> Any:
        """Answer a client's request; None: it is not a request of the sink's. Raises EventError."""
