"""What this process has posted: batches on their way out, kept until the broker confirms them.

Knows no connection: `take` gives the frames that may leave now, `confirm` drops what every live worker has, and `rewind`
makes everything unconfirmed leave again after a reconnect.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from eventsh.core.queue import Entry, Queue
from eventsh.errors import PayloadTooLarge, QueueOverflow, UsageError
from eventsh.event import LIFECYCLE_SOURCE, check_name
from eventsh.protocol.codec import encode_data, encode_name
from eventsh.protocol.frame import (
    BATCH_BYTES,
    BATCH_EVENTS,
    FLAGS_OFFSET,
    HEADER,
    HEADER_BYTES,
    Flag,
    Kind,
    encode_frame,
)

__all__ = ["Outbox"]

_BLANK_HEADER = bytes(HEADER_BYTES)
# Pairs of source and event whose encoded form is remembered. Programs have dozens; the limit is against those that put
# an id into the name.
_PREFIXES = 4096
# A unique key travels behind a u16 with its length.
_MAX_KEY_BYTES = 65535


class Outbox:
    """Batches of posts.

    The open batch is one bytearray, to which each post appends its encoded data: a list of small bytes objects that is
    joined at the end took twice as long, for the heap grew and shrank with every batch. The body is a JSON array of
    runs, [source, event, [data, data, ...]]; neighbours with the same source and event share a run.

    `on_batch` is called when a batch is begun and when one is closed early because it is long, so that the owner can
    have `take` called at the end of the loop's turn. Not thread-safe: an owner with several threads holds a lock
    around every call.
    """

    __slots__ = (
        "_buffer",
        "_event",
        "_first",
        "_kept",
        "_on_batch",
        "_prefixes",
        "_run_overhead",
        "_source",
        "_unsent",
        "confirmed",
        "max_payload_len",
        "max_queue_len",
        "number",
        "origin",
        "pid",
        "window",
    )

    def __init__(
        self, *, origin: int, pid: int, max_queue_len: int, max_payload_len: int, on_batch: Callable[[], None]
    ) -> None:
        self.origin = origin
        self.pid = pid
        self.max_queue_len = max_queue_len
        self.max_payload_len = max_payload_len
        # How many unconfirmed events the broker lets this process have under way.
        self.window = max_queue_len
        # The number of the last post; the first one is 1.
        self.number = 0
        # Every post up to this number has reached all live workers.
        self.confirmed = 0
        self._on_batch = on_batch
        self._unsent = Queue(max_queue_len)
        self._kept = Queue(max_queue_len)
        self._prefixes: dict[tuple[str, str], tuple[bytes, int]] = {}
        self._buffer = bytearray()
        self._first = 1
        self._source: str | None = None
        self._event: str | None = None
        self._run_overhead = 0

    @property
    def queued(self) -> int:
        """How many posts are not confirmed."""
        return self.number - self.confirmed

    @property
    def has_closed_batch(self) -> bool:
        """Whether a batch waits that will not grow any more."""
        return len(self._unsent) > 0

    @property
    def has_room(self) -> bool:
        return self.number - self.confirmed < self.max_queue_len

    def post(self, source: str, event: str, data: Any) -> None:
        """Append one event to the open batch. Raises QueueOverflow, NotSerializable, PayloadTooLarge, UsageError; then
        nothing has changed."""
        number = self.number
        if number - self.confirmed >= self.max_queue_len:
            raise QueueOverflow(number - self.confirmed, self.max_queue_len)
        encoded = encode_data(data)
        buffer = self._buffer
        # Most posts repeat the source and event of the one before, most often as the very same objects.
        if (source is self._source and event is self._event) or (source == self._source and event == self._event):
            if len(encoded) + self._run_overhead > self.max_payload_len:
                raise PayloadTooLarge(source, event, len(encoded) + self._run_overhead, self.max_payload_len)
            buffer += b","
            buffer += encoded
            self.number = number + 1
        else:
            prefix, overhead = self._prefix(source, event, len(encoded))
            is_new = not buffer
            buffer += b"]]," if buffer else _BLANK_HEADER + b"["
            buffer += prefix
            buffer += encoded
            self._source, self._event, self._run_overhead = source, event, overhead
            self.number = number + 1
            if is_new:
                self._on_batch()
        if len(buffer) >= BATCH_BYTES or number + 2 - self._first >= BATCH_EVENTS:
            self._close_batch()
            self._on_batch()

    def post_unique(
        self, source: str, event: str, data: Any, key: str, *, receipt: bool = False, trace: bool = False
    ) -> None:
        """Append one unique event, in a frame of its own, behind everything posted before. Raises as `post` does."""
        check_name(key, "unique")
        encoded_key = key.encode("utf-8", "surrogatepass")
        if len(encoded_key) > _MAX_KEY_BYTES:
            raise UsageError(f"the unique key is {len(encoded_key)} bytes long, over the limit of {_MAX_KEY_BYTES}")
        head = len(encoded_key).to_bytes(2, "little") + encoded_key
        self._post_alone(source, event, data, head, Flag.UNIQUE | _asking(receipt=receipt, trace=trace))

    def post_receipt(self, source: str, event: str, data: Any, *, trace: bool = False) -> None:
        """Append one event in a frame of its own, for which the broker sends a Receipt, and with `trace` every
        worker a Handled. Raises as `post` does."""
        self._post_alone(source, event, data, b"", _asking(receipt=True, trace=trace))

    def _post_alone(self, source: str, event: str, data: Any, head: bytes, flags: int) -> None:
        if not self.has_room:
            raise QueueOverflow(self.queued, self.max_queue_len)
        encoded = encode_data(data)
        prefix, _ = self._prefix(source, event, len(encoded) + len(head))
        self._close_batch()
        self._first = self.number + 1
        self._buffer += _BLANK_HEADER + head + b"[" + prefix + encoded
        self.number += 1
        self._close_batch(flags)
        self._on_batch()

    def post_body(
        self, body: bytes, count: int, *, pid: int, flags: int = 0, key: bytes = b"", worker: int | None = None
    ) -> None:
        """Append a batch as it was once encoded, in a frame of its own: a JSON array of runs with `count` events, of the
        process `pid`. The caller vouches for it. With UNIQUE in `flags` it is one event with this key, if possible for
        this worker. Raises QueueOverflow; then nothing has changed."""
        if self.queued and self.queued + count > self.max_queue_len:
            raise QueueOverflow(self.queued, self.max_queue_len)
        self._close_batch()
        head = len(key).to_bytes(2, "little") + key if flags & Flag.UNIQUE else b""
        wish = 0 if worker is None else worker + 1
        self._first = self.number + 1
        flags |= Flag.DIRECTED if wish else 0
        first = self.number + 1
        frame = encode_frame(
            Kind.EVENTS, head + body, flags=flags, count=count, pid=pid, origin=self.origin, origin_seq=first, seq=wish
        )
        self.number += count
        self._unsent.append(Entry(self.number, count, frame))
        self._first = self.number + 1
        self._on_batch()

    def _prefix(self, source: str, event: str, data_bytes: int) -> tuple[bytes, int]:
        """The start of a run, and by how much an event is longer than its data. Checks the names and that an event with
        `data_bytes` of data is within the limit. Changes nothing: the post may yet be refused."""
        known = self._prefixes.get((source, event)) if type(source) is str and type(event) is str else None
        if known is None:
            check_name(source, "source")
            check_name(event, "event")
            if source == LIFECYCLE_SOURCE:
                raise UsageError(f"the source {source!r} is eventsh's own: post from another one")
            names = encode_name(source) + b"," + encode_name(event)
            if len(self._prefixes) >= _PREFIXES:
                self._prefixes.clear()
            # An event counts as it would travel alone: [source,event,data].
            known = self._prefixes[source, event] = (b"[" + names + b",[", len(names) + 3)
        overhead = known[1]
        if data_bytes + overhead > self.max_payload_len:
            raise PayloadTooLarge(source, event, data_bytes + overhead, self.max_payload_len)
        return known

    def _close_batch(self, flags: int = 0) -> None:
        buffer = self._buffer
        if not buffer:
            return
        buffer += b"]]]"
        first, last = self._first, self.number
        length = len(buffer) - HEADER_BYTES
        HEADER.pack_into(buffer, 0, length, Kind.EVENTS, flags, last - first + 1, self.pid, self.origin, first, 0, 0)
        self._unsent.append(Entry(last, last - first + 1, buffer))
        self._buffer = bytearray()
        self._first = last + 1
        self._source = self._event = None

    def take(self) -> list[bytearray]:
        """The frames that may leave now, in order, as far as the broker's window allows. They count as sent."""
        frames: list[bytearray] = []
        unsent, kept = self._unsent, self._kept
        while True:
            if self._buffer and not unsent and self._fits(self.number - self._first + 1):
                # Left open otherwise: while nothing may leave, the batch can as well grow.
                self._close_batch()
            if not unsent or not self._fits(unsent.peek().events):
                return frames
            entry = unsent.popleft()
            kept.append(entry)
            frames.append(entry.frame)

    def _fits(self, events: int) -> bool:
        # A batch that is larger than the whole window may travel alone, or it never could.
        return not self._kept or self._kept.events + events <= self.window

    def confirm(self, number: int) -> None:
        """Every live worker has everything up to `number`."""
        if number > self.confirmed:
            self._kept.release(number)
            # A batch that an earlier broker confirmed just before it died may still wait to be sent again.
            self._unsent.release(number)
            self.confirmed = number

    def rewind(self) -> None:
        """After a reconnect: send everything unconfirmed again, marked so that whoever has it drops it."""
        entries = []
        while self._kept:
            entry = self._kept.popleft()
            entry.frame[FLAGS_OFFSET] |= Flag.RESENT
            entries.append(entry)
        self._unsent.put_back(entries)

    def rename(self, origin: int) -> None:
        """Take another origin, because a poster with this one is known to the broker. Only before anything was sent."""
        self.origin = origin


def _asking(*, receipt: bool, trace: bool) -> int:
    return Flag.RECEIPT | Flag.TRACE if trace else Flag.RECEIPT if receipt else 0
