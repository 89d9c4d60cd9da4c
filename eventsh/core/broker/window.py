"""Window of a poster: how much it may have under way unconfirmed, and how large each of its batches may be."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from eventsh.errors import ProtocolError
from eventsh.protocol.frame import BATCH_BYTES, HEADER, HEADER_BYTES, Flag, batch_limit

if TYPE_CHECKING:
    from eventsh.options import Options

__all__ = ["Window", "window_of"]

# The window in bytes as a part of `max_queue_bytes`: 4 MiB by default. The broker holds the posts of every poster while one
# worker's queue is full, beside that queue; and a local connection needs no more than some batches under way.
_PART = 16


@dataclass(frozen=True, slots=True)
class Window:
    """Limits of one poster; `bytes` is 0 for one that does not count them."""

    events: int
    bytes: int
    payload_bytes: int

    def check(self, pending_events: int, count: int, pending_bytes: int) -> None:
        """Raise ProtocolError for a batch of `count` events beside what is under way. The first one always fits."""
        if pending_events and pending_events + count > self.events:
            raise ProtocolError(
                f"more than {self.events} events are under way unconfirmed (max_queue_len of the broker)"
            )
        if self.bytes and pending_bytes >= self.bytes:
            raise ProtocolError(
                f"more was sent with {pending_bytes} bytes under way unconfirmed: the limit is {self.bytes}, a part of"
                " max_queue_bytes of the broker"
            )

    def excess(self, frame: bytearray) -> str | None:
        """Return why a batch is too large for the events that it holds; None if it is not."""
        body_bytes = len(frame) - HEADER_BYTES
        # All but a few batches.
        if body_bytes <= self.payload_bytes:
            return None
        _, _, flags, count, _, _, _, _, _ = HEADER.unpack_from(frame)
        limit = batch_limit(self.payload_bytes, count)
        if self.bytes and not flags & Flag.REPLAYED:
            # It ends its batches by all that is in them. An earlier version did not count the names, and recordings have
            # the batches of earlier versions.
            limit = min(limit, batch_limit(self.payload_bytes, 1) + BATCH_BYTES + count)
        if body_bytes <= limit:
            return None
        return (
            f"a batch of {count} events has {body_bytes} bytes, over the limit of {limit} for as many:"
            f" max_payload_len of the broker is {self.payload_bytes}"
        )


def window_of(options: Options, *, counts_bytes: bool) -> Window:
    """Return the window of a poster. One that counts no bytes has as many as its events may have at most."""
    if counts_bytes:
        size = max(options.max_queue_bytes // _PART, options.max_payload_len)
        return Window(options.max_queue_len, size, options.max_payload_len)
    events = min(options.max_queue_len, max(1, options.max_queue_bytes // options.max_payload_len))
    return Window(events, 0, options.max_payload_len)
