"""Announcement of workers that joined: one event for each, or one for many that join together."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from eventsh.core.broker.sequencer import Sequencer
    from eventsh.core.broker.state import Slot

__all__ = ["Arrivals"]

# A thousand clients that reconnect at once would get half a million events about each other. In more usual numbers each worker
# has an event of its own, as programs of the first version expect it.
_TOGETHER = 16
# A worker takes about 40 bytes of an event's data, and an event of 64 KiB is what every receiver expects at most.
_MOST = 1000


class Arrivals:
    """Workers that joined and are not announced yet."""

    def __init__(self, sequencer: Sequencer) -> None:
        self._sequencer = sequencer
        # With the pid of the process that joined, for another one may have the slot by now.
        self._joined: list[tuple[Slot, int | None]] = []

    def add(self, slot: Slot) -> None:
        """Note that a worker joined."""
        self._joined.append((slot, slot.pid))

    def announce(self, now: float) -> None:
        """Announce the workers that joined, to all receivers and themselves."""
        if not self._joined:
            return
        workers = [{"worker_id": slot.worker_id, "pid": pid} for slot, pid in self._joined]
        self._joined = []
        if len(workers) <= _TOGETHER:
            for worker in workers:
                self._sequencer.enqueue_own("worker_joined", worker, None, now)
            return
        for first in range(0, len(workers), _MOST):
            self._sequencer.announce_joined(workers[first : first + _MOST], now)
