"""Frames for the tests of recordings, and what a file holds."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import orjson

from eventsh.protocol.frame import Flag, Kind, encode_frame
from eventsh.recording.format import (
    FILE_HEADER_BYTES,
    FileHeader,
    RecordEncoder,
    RecordKind,
    encode_file_header,
)
from eventsh.recording.frames import Frame, RecordedEvent, events_of
from eventsh.recording.reader import Damage, Item, Note, Reader
from eventsh.recording.writer import Writer

EPOCH = 1_700_000_000_000_000_000
SECOND = 1_000_000_000


def frame(
    seq: int,
    *datas: Any,
    source: str = "app",
    event: str = "e",
    key: str | None = None,
    time_ns: int | None = None,
    origin: int = 7,
    number: int | None = None,
    flags: int = 0,
) -> bytes:
    """A batch as a broker stamps it; with a key a unique event."""
    head = b"" if key is None else len(key.encode()).to_bytes(2, "little") + key.encode()
    return bytes(
        encode_frame(
            Kind.EVENTS,
            head + orjson.dumps([[source, event, list(datas)]]),
            flags=flags | (0 if key is None else Flag.UNIQUE),
            count=len(datas),
            pid=4711,
            origin=origin,
            origin_seq=seq if number is None else number,
            seq=seq,
            time_ns=EPOCH + seq * SECOND if time_ns is None else time_ns,
        )
    )


def small_file(*, closed: bool = True) -> bytes:
    """A recording with a record of each kind, in one piece."""
    encoder = RecordEncoder(FILE_HEADER_BYTES, checkpoint_bytes=250)
    encoder.add_facts(RecordKind.START, {"epoch": 5, "address": "unix:/x", "pid": 1, "by": "broker", "time_ns": EPOCH})
    encoder.add_events(frame(1, {"k": "v"}, [1, 2], None))
    encoder.add_events(frame(4, "only one", key="key-1"), 3)
    encoder.add_facts(RecordKind.MARKER, {"name": "here", "time_ns": EPOCH + 4 * SECOND})
    encoder.add_events(frame(5, "ä", 1.5))
    encoder.add_facts(RecordKind.HOLE, {"missed": 2, "first_seq": 7, "last_seq": 8, "reason": "the disk is full"})
    encoder.add_events(frame(9, True, source="eventsh", event="worker_joined", origin=0))
    encoder.add_events(frame(10, *range(20)))
    if closed:
        encoder.add_facts(RecordKind.END, {"events": encoder.events, "time_ns": EPOCH + 11 * SECOND})
    return encode_file_header(FileHeader(0, EPOCH, 0)) + b"".join(encoder.take())


def write(path: Path, frames: Iterable[bytes], *, epoch: int = 5, finish: bool = True, **options: Any) -> Writer:
    """A recording of these frames at `path`."""
    writer = Writer(str(path), **{"fsync": "never", **options})
    try:
        writer.start({"epoch": epoch, "address": "unix:/x", "pid": 1, "by": "broker", "time_ns": EPOCH})
        writer.write((each, -1) for each in frames)
        if finish:
            writer.finish()
    finally:
        writer.close()
    return writer


def items(path: Path, **options: Any) -> list[Item]:
    return list(Reader(str(path), **options))


def events(found: Iterable[Item]) -> Iterator[RecordedEvent]:
    for item in found:
        if isinstance(item, Frame):
            yield from events_of(item)


def datas(found: Iterable[Item]) -> list[Any]:
    return [event.data for event in events(found)]


def damages(found: Iterable[Item]) -> list[Damage]:
    return [item for item in found if isinstance(item, Damage)]


def notes(found: Iterable[Item], kind: RecordKind) -> list[dict[str, Any]]:
    return [item.facts for item in found if isinstance(item, Note) and item.kind is kind]


def is_open(path: str) -> bool:
    """Whether this process has the file open."""
    return any(
        os.path.realpath(f"/proc/self/fd/{number}") == os.path.realpath(path) for number in os.listdir("/proc/self/fd")
    )
