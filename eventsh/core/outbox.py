"""The outbox: events that this process posted, from `post` until the broker confirms them.

Theory of operation. `post` runs in any thread, in a signal handler, in a `__del__`, and an exception may be raised in it
between any two bytecodes. So it takes effect by one call of C: it appends two objects to one list, and takes no lock.
Everything else happens in the thread of the owner's loop, which an exception may interrupt too where that is the main
thread. Every change there also takes effect by one call or one store, and whatever is left to do after it is done again
by the next call:

    posted = [None, head, facts, data, facts, data, ...]
                    |     '---- every event that is not confirmed: one pair, one number
                    '---------- (confirmed, batches, origin): the number before the first pair, and the frames so far

- `take` appends a batch to `batches`: its events then have their numbers. The number of the last one derives from there.
- `confirm` replaces the head and the confirmed pairs by one slice assignment, so the length of the list is the length
  of the queue at every moment, for every thread.
- `rewind` marks what may have left, and lets it leave again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from eventsh.core.batches import Alone, Batcher, Facts, Names
from eventsh.errors import PayloadTooLarge, QueueOverflow, UsageError
from eventsh.event import LIFECYCLE_SOURCE, check_name
from eventsh.protocol.codec import OPTIONS, SURE_BYTES, check_written, encode_data, encode_name, to_plain, write
from eventsh.protocol.frame import FLAGS_OFFSET, HEADER_BYTES, Flag, batch_limit, without_events

if TYPE_CHECKING:
    from eventsh.core.trace import Wait
    from eventsh.protocol.messages import Welcome

__all__ = ["RESERVE", "Outbox"]

# Pairs of source and event whose encoded form is remembered. Programs have dozens; the limit is against those that put
# an id into the name.
_MAX_NAMES = 4096
# A handler can't wait for room in a queue that others keep full, so it may fill the queue to this many times the limit.
RESERVE = 2
# From so many unconfirmed frames on, posted events may wait for others. Confirmations come within a millisecond, so that
# many are only under way where a program posts a little in each turn of its loop: then the broker and every worker would
# be busy with frames, not with events.
_MANY_FRAMES = 16
# Posts that do not wake the owner although it sleeps, for an owner that can send in the poster's thread: two batches take
# a tenth less of the broker's time than one.
_BATCHES_AT_ONCE = 2
# A unique key travels behind a u16 with its length.
_MAX_KEY_BYTES = 65535
_NO_NAMES: Names = ("", "", b"", b"", -1, -1)
# Pairs: an object for each event was 600 more for the garbage collector to look at in every batch.
_PAIR = 2
# Stands for an event whose bytes are in a frame already.
_FILLER = (None, b"")


class _Batch(NamedTuple):
    last: int
    """Number of its last event."""
    events: int
    frame: bytearray
    end_bytes: int
    """Bytes of all frames up to this one, counted from some batch before it. Only differences mean something, and those
    are no smaller than what they stand for: `withdraw` makes frames shorter."""

    def mark_resent(self) -> None:
        """Mark it as sent again, so that a receiver that has it drops it."""
        self.frame[FLAGS_OFFSET] |= Flag.RESENT


_Head = tuple[int, "deque[_Batch]", int]


class _Room:
    """How far posters may fill the queue, and the credit until its bytes are counted again.

    Counting takes as long as the queue, so a credit is given: of places for short data, and of bytes for long data.
    """

    __slots__ = ("credit_stop", "full_at", "long_credit", "max_bytes", "max_events")

    def __init__(self, max_events: int, max_bytes: int) -> None:
        self.max_events = max_events
        self.max_bytes = max_bytes
        # The length of `_posted` beyond which the queue is full, and beyond which the credit is used up.
        self.full_at = (max_events + 1) * _PAIR - 1
        self.credit_stop = self.long_credit = 0

    def has_credit(self, length: int, size: int = 0) -> bool:
        """Whether `_posted`, of this length, may grow by an event, and by `size` bytes of long data."""
        return length <= self.full_at and length <= self.credit_stop and size <= self.long_credit

    def spend(self, size: int) -> None:
        """Take long data from the credit."""
        self.long_credit -= size

    def give_credit(self, length: int, size: int, rest: int) -> None:
        """Give half of the `rest` of the bytes for short data beside a queue of this length, and half for long data beside one
        of `size`."""
        self.credit_stop = length + rest // 2 // SURE_BYTES * _PAIR
        self.long_credit = size + rest // 2

    def move_credit(self, places: int) -> None:
        """Note that `_posted` has lost so many places: as many more as before are free."""
        self.credit_stop -= places


class Outbox:
    """Posted events of one client.

    Args:
        origin: Random number that the frames carry.
        pid: Process that the frames name as their poster.
        max_queue_len: Unconfirmed events that `post` accepts.
        max_payload_len: Longest encoded event that `post` accepts.
        max_queue_bytes: Unconfirmed encoded bytes that `post` accepts.
        on_post: Called by `post` while `is_awake` is 0; it sets it and has `take` called soon. Must not raise.
        on_many: Called by `post` whenever two more full batches wait, for an owner that can send at once.
        is_handler: Whether the caller of `post` is a handler of the owner, which can't wait for room. Handlers have a reserve
            of as many events and bytes again. Called only where a queue is full.
        is_awake: One byte, also read by `post`. The memory of a bus becomes 0 in a forked child by itself.
    """

    __slots__ = (
        "_batcher",
        "_common",
        "_known_names",
        "_many_at",
        "_max_payload_len",
        "_names",
        "_on_many",
        "_on_post",
        "_posted",
        "_reserve",
        "_sent",
        "_stop_at",
        "is_awake",
        "is_handler",
        "pid",
        "waits",
        "window",
        "window_bytes",
    )

    def __init__(
        self,
        *,
        origin: int,
        pid: int,
        max_queue_len: int,
        max_payload_len: int,
        max_queue_bytes: int = 64 * 1024 * 1024,
        on_post: Callable[[], None] = lambda: None,
        on_many: Callable[[], None] | None = None,
        is_handler: Callable[[], bool] = lambda: False,
        is_awake: bytearray | memoryview[bool] | None = None,
    ) -> None:
        self.pid = pid
        # Unconfirmed events that the broker lets this process have under way.
        self.window = max_queue_len
        # With as many bytes of unconfirmed frames under way, it sends no more; 0: there is no such limit.
        self.window_bytes = 0
        self.is_awake = bytearray(1) if is_awake is None else is_awake
        # Receivers of receipts and handler reports, by the number of their post.
        self.waits: dict[int, Wait] = {}
        self._on_post = on_post
        self._on_many = on_many
        self.is_handler = is_handler
        self._posted: list[Any] = [None, (0, deque(), origin)]
        # The last number that left on the present connection.
        self._sent = 0
        self._batcher = Batcher()
        # Names of the last post, and of earlier ones.
        self._names = _NO_NAMES
        self._known_names: dict[tuple[str, str], Names] = {}
        self._max_payload_len = max_payload_len
        self._common = _Room(max_queue_len, max_queue_bytes)
        self._reserve = _Room(RESERVE * max_queue_len, RESERVE * max_queue_bytes)
        # The lengths of `_posted` beyond which `post` looks closer, and beyond which batches can be sent at once.
        self._stop_at = self._many_at = 0
        self._forget_names()

    # --- limits: may be set at any time, as the next ones ---

    @property
    def max_queue_len(self) -> int:
        """Unconfirmed events that `post` accepts."""
        return self._common.max_events

    @max_queue_len.setter
    def max_queue_len(self, value: int) -> None:
        self._set_limits(value, self.max_queue_bytes)

    @property
    def max_payload_len(self) -> int:
        """Longest encoded event that `post` accepts, in bytes."""
        return self._max_payload_len

    @max_payload_len.setter
    def max_payload_len(self, value: int) -> None:
        self._max_payload_len = value
        self._forget_names()

    @property
    def max_queue_bytes(self) -> int:
        """Unconfirmed encoded bytes that `post` accepts."""
        return self._common.max_bytes

    @max_queue_bytes.setter
    def max_queue_bytes(self, value: int) -> None:
        self._set_limits(self.max_queue_len, value)

    def _set_limits(self, events: int, size: int) -> None:
        self._common = _Room(events, size)
        self._reserve = _Room(RESERVE * events, RESERVE * size)
        self._set_stop()

    def _forget_names(self) -> None:
        # They are remembered with the limits of their data.
        self._known_names = {}
        self._names = _NO_NAMES

    def _set_stop(self) -> None:
        stop = min(self._common.full_at, self._common.credit_stop)
        if self._on_many is not None:
            self._many_at = len(self._posted) + _BATCHES_AT_ONCE * self._batcher.events * _PAIR
            stop = min(stop, self._many_at)
        self._stop_at = stop

    # --- what is where ---

    @property
    def origin(self) -> int:
        head: _Head = self._posted[1]
        return head[2]

    @property
    def confirmed(self) -> int:
        """Every post up to this number has reached all live workers."""
        head: _Head = self._posted[1]
        return head[0]

    @property
    def numbered(self) -> int:
        """Number of the last event that is in a batch. In the thread of the owner's loop only, as `number`."""
        head: _Head = self._posted[1]
        confirmed, batches, _ = head
        return batches[-1].last if batches else confirmed

    @property
    def number(self) -> int:
        """Number that the last post has or will have; the first one has 1."""
        return self.confirmed + self.queued

    @property
    def queued(self) -> int:
        """Posts that are not confirmed."""
        return len(self._posted) // _PAIR - 1

    @property
    def unconfirmed(self) -> int:
        """Posts that are in a batch and not confirmed. In the thread of the owner's loop only."""
        return self.numbered - self.confirmed

    @property
    def queued_bytes(self) -> int:
        """Encoded bytes of the posts that are not confirmed. Counted at each call."""
        posted = self._posted
        # Copies, made by one call: another thread may post, or batch and confirm, meanwhile.
        return sum(map(len, posted[_PAIR + 1 :: _PAIR])) + sum(len(batch.frame) for batch in list(posted[1][1]))

    @property
    def is_half_empty(self) -> bool:
        """Whether the queue has room for half of what it holds at most, in events and in bytes."""
        return self.queued <= self.max_queue_len // 2 and self.queued_bytes <= self.max_queue_bytes // 2

    @property
    def has_unbatched(self) -> bool:
        """Whether posts wait for their batch. In the thread of the owner's loop only."""
        return self.number > self.numbered

    # --- posting: in any thread ---

    def post(self, source: str, event: str, data: Any) -> None:
        """Append one event.

        Raises:
            QueueOverflow, NotSerializable, PayloadTooLarge, UsageError: Nothing was posted.
        """
        posted = self._posted
        if len(posted) > self._stop_at:
            self._check_room()
        # With what `_check` begins with this is `encode_data`, without its call.
        try:
            encoded = write(data, None, OPTIONS)
        except TypeError:
            data = to_plain(data)
            encoded = write(data, None, OPTIONS)
        # Most posts repeat the source and event of the one before, as the very same objects, and are short and without a
        # `null` that would have to be looked at.
        names = self._names
        if source is names[0] and event is names[1] and len(encoded) <= names[4] and 117 not in encoded:
            posted.extend((names, encoded))
        else:
            posted.extend(self._check(source, event, data, encoded))
        if not self.is_awake[0]:
            self._on_post()

    def _check_room(self) -> None:
        """Raise QueueOverflow, or have full batches sent, or count the bytes."""
        if not self._common.has_credit(len(self._posted)):
            self._extend_credit(0)
        if self._on_many is not None and len(self._posted) > self._many_at:
            self._on_many()
        self._set_stop()

    def _spend(self, size: int) -> None:
        """Take long data from a credit. Raises QueueOverflow."""
        # Two threads at once may each see the credit without the other: the limit is then passed by one event of each.
        room = self._common
        if size > room.long_credit:
            room = self._extend_credit(size)
        room.spend(size)

    def _extend_credit(self, size: int) -> _Room:
        """Find credit for `size` bytes of long data in the room of the caller. Raises QueueOverflow."""
        if not self.is_handler():
            return self._count_bytes(self._common, size)
        # First, for while the common room is full each post of a handler gets here, and counting takes long.
        reserve = self._reserve
        if reserve.has_credit(len(self._posted), size):
            return reserve
        try:
            return self._count_bytes(self._common, size)
        except QueueOverflow:
            return self._count_bytes(reserve, size)

    def _count_bytes(self, room: _Room, size: int) -> _Room:
        """Count the bytes of the queue, and give a credit of what is left. Raises QueueOverflow without room for `size`."""
        of_handlers = room is self._reserve
        if len(self._posted) > room.full_at:
            raise QueueOverflow(self.queued, room.max_events, of_handlers=of_handlers)
        waiting = self.queued_bytes
        left = room.max_bytes - waiting
        # With less than a hundredth left every post would count again.
        if waiting and left < max(size, room.max_bytes // 100):
            raise QueueOverflow(waiting, room.max_bytes, unit="bytes", of_handlers=of_handlers)
        room.give_credit(len(self._posted), size, max(0, left - size))
        return room

    def _check(self, source: str, event: str, data: Any, encoded: bytes) -> tuple[Facts, bytes]:
        """Make the entry of an event that may need a closer look. Raises as `post` does."""
        size = len(encoded)
        if size > SURE_BYTES or (117 in encoded and encoded.replace(b"null", b"") is not encoded):
            check_written(encoded, data)
        names = self._find_names(source, event)
        if size > names[5]:
            raise PayloadTooLarge(source, event, size + self._max_payload_len - names[5], self._max_payload_len)
        if size > SURE_BYTES:
            self._spend(size)
        # Stored whole: another thread may post between two stores.
        self._names = names
        return (names, encoded)

    def _find_names(self, source: str, event: str) -> Names:
        """The encoded names, and how long their data may be. Raises UsageError."""
        known = self._known_names.get((source, event)) if type(source) is str and type(event) is str else None
        if known is not None:
            return known
        source, event = check_name(source, "source"), check_name(event, "event")
        if source == LIFECYCLE_SOURCE:
            raise UsageError(f"the source {source!r} is eventsh's own: post from another one")
        encoded = encode_name(source) + b"," + encode_name(event)
        # An event counts as it would travel alone: [source,event,data].
        room = self._max_payload_len - len(encoded) - 3
        start = b"[" + encoded + b",["
        names = (source, event, start, b"]]," + start, min(room, SURE_BYTES), room)
        if len(self._known_names) >= _MAX_NAMES:
            self._known_names = {}
        self._known_names[source, event] = names
        return names

    def post_unique(
        self,
        source: str,
        event: str,
        data: Any,
        key: str,
        *,
        receipt: bool = False,
        trace: bool = False,
        wait: Wait | None = None,
    ) -> None:
        """Append one unique event, which travels in a frame of its own. Raises as `post` does."""
        encoded_key = check_name(key, "unique").encode("utf-8", "surrogatepass")
        if len(encoded_key) > _MAX_KEY_BYTES:
            raise UsageError(f"the unique key is {len(encoded_key)} bytes long, over the limit of {_MAX_KEY_BYTES}")
        head = len(encoded_key).to_bytes(2, "little") + encoded_key
        flags = Flag.UNIQUE | _asking(receipt=receipt, trace=trace)
        self._post_alone(source, event, data, head, Alone(flags, wait=wait))

    def post_receipt(
        self, source: str, event: str, data: Any, *, trace: bool = False, wait: Wait | None = None
    ) -> None:
        """Append one event for which the broker sends a Receipt, and with `trace` every worker a Handled. It travels in a
        frame of its own. `wait` receives both. Raises as `post` does."""
        self._post_alone(source, event, data, b"", Alone(_asking(receipt=True, trace=trace), wait=wait))

    def _post_alone(self, source: str, event: str, data: Any, head: bytes, facts: Alone) -> None:
        if len(self._posted) > self._stop_at:
            self._check_room()
        encoded = encode_data(data)
        names = self._find_names(source, event)
        size = len(encoded) + len(head)
        if size > names[5]:
            raise PayloadTooLarge(source, event, size + self._max_payload_len - names[5], self._max_payload_len)
        self._append_alone(facts, head + b"[" + names[2] + encoded + b"]]]")

    def post_body(
        self, body: bytes, count: int, *, pid: int, flags: int = 0, key: bytes = b"", worker: int | None = None
    ) -> None:
        """Append a batch as it was once encoded: a JSON array of runs with `count` events, of the process `pid`.

        The caller vouches for it. With UNIQUE in `flags` it is one event with this key, if possible for this worker.

        Raises:
            QueueOverflow: Nothing was posted.
        """
        if self.queued and self.queued + count > self.max_queue_len:
            raise QueueOverflow(self.queued, self.max_queue_len)
        head = len(key).to_bytes(2, "little") + key if flags & Flag.UNIQUE else b""
        if worker is not None:
            flags |= Flag.DIRECTED
        facts = Alone(flags, count, pid, 0 if worker is None else worker + 1)
        self._append_alone(facts, head + body)

    def _append_alone(self, facts: Alone, body: bytes) -> None:
        if len(body) > SURE_BYTES:
            self._spend(len(body))
        self._posted.extend((facts, body) + _FILLER * (facts.events - 1))
        if not self.is_awake[0]:
            self._on_post()

    # --- sending: in the thread of the owner's loop ---

    def take(self, *, linger: bool = False) -> list[bytearray]:
        """Frames that may leave now, in order, as far as the broker's window allows. They count as sent.

        The owner must rewind, by a new connection, when it could not hand all of them over.

        Args:
            linger: While many frames are under way, let a batch that is not full wait for more events. The owner must
                call again soon: `has_unbatched` says whether something waits.
        """
        frames: list[bytearray] = []
        posted = self._posted
        confirmed, batches, origin = posted[1]
        if batches and batches[-1].last > self._sent and not self._take_again(batches, frames):
            return frames
        while True:
            number = batches[-1].last if batches else confirmed
            start = (number - confirmed + 1) * _PAIR
            stop = min(len(posted), start + self._batcher.events * _PAIR)
            if start >= stop:
                break
            facts = posted[start]
            events = facts.events if type(facts) is Alone else (stop - start) // _PAIR
            if self._is_window_used_up(batches, batches[-1] if batches else None, events):
                break
            if linger and len(batches) >= _MANY_FRAMES and self._may_grow(events, posted[stop - _PAIR]):
                break
            frames.append(self._batch(start, stop, number + 1, batches, origin))
        self._set_stop()
        return frames

    def _take_again(self, batches: deque[_Batch], frames: list[bytearray]) -> bool:
        """Take batches that wait since a rewind. False: the window is full."""
        before: _Batch | None = None
        for batch in batches:
            if batch.last <= self._sent:
                before = batch
                continue
            if self._is_window_used_up(batches, before, batch.events):
                return False
            self._sent = batch.last
            frames.append(batch.frame)
            before = batch
        return True

    def _is_window_used_up(self, batches: deque[_Batch], last: _Batch | None, events: int) -> bool:
        """Whether `events` more have to wait for a confirmation. `last` is the last batch that left, if one is under way."""
        under_way = self._sent - self.confirmed
        # A batch that is larger than the whole window leaves alone, or it never could.
        if last is None or under_way <= 0:
            return False
        if under_way + events > self.window:
            return True
        first = batches[0]
        return bool(self.window_bytes) and last.end_bytes - first.end_bytes + len(first.frame) >= self.window_bytes

    def _may_grow(self, events: int, last: Facts) -> bool:
        return events < self._batcher.events and type(last) is not Alone

    def _batch(self, start: int, stop: int, first: int, batches: deque[_Batch], origin: int) -> bytearray:
        """Make the frame of the next batch, and give its events their numbers."""
        posted = self._posted
        facts, datas = posted[start:stop:_PAIR], posted[start + 1 : stop : _PAIR]
        events, frame = self._batcher.build(facts, datas, first, pid=self.pid, origin=origin)
        if type(facts[0]) is Alone and facts[0].wait is not None and not facts[0].wait.is_abandoned:
            self.waits[first] = facts[0].wait
        end_bytes = (batches[-1].end_bytes if batches else 0) + len(frame)
        batches.append(_Batch(first + events - 1, events, frame, end_bytes))
        self._sent = first + events - 1
        # The bytes are in the frame now.
        posted[start : start + events * _PAIR] = _FILLER * events
        return frame

    def confirm(self, number: int) -> None:
        """Let go of every post up to `number`, which must not be over `numbered`: all live workers have it."""
        posted = self._posted
        confirmed, batches, origin = posted[1]
        if number > confirmed:
            posted[: (number - confirmed + 1) * _PAIR] = (None, (number, batches, origin))
            for room in (self._common, self._reserve):
                room.move_credit((number - confirmed) * _PAIR)
        while batches and batches[0].last <= number:
            batches.popleft()
        # A batch that an earlier broker confirmed just before it died may still wait to be sent again.
        self._sent = max(self._sent, number)
        self._set_stop()

    def rewind(self) -> None:
        """A new connection: everything unconfirmed leaves again, marked, so that whoever has it drops it."""
        confirmed, batches, _ = self._posted[1]
        for batch in batches:
            if batch.last <= self._sent:
                batch.mark_resent()
        self._sent = confirmed

    def withdraw(self, readable: int) -> int:
        """Empty the batches that have a flag beside `readable`, which this broker can't read, and those that are too large for
        `max_payload_len`, which may be less than it was when they were posted; give the number of their events.

        Call it after `rewind`. A batch keeps its numbers, for the broker takes no batch that leaves some out, and its
        receipt: with no event in it every receiver reports it as a gap, in its place in the order.
        """
        withdrawn = 0
        posted = self._posted
        _, batches, _ = posted[1]
        for place, batch in enumerate(batches):
            body_bytes = len(batch.frame) - HEADER_BYTES
            if batch.frame[FLAGS_OFFSET] & ~readable or body_bytes > batch_limit(self._max_payload_len, batch.events):
                batches[place] = batch._replace(frame=without_events(batch.frame))
                withdrawn += batch.events
        # And those that have no frame yet.
        kept = Flag.RECEIPT | Flag.TRACE
        for place in range(_PAIR, len(posted), _PAIR):
            facts, data = posted[place : place + _PAIR]
            if type(facts) is Alone:
                if facts.flags & ~readable or len(data) > batch_limit(self._max_payload_len, facts.events):
                    posted[place : place + _PAIR] = (facts._replace(flags=facts.flags & kept), b"[]")
                    withdrawn += facts.events
            elif facts is not None and len(data) + len(facts[2]) > batch_limit(self._max_payload_len, 1):
                posted[place : place + _PAIR] = (Alone(0), b"[]")
                withdrawn += 1
        return withdrawn

    def keep_to(self, welcome: Welcome) -> None:
        """Keep to the limits of a broker from now on."""
        self.window = welcome.max_queue_len
        self.window_bytes = welcome.window_bytes
        self.max_payload_len = min(self.max_payload_len, welcome.max_payload_len)

    def forget(self, wait: Wait) -> None:
        """Nobody waits for this post any more."""
        wait.abandon()
        for number, other in list(self.waits.items()):
            if other is wait:
                del self.waits[number]

    def rename(self, origin: int) -> None:
        """Take another origin, because a poster with this one is known to the broker. Only before anything was sent."""
        confirmed, batches, _ = self._posted[1]
        self._posted[1] = (confirmed, batches, origin)

    def renew(self, origin: int, pid: int, *, keep_last: int | None = None) -> None:
        """Begin anew as a poster that no broker knows.

        Batched events are dropped: their poster is the one before. Events without a batch stay, to be posted by the new
        one; with `keep_last` only the last so many, as in a forked child, whose parent sends what it posted before.
        """
        posted = self._posted
        self.pid = pid
        self.waits.clear()
        dropped = self.numbered - self.confirmed if keep_last is None else self.queued - keep_last
        posted[: (dropped + 1) * _PAIR] = (None, (0, deque(), origin))
        self._sent = 0
        self.is_awake[0] = False
        self._set_stop()


def _asking(*, receipt: bool, trace: bool) -> int:
    return Flag.RECEIPT | Flag.TRACE if trace else Flag.RECEIPT if receipt else 0
