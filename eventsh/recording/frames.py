"""What is in the frames of a recording: single events, choices of them, and the same frames in other forms. No I/O."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import orjson

from eventsh.core.delivery import decode_runs
from eventsh.errors import ProtocolError, RecordingError
from eventsh.protocol.frame import HEADER, HEADER_BYTES, Flag, Kind, encode_frame, read_key

__all__ = ["Frame", "RecordedEvent", "Repeats", "choose", "cut", "encode_events", "encode_runs", "events_of", "runs_of"]

# Of so many posters and unique events it is known what came before.
_REMEMBERED = 65536


class Frame(NamedTuple):
    """One frame of a recording, with what the recording knows beside it. `first` is the number of its first event in the
    recording, counted from 1."""

    data: bytes
    epoch: int
    worker: int
    first: int

    @property
    def events(self) -> int:
        return int(HEADER.unpack_from(self.data)[3])

    @property
    def time_ns(self) -> int:
        return int(HEADER.unpack_from(self.data)[8])


@dataclass(frozen=True, slots=True)
class RecordedEvent:
    """One event as it crossed the broker.

    `seq` is its place in the broker's life `epoch`, `time_ns` when it got it, in nanoseconds since 1970. `origin` and
    `origin_number` are its poster's, 0 for eventsh's own events. `unique` is its key and `worker` the slot that got it;
    both None for an event to all. `replayed` is True where it came out of an earlier recording, `resent` where its poster
    could not know whether an earlier broker had handed it out.
    """

    source: str
    event: str
    data: Any
    pid: int
    seq: int = 0
    time_ns: int = 0
    epoch: int = 0
    origin: int = 0
    origin_number: int = 0
    unique: str | None = None
    worker: int | None = None
    replayed: bool = False
    resent: bool = False


def runs_of(frame: Frame) -> list[Any]:
    """Its events as runs, `[source, event, [data, ...]]`. Raises RecordingError."""
    data = frame.data
    _, _, flags, count, _, origin, _, seq, _ = HEADER.unpack_from(data)
    try:
        start = HEADER_BYTES + (2 + len(read_key(data)) if flags & Flag.UNIQUE else 0)
        return decode_runs(memoryview(data)[start:], count, is_own=not origin)
    except ProtocolError as error:
        raise RecordingError(f"event {seq} can't be read: {error}") from None


def _key_of(data: bytes, flags: int) -> str | None:
    # Keys may hold lone surrogates, as file names do.
    return read_key(data).decode("utf-8", "surrogatepass") if flags & Flag.UNIQUE else None


def events_of(frame: Frame) -> Iterator[RecordedEvent]:
    """Its single events. Raises RecordingError for a body that is no batch."""
    runs = runs_of(frame)
    _, _, flags, _, pid, origin, number, seq, time_ns = HEADER.unpack_from(frame.data)
    try:
        unique = _key_of(frame.data, flags)
    except UnicodeDecodeError:
        raise RecordingError(f"event {seq} has a key that is no text") from None
    worker = frame.worker if frame.worker >= 0 else None
    replayed, resent = bool(flags & Flag.REPLAYED), bool(flags & Flag.RESENT)
    place = 0
    for source, event, datas in runs:
        for data in datas:
            yield RecordedEvent(
                source,
                event,
                data,
                pid,
                seq + place,
                time_ns,
                frame.epoch,
                origin,
                number + place,
                unique,
                worker,
                replayed,
                resent,
            )
            place += 1


def encode_runs(runs: Any) -> bytes:
    """The body of a frame. Raises RecordingError for what was read, but can't be written again: data that is nested deeper
    than any that was posted."""
    try:
        return orjson.dumps(runs)
    except TypeError as error:
        raise RecordingError(f"an event can't be written again: {error}") from None


def encode_events(events: list[RecordedEvent]) -> bytes:
    """One frame of neighbours that share all but source, event and data; a unique event is alone."""
    first = events[0]
    runs: list[Any] = []
    for event in events:
        if not runs or runs[-1][0] != event.source or runs[-1][1] != event.event:
            runs.append((event.source, event.event, []))
        runs[-1][2].append(event.data)
    flags = (Flag.REPLAYED if first.replayed else 0) | (Flag.RESENT if first.resent else 0)
    head = b""
    if first.unique is not None:
        key = first.unique.encode("utf-8", "surrogatepass")
        flags, head = flags | Flag.UNIQUE, len(key).to_bytes(2, "little") + key
    return bytes(
        encode_frame(
            Kind.EVENTS,
            head + encode_runs(runs),
            flags=flags,
            count=len(events),
            pid=first.pid,
            origin=first.origin,
            origin_seq=first.origin_number,
            seq=first.seq,
            time_ns=first.time_ns,
        )
    )


def choose(frame: Frame, wanted: Callable[[RecordedEvent], object]) -> list[Frame]:
    """What is wanted of it: the frame itself where that is all, else a frame for each row of neighbours that are, for the
    events keep their numbers."""
    rows: list[list[RecordedEvent]] = [[]]
    first, firsts = frame.first, [frame.first]
    total = kept = 0
    for event in events_of(frame):
        if wanted(event):
            if not rows[-1]:
                firsts[-1] = first + total
            rows[-1].append(event)
            kept += 1
        elif rows[-1]:
            rows.append([])
            firsts.append(0)
        total += 1
    if kept == total:
        return [frame]
    return [
        Frame(encode_events(row), frame.epoch, frame.worker, number)
        for row, number in zip(rows, firsts, strict=True)
        if row
    ]


def cut(frame: Frame, low: int, high: int) -> Frame:
    """The events `low` to `high` of it, counted from 0; as with `range`, the last one is not included."""
    row = list(events_of(frame))[low:high]
    return Frame(encode_events(row), frame.epoch, frame.worker, frame.first + low)


class Repeats:
    """Knows the frames that are in a recording twice: a poster that can't know whether a broker that died had handed a
    batch out sends it again, and a unique event is given again when its worker dies. Workers drop what they have."""

    def __init__(self) -> None:
        self._last: OrderedDict[int, int] = OrderedDict()
        self._uniques: OrderedDict[tuple[int, int], None] = OrderedDict()

    def has(self, data: bytes) -> bool:
        """Whether the events of this frame came before; remembers them if not."""
        _, _, flags, count, _, origin, number, _, _ = HEADER.unpack_from(data)
        if not origin:
            return False
        if flags & Flag.UNIQUE:
            name = (origin, number)
            if name in self._uniques and flags & Flag.RESENT:
                return True
            self._uniques[name] = None
            if len(self._uniques) > _REMEMBERED:
                self._uniques.popitem(last=False)
            return False
        if flags & Flag.RESENT and number <= self._last.get(origin, 0):
            return True
        self._last[origin] = number + count - 1
        self._last.move_to_end(origin)
        if len(self._last) > _REMEMBERED:
            self._last.popitem(last=False)
        return False
