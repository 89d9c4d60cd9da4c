"""What the router tells whoever records: each frame that got its place, whole and stamped."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from eventsh.core.queue import Entry
    from eventsh.core.slot import Slot

__all__ = ["Tap"]


class Tap(Protocol):
    """Somebody who sees all that crosses the broker. Its calls are on the hot path, and none of them may raise."""

    @property
    def synced(self) -> int | None:
        """Posts are confirmed up to this seq only, for the rest is not on disk; None: nobody waits for that."""

    def take(self, entry: Entry, slots: Iterable[Slot] | None) -> None:
        """A frame got its place. It never changes from here on, so it need not be copied. `slots` are those who get it,
        None: everybody."""

    def status(self) -> dict[str, Any]:
        """For `eventsh status`."""

    def answer(self, what: str, arguments: dict[str, Any]) -> Any:
        """What a client's request is answered with; None: it is no request of the tap's. Raises EventError."""
