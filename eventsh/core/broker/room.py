"""Room: how many bytes the queue of each slot may hold beside what the other queues of the broker hold.

Theory of operation. A frame that several queues hold is one object, so live workers, which all get the same broadcasts,
hold together no more than the one that is furthest behind. Two things add up instead: the frames that slots kept when they
began to drop, each from its own place in the order, and unique events, which are in one queue each. With MAX for
`max_queue_bytes` and OTHERS for the bytes of both kinds in the queues of other slots, each frame counted once, a queue is
full with (2 * MAX - OTHERS) / 2 bytes, and with MAX at the most. So one worker that hangs costs MAX, the next one elsewhere
MAX / 2, and any number of them less than 2 * MAX together, but for LEAST, which a healthy worker needs for what is under
way, whatever the others hold. Posts that are held, and unique events that wait for a worker, are bounded by the windows
of their posters.

One limit over all queues was rejected: with hung workers that fill it, healthy ones would count as full for ever.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from eventsh.core.broker.state import Slot
    from eventsh.options import Options

__all__ = ["Room"]

# To look at all queues costs as much as some frames: it is done each time that this part of `max_queue_bytes` was enqueued.
_LOOK_PART = 32
# The least room of a slot, as a part of `max_queue_bytes`: 1 MiB by default.
_LEAST_PART = 64


class Room:
    """Sets the limits in bytes of all slots' queues."""

    __slots__ = ("_enqueued", "_least", "_max", "_slots")

    def __init__(self, slots: Iterable[Slot], options: Options) -> None:
        self._slots = slots
        self._max = options.max_queue_bytes
        self._least = max(options.max_payload_len, options.max_queue_bytes // _LEAST_PART)
        # Bytes since the queues were last looked at.
        self._enqueued = 0

    def count(self, size_bytes: int) -> None:
        """Count a frame that was enqueued, for one slot or for several."""
        self._enqueued += size_bytes
        if self._enqueued >= self._max // _LOOK_PART:
            self._enqueued = 0
            self._share()

    def _share(self) -> None:
        kept: dict[int, int] = {}
        uniques: dict[Slot, int] = {}
        for slot in self._slots:
            if slot.is_dropping:
                kept.update((id(entry.frame), len(entry.frame)) for entry in slot.queue)
            else:
                uniques[slot] = slot.unique_bytes
        total = sum(kept.values()) + sum(uniques.values())
        # The limit of one that is dropping stays: it decides when the slot has caught up.
        for slot, own in uniques.items():
            room = (2 * self._max - (total - own)) // 2
            slot.queue.resize(min(self._max, max(self._least, room)))
