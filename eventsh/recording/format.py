"""The bytes of a recording (`.evlog`). No I/O and no clock; all numbers are little-endian.

A file begins with a header of 36 bytes:

    magic 89 45 56 4C 4F 47 0D 0A ("EVLOG" in a frame that text modes break) | version u16 | header_bytes u16
    | segment u32 | created_ns u64 | events u64 | crc u32

`header_bytes` is where the first record begins. `segment` counts the files of one recording from 0, and `events` are
those in the segments before. `crc` is the CRC-32 (zlib's) of all header bytes before it. Then records follow:

    crc u32 | length u32 | kind u16 | flags u16 | worker i32 | payload, `length` bytes

`crc` is the CRC-32 of the record from `length` to the end of its payload. `flags` is 0. Kinds (others are passed over):

    1 EVENTS      a frame of the wire, with the broker's stamps: see protocol/frame.py. `worker` is the slot that a unique
                  event was given to, else -1
    2 CHECKPOINT  sync, 16 bytes | offset u64 | previous u64 | events u64 | epoch u64 | seq u64 | time_ns u64
    3 START       JSON: recording begins, or goes on in another epoch; "epoch" holds for the frames that follow
    4 HOLE        JSON: "missed" events, or an unknown number (null), are not recorded here, and "reason"
    5 MARKER      JSON: "name" and "time_ns"
    6 END         JSON: the file was closed in good order. A file may go on behind it, as a recording may be continued

A checkpoint comes every 256 KiB or so: "sync" can be searched for (its first byte is in no JSON), `offset` is that of
the checkpoint's own record, `previous` that of the one before (0: none), `events` how many of the recording came before
it, `epoch` and `seq` those of the last event, and `time_ns` the latest stamp so far, so it never goes down.

Files only grow. What a killed process left unfinished is the tail behind the last record whose length and CRC are
right; whoever appends cuts it off first. A reader checks a length against MAX_RECORD_BYTES before it waits for, or
makes room for, so many bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum
from struct import Struct
from typing import Any, NamedTuple
from zlib import crc32

import orjson

from eventsh.errors import RecordingError
from eventsh.protocol.frame import HEADER, HEADER_BYTES, MAX_BODY_BYTES, Kind

__all__ = [
    "CHECKPOINT_BYTES",
    "FILE_HEADER_BYTES",
    "MAX_RECORD_BYTES",
    "NO_WORKER",
    "RECORD_BYTES",
    "SYNC",
    "VERSION",
    "Checkpoint",
    "FileHeader",
    "Record",
    "RecordDecoder",
    "RecordEncoder",
    "RecordKind",
    "decode_checkpoint",
    "decode_facts",
    "decode_file_header",
    "decode_start",
    "encode_file_header",
]

VERSION = 1
MAGIC = b"\x89EVLOG\r\n"
FILE_HEADER = Struct("<8sHHIQQ")
CRC = Struct("<I")
FILE_HEADER_BYTES = FILE_HEADER.size + CRC.size
assert FILE_HEADER_BYTES == 36

# Behind the CRC, which is of these bytes and the payload.
RECORD_REST = Struct("<IHHi")
RECORD_BYTES = CRC.size + RECORD_REST.size
assert RECORD_BYTES == 16
MAX_RECORD_BYTES = HEADER_BYTES + MAX_BODY_BYTES
NO_WORKER = -1

# 0xff is in no UTF-8, so in no JSON: only by chance in a frame's header, and there the CRC tells.
SYNC = b"\xff\xfeevlog-sync\xfd\xfc\x00\x01"
CHECKPOINT = Struct("<16sQQQQQQ")
# A reader that seeks reads some of these: smaller costs more of the file, larger more of each step.
CHECKPOINT_BYTES = 256 * 1024

_EVENTS = int(Kind.EVENTS)


class RecordKind(IntEnum):
    """What a record is. The number is its place in the file and never changes its meaning."""

    EVENTS = 1
    CHECKPOINT = 2
    START = 3
    HOLE = 4
    MARKER = 5
    END = 6


class FileHeader(NamedTuple):
    """The start of a file."""

    segment: int
    created_ns: int
    events: int
    header_bytes: int = FILE_HEADER_BYTES


class Record(NamedTuple):
    """One record. `offset` is where it begins in its file."""

    kind: int
    worker: int
    payload: bytes
    offset: int


class Checkpoint(NamedTuple):
    """Where a reader can begin."""

    offset: int
    previous: int
    events: int
    epoch: int
    seq: int
    time_ns: int


def encode_file_header(header: FileHeader) -> bytes:
    """The first bytes of a file."""
    fields = FILE_HEADER.pack(MAGIC, VERSION, FILE_HEADER_BYTES, header.segment, header.created_ns, header.events)
    return fields + CRC.pack(crc32(fields))


def decode_file_header(data: bytes) -> FileHeader:
    """Read the start of a file. Raises RecordingError: no recording, cut short, damaged, or of a later version."""
    if not data:
        raise RecordingError("it is empty")
    if data[: len(MAGIC)] != MAGIC[: len(data)]:
        raise RecordingError("it is no recording, or its first bytes are damaged")
    if len(data) < FILE_HEADER_BYTES:
        raise RecordingError("it is cut off within its header")
    _, version, header_bytes, segment, created_ns, events = FILE_HEADER.unpack_from(data)
    if CRC.unpack_from(data, FILE_HEADER.size)[0] != crc32(data[: FILE_HEADER.size]):
        raise RecordingError("its header is damaged")
    if version != VERSION or header_bytes != FILE_HEADER_BYTES:
        raise RecordingError(f"it is of version {version}, and this program reads version {VERSION}: use a later one")
    return FileHeader(segment, created_ns, events, header_bytes)


def decode_checkpoint(record: Record) -> Checkpoint:
    """Read a checkpoint's payload. Raises RecordingError."""
    if len(record.payload) != CHECKPOINT.size:
        raise RecordingError(f"the checkpoint at byte {record.offset} has {len(record.payload)} bytes")
    sync, *fields = CHECKPOINT.unpack(record.payload)
    checkpoint = Checkpoint(*fields)
    if sync != SYNC or checkpoint.offset != record.offset:
        raise RecordingError(f"the checkpoint at byte {record.offset} is that of another place")
    return checkpoint


def decode_facts(record: Record) -> dict[str, Any]:
    """Read the JSON of a start, a hole, a marker or an end. Raises RecordingError."""
    try:
        facts = orjson.loads(record.payload)
    except orjson.JSONDecodeError as error:
        raise RecordingError(f"the record at byte {record.offset} is not JSON: {error}") from None
    if not isinstance(facts, dict):
        raise RecordingError(f"the record at byte {record.offset} is no object")
    return facts


def decode_start(record: Record) -> dict[str, Any]:
    """Read a start, whose "epoch" is then a number of 64 bits. Raises RecordingError."""
    facts = decode_facts(record)
    epoch = facts.get("epoch")
    if type(epoch) is not int or not 0 <= epoch < 1 << 64:
        raise RecordingError(f"the start at byte {record.offset} names no epoch")
    return facts


class RecordDecoder:
    """Cut a file's bytes, from behind its header or from a checkpoint on, into records.

    As with frames, damage does not raise: the records before it are good and are returned, and `error` then says what
    is wrong at `offset`. After it no more data is taken.
    """

    __slots__ = ("_rest", "error", "offset")

    def __init__(self, offset: int = FILE_HEADER_BYTES) -> None:
        # Where the first record begins that has not been returned.
        self.offset = offset
        self.error: RecordingError | None = None
        self._rest = bytearray()

    @property
    def buffered_bytes(self) -> int:
        """How many bytes of an unfinished record are held. At the end of a file: how many are cut off."""
        return len(self._rest)

    def receive_data(self, data: bytes | bytearray | memoryview) -> list[Record]:
        """Feed bytes and take every record that they complete. Look at `error` after each call."""
        records: list[Record] = []
        if self.error is not None:
            return records
        rest = self._rest
        rest += data
        size, start, base = len(rest), 0, self.offset
        with memoryview(rest) as view:
            while size - start >= RECORD_BYTES:
                length, kind, flags, worker = RECORD_REST.unpack_from(view, start + 4)
                if length > MAX_RECORD_BYTES:
                    self.error = RecordingError(f"damaged at byte {base + start}: a record of {length} bytes")
                    break
                end = start + RECORD_BYTES + length
                if end > size:
                    break
                with view[start + 4 : end] as checked:
                    is_right = crc32(checked) == CRC.unpack_from(view, start)[0]
                if not is_right or flags:
                    self.error = RecordingError(f"damaged at byte {base + start}: the record's checksum is wrong")
                    break
                record = Record(kind, worker, bytes(view[start + RECORD_BYTES : end]), base + start)
                if kind == RecordKind.EVENTS and not _is_events(record.payload):
                    self.error = RecordingError(f"damaged at byte {base + start}: no frame of events")
                    break
                records.append(record)
                start = end
        del rest[:start]
        self.offset = base + start
        return records


def _is_events(frame: bytes) -> bool:
    if len(frame) < HEADER_BYTES:
        return False
    length, kind, _, count, _, _, _, _, _ = HEADER.unpack_from(frame)
    return bool(length == len(frame) - HEADER_BYTES and kind == _EVENTS and count)


class RecordEncoder:
    """Make the records of one file. `take` gives their bytes, in pieces that are written one behind the other.

    It knows where it is (`offset`) and what came before: how many events, the last epoch and number, the latest time.
    """

    __slots__ = ("_checkpoint_bytes", "_parts", "_previous", "epoch", "events", "offset", "seq", "time_ns")

    def __init__(self, offset: int, *, events: int = 0, checkpoint_bytes: int = CHECKPOINT_BYTES) -> None:
        self.offset = offset
        self.events = events
        self.epoch = 0
        self.seq = 0
        self.time_ns = 0
        self._checkpoint_bytes = checkpoint_bytes
        self._previous = 0
        self._parts: list[bytes | bytearray] = []

    def resume(self, last: Checkpoint) -> None:
        """Go on behind a checkpoint of the same file."""
        self._previous = last.offset
        self.events, self.epoch, self.seq, self.time_ns = last.events, last.epoch, last.seq, last.time_ns

    def passed(self, frame: bytes | bytearray) -> None:
        """Note events that are in the file already."""
        _, _, _, count, _, _, _, seq, time_ns = HEADER.unpack_from(frame)
        self.events += count
        self.seq = seq + count - 1
        if time_ns > self.time_ns:
            self.time_ns = time_ns

    def add_events(self, frame: bytes | bytearray, worker: int = NO_WORKER) -> None:
        """Add a frame, which is not copied and must not change until it is written."""
        if self.offset - self._previous >= self._checkpoint_bytes:
            self.add_checkpoint()
        rest = RECORD_REST.pack(len(frame), RecordKind.EVENTS, 0, worker)
        self._parts.append(CRC.pack(crc32(frame, crc32(rest))) + rest)
        self._parts.append(frame)
        self.offset += RECORD_BYTES + len(frame)
        self.passed(frame)

    def add_facts(self, kind: RecordKind, facts: Mapping[str, Any]) -> None:
        """Add a start, a hole, a marker or an end."""
        if kind is RecordKind.START:
            self.epoch = facts["epoch"]
            self.seq = 0
        self._add(kind, orjson.dumps(facts))

    def add_checkpoint(self) -> None:
        """Add one here, before there has to be one."""
        here = CHECKPOINT.pack(SYNC, *self.state())
        self._previous = self.offset
        self._add(RecordKind.CHECKPOINT, here)

    def _add(self, kind: RecordKind, payload: bytes) -> None:
        rest = RECORD_REST.pack(len(payload), kind, 0, NO_WORKER)
        self._parts.append(CRC.pack(crc32(payload, crc32(rest))) + rest + payload)
        self.offset += RECORD_BYTES + len(payload)

    def take(self) -> list[bytes | bytearray]:
        """The pieces since the last call."""
        parts, self._parts = self._parts, []
        return parts

    def state(self) -> tuple[int, ...]:
        """Where it is, for `restore`."""
        return (self.offset, self._previous, self.events, self.epoch, self.seq, self.time_ns)

    def restore(self, state: tuple[int, ...]) -> None:
        """Forget what was added since: it could not be written."""
        self.offset, self._previous, self.events, self.epoch, self.seq, self.time_ns = state
        self._parts.clear()
