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
from eventsh.protocol.codec import OPTIONS, SURE_BYTES, check_written, encode_data, encode_name, refusal, write
from eventsh.protocol.frame import (
    BATCH_BYTES,
    BATCH_CONTAINERS,
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
# What stands at the start of each run's prefix, and not before the first run.
_BETWEEN_RUNS = len(b"]],")
# Pairs of source and event whose encoded form is remembered. Programs have dozens; the limit is against those that put
# an id into the name.
_PREFIXES = 4096
# From so many unconfirmed frames on, what is posted may wait for company. Confirmations come within a millisecond, so that
# many are only under way where a program posts a little in each turn of its loop: then the broker and every worker would
# be busy with frames, not with events.
_MANY_FRAMES = 16
# How long the batches of a program are is learned from those that hold at least so many events, and is never less.
_LEAST_EVENTS = 50
_SAMPLE_BYTES = 2048
# A unique key travels behind a u16 with its length.
_MAX_KEY_BYTES = 65535


class Outbox:
    """Batches of posts.

    The open batch is a bytearray with all of it but the data that goes on with the last run, which is a list that is joined
    when the run ends: a post to it costs one `append`. The body is a JSON array of runs, [source, event, [data, data, ...]];
    neighbours with the same source and event share a run.

    `on_batch` is called when a batch is begun and when one is closed early because it is long, so that the owner can
    have `take` called at the end of the loop's turn. Not thread-safe: an owner with several threads holds a lock
    around every call.
    """

    __slots__ = (
        "_batch_end",
        "_batch_events",
        "_buffer",
        "_event",
        "_first",
        "_full_at",
        "_kept",
        "_max_payload_len",
        "_max_queue_len",
        "_on_batch",
        "_part",
        "_prefixes",
        "_room",
        "_run",
        "_short",
        "_source",
        "_stop_at",
        "_unsent",
        "confirmed",
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
        # The run that a post may go on with: its names, what follows its first data, how long data may be, and up to which
        # length nothing about it has to be reckoned. 0: none is open.
        self._source: str | None = None
        self._event: str | None = None
        self._run: list[bytes] = []
        self._room = 0
        self._short = 0
        # How many events a batch holds, and the part of its bytes that each of them has; then the number with which the
        # open one ends. Longer data counts as several.
        self._batch_events = BATCH_EVENTS
        self._part = BATCH_BYTES // BATCH_EVENTS
        self._batch_end = BATCH_EVENTS
        # The number at which the queue is full; and the lower one of these two.
        self._full_at = max_queue_len
        self._stop_at = min(max_queue_len, BATCH_EVENTS)
        self._max_queue_len = max_queue_len
        self._max_payload_len = max_payload_len

    @property
    def max_queue_len(self) -> int:
        """How many posts may be unconfirmed. May be set at any time, as the next one."""
        return self._max_queue_len

    @max_queue_len.setter
    def max_queue_len(self, value: int) -> None:
        self._max_queue_len = value
        self._set_full_at(self.confirmed + value)

    @property
    def max_payload_len(self) -> int:
        """How long an event may be, encoded by itself."""
        return self._max_payload_len

    @max_payload_len.setter
    def max_payload_len(self, value: int) -> None:
        self._max_payload_len = value
        # What runs have room for was reckoned with the other one.
        self._prefixes.clear()
        self._room = self._short = 0

    @property
    def queued(self) -> int:
        """How many posts are not confirmed."""
        return self.number - self.confirmed

    @property
    def closed_batches(self) -> int:
        """How many batches wait that will not grow any more."""
        return len(self._unsent)

    @property
    def has_open_batch(self) -> bool:
        """Whether there are posts in a batch that can still grow."""
        return bool(self._buffer)

    @property
    def has_room(self) -> bool:
        return self.number < self._full_at

    def post(self, source: str, event: str, data: Any) -> None:
        """Append one event to the open batch. Raises QueueOverflow, NotSerializable, PayloadTooLarge, UsageError; then
        nothing has changed."""
        number = self.number
        if number >= self._stop_at:
            self._make_room()
        # With what `_append` begins with this is `encode_data`, without its call.
        try:
            encoded = write(data, None, OPTIONS)
        except TypeError as error:
            raise refusal(data, error) from None
        # Most posts repeat the source and event of the one before, as the very same objects, and are short and without a
        # `null` that would have to be looked at.
        if source is self._source and event is self._event and len(encoded) <= self._short and 117 not in encoded:
            # The number first: Ctrl-C may come behind a call, and the count must be that of what is there.
            self.number = number + 1
            self._run.append(encoded)
        else:
            self._append(source, event, data, encoded)

    def _make_room(self) -> None:
        """Begin another batch where the open one has as many events as may be. Raises QueueOverflow."""
        if self.number >= self._full_at:
            raise QueueOverflow(self.queued, self._max_queue_len)
        if self._buffer:
            self._close_batch()
            self._on_batch()
        else:
            self._begin_batch()

    def _append(self, source: str, event: str, data: Any, encoded: bytes) -> None:
        """Append one event that may need a look, a run of its own or more than its part of a batch. Raises as `post` does."""
        size = len(encoded)
        if size > SURE_BYTES or (117 in encoded and encoded.replace(b"null", b"") is not encoded):
            check_written(encoded, data)
        if source is self._source and event is self._event and size <= self._room:
            self.number += 1
            self._run.append(encoded)
            tells = False
        else:
            prefix, room = self._prefix(source, event, size)
            if self._run:
                self._end_run()
            size += len(prefix)
            buffer = self._buffer
            tells = not buffer
            if tells:
                prefix = _BLANK_HEADER + b"[" + prefix[_BETWEEN_RUNS:]
            elif source == self._source and event == self._event:
                # The same names, made anew for this post.
                prefix = b","
            buffer += prefix
            buffer += encoded
            self.number += 1
            self._source = source
            self._event = event
            self._room = room
            self._short = room if room < self._part else self._part  # noqa: FURB136 - a call of `min` takes four times as long
        if size > self._part:
            # It counts as several.
            self._batch_end -= size // self._part
            self._stop_at = min(self._full_at, self._batch_end)
            if self.number >= self._batch_end:
                self._close_batch()
                tells = True
        if tells:
            self._on_batch()

    def _end_run(self) -> None:
        """Put what the run goes on with into the batch."""
        rest = b",".join(self._run)
        if rest:
            # No call in between, behind which Ctrl-C could come.
            self._buffer += b","
            self._buffer += rest
            self._run = []

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
        self._buffer += _BLANK_HEADER + head + b"[" + prefix[_BETWEEN_RUNS:] + encoded
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
        flags |= Flag.DIRECTED if wish else 0
        first = self.number + 1
        frame = encode_frame(
            Kind.EVENTS, head + body, flags=flags, count=count, pid=pid, origin=self.origin, origin_seq=first, seq=wish
        )
        self.number += count
        self._unsent.append(Entry(self.number, count, frame))
        self._begin_batch()
        self._on_batch()

    def _prefix(self, source: str, event: str, data_bytes: int) -> tuple[bytes, int]:
        """The start of a run behind another, and how long the data of its events may be. Checks the names and that
        `data_bytes` is within the limit. Changes nothing: the post may yet be refused."""
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
            room = self._max_payload_len - len(names) - 3
            known = self._prefixes[source, event] = (b"]],[" + names + b",[", room)
        if data_bytes > known[1]:
            limit = self._max_payload_len
            raise PayloadTooLarge(source, event, data_bytes + limit - known[1], limit)
        return known

    def _close_batch(self, flags: int = 0) -> None:
        buffer = self._buffer
        if not buffer:
            return
        self._end_run()
        buffer += b"]]]"
        first, last = self._first, self.number
        events = last - first + 1
        if events >= _LEAST_EVENTS:
            self._learn(events)
        length = len(buffer) - HEADER_BYTES
        HEADER.pack_into(buffer, 0, length, Kind.EVENTS, flags, events, self.pid, self.origin, first, 0, 0)
        self._unsent.append(Entry(last, events, buffer))
        self._buffer = bytearray()
        self._begin_batch()

    def _learn(self, events: int) -> None:
        """Choose how many events the next batches hold, by what those at the end of this one are made of."""
        buffer = self._buffer
        containers = buffer.count(b"[", -_SAMPLE_BYTES) + buffer.count(b"{", -_SAMPLE_BYTES)
        sampled = events * min(_SAMPLE_BYTES, len(buffer)) / len(buffer)
        fitting = int(sampled * BATCH_CONTAINERS / (containers + 1))
        self._batch_events = min(max(fitting, _LEAST_EVENTS), BATCH_CONTAINERS)
        self._part = min(BATCH_BYTES // self._batch_events, SURE_BYTES)

    def _begin_batch(self) -> None:
        self._first = self.number + 1
        self._batch_end = self.number + self._batch_events
        self._stop_at = min(self._full_at, self._batch_end)
        self._room = self._short = 0

    def take(self, *, patient: bool = False) -> list[bytearray]:
        """The frames that may leave now, in order, as far as the broker's window allows. They count as sent.

        With `patient` the open batch is left open while many frames are under way: `has_open_batch` then tells the owner,
        who must take it soon all the same.
        """
        frames: list[bytearray] = []
        unsent, kept = self._unsent, self._kept
        while True:
            is_busy = patient and len(kept) >= _MANY_FRAMES
            if self._buffer and not (unsent or is_busy) and self._fits(self.number - self._first + 1):
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
            self._set_full_at(number + self._max_queue_len)

    def _set_full_at(self, number: int) -> None:
        self._full_at = number
        self._stop_at = min(number, self._batch_end)

    def rewind(self) -> None:
        """After a reconnect: send everything unconfirmed again, marked so that whoever has it drops it."""
        entries = []
        while self._kept:
            entry = self._kept.popleft()
            entry.frame[FLAGS_OFFSET] |= Flag.RESENT
            entries.append(entry)
        self._unsent.put_back(entries)

    def withdraw(self, readable: int) -> int:
        """Empty the batches that have a flag beside `readable`, which this broker can't read; give the number of their events.

        Call it after `rewind`. A batch keeps its numbers, for the broker takes no batch that leaves some out, and its
        receipt: with no event in it every receiver reports it as a gap, in its place in the order.
        """
        withdrawn = 0
        entries = [self._unsent.popleft() for _ in range(len(self._unsent))]
        for place, (last, events, frame) in enumerate(entries):
            flags = frame[FLAGS_OFFSET]
            if flags & ~readable:
                _, _, _, _, pid, origin, first, _, _ = HEADER.unpack_from(frame)
                flags &= Flag.RESENT | Flag.RECEIPT | Flag.TRACE
                empty = encode_frame(
                    Kind.EVENTS, b"[]", flags=flags, count=events, pid=pid, origin=origin, origin_seq=first
                )
                entries[place] = Entry(last, events, empty)
                withdrawn += events
        self._unsent.put_back(entries)
        return withdrawn

    def rename(self, origin: int) -> None:
        """Take another origin, because a poster with this one is known to the broker. Only before anything was sent."""
        self.origin = origin


def _asking(*, receipt: bool, trace: bool) -> int:
    return Flag.RECEIPT | Flag.TRACE if trace else Flag.RECEIPT if receipt else 0
