"""Announcement of workers that joined: one event for each, or one for many that join together."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from eventsh.core.broker.sequencer import Sequencer
    from eventsh.core.broker.state import Slot

__all__ = ["Arrivals"]

# A thousand clients that reconnect at once would get half a million events about each other. In more usual numbers each worker
# has an event of its own, as programs of the first version expect it.
_TOGETHER = 16
# A worker takes up to 60 bytes of an event's data, and an event of 64 KiB is what every receiver expects at most.
_MOST = 500


class Arrivals:
    """Workers that joined and are not announced yet."""

    def __init__(self, sequencer: Sequencer) -> None:
        self._sequencer = sequencer
        # As they joined: another process may have the slot when it is announced.
        self._joined: list[dict[str, Any]] = []

    def add(self, slot: Slot) -> None:
        """Note that a worker joined."""
        # Only where it holds: the first version's brokers never send it.
        assigned = {"assigned": True} if slot.is_assigned else {}
        self._joined.append({"worker_id": slot.worker_id, "pid": slot.pid, **assigned})

    def announce(self, now: float) -> None:
        """Announce the workers that joined, to all receivers and themselves."""
        if not self._joined:
            return
        workers, self._joined = self._joined, []
        if len(workers) <= _TOGETHER:
            for worker in workers:
                self._sequencer.enqueue_own("worker_joined", worker, None, now)
            return
        for first in range(0, len(workers), _MOST):
            self._sequencer.announce_joined(workers[first : first + _MOST], now)
