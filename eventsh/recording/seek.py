"""Find a place in the middle of a recording's file by its checkpoints, without reading what lies between. No I/O: the
caller gives what reads a piece of the file."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from eventsh.errors import RecordingError
from eventsh.recording.format import (
    CHECKPOINT_BYTES,
    FILE_HEADER_BYTES,
    RECORD_BYTES,
    SYNC,
    Checkpoint,
    RecordDecoder,
    RecordKind,
    decode_checkpoint,
)

__all__ = ["Read", "find_checkpoint", "last_checkpoint"]

# Gives `count` bytes from `offset`, fewer only at the end of the file.
Read: TypeAlias = Callable[[int, int], bytes]

_RECORD = RECORD_BYTES + 64
_OVERLAP = len(SYNC) - 1
# On the way to the next one. Half of a distance is read on average, so to read a whole one at once would be too much.
_PIECE_BYTES = CHECKPOINT_BYTES // 4


def _checkpoint_at(read: Read, offset: int) -> Checkpoint | None:
    """The checkpoint whose record begins there, if one does."""
    if offset < FILE_HEADER_BYTES:
        return None
    records = RecordDecoder(offset).receive_data(read(offset, _RECORD))
    if not records or records[0].kind != RecordKind.CHECKPOINT:
        return None
    try:
        return decode_checkpoint(records[0])
    except RecordingError:
        return None


def first_checkpoint(read: Read, start: int, end: int) -> Checkpoint | None:
    """The first one whose record begins in `start` to `end`."""
    # The sync is behind the record's head.
    offset = start + RECORD_BYTES
    stop = end + RECORD_BYTES
    while offset < stop:
        data = read(offset, min(_PIECE_BYTES, stop - offset) + _OVERLAP)
        place = data.find(SYNC)
        while place >= 0:
            found = _checkpoint_at(read, offset + place - RECORD_BYTES)
            if found is not None:
                return found if found.offset < end else None
            place = data.find(SYNC, place + 1)
        if len(data) <= _OVERLAP:
            return None
        offset += len(data) - _OVERLAP
    return None


def last_checkpoint(read: Read, end: int) -> Checkpoint | None:
    """The last one whose record is whole before `end`."""
    stop = end
    while stop > FILE_HEADER_BYTES:
        start = max(FILE_HEADER_BYTES, stop - CHECKPOINT_BYTES)
        data = read(start, stop - start + _OVERLAP)
        place = data.rfind(SYNC)
        while place >= 0:
            found = _checkpoint_at(read, start + place - RECORD_BYTES)
            if found is not None and found.offset + _RECORD <= end:
                return found
            place = data.rfind(SYNC, 0, place)
        stop = start
    return None


def find_checkpoint(read: Read, size: int, is_before: Callable[[Checkpoint], bool]) -> Checkpoint | None:
    """The last checkpoint of which `is_before` holds, which must hold for all up to some place and for none behind it.
    None: it holds for none, so the reader begins at the start of the file."""
    best: Checkpoint | None = None
    low, high = FILE_HEADER_BYTES, size
    while low < high:
        # What is left holds one or two: halving it further would read the same bytes again and again.
        middle = low if high - low <= 2 * CHECKPOINT_BYTES else (low + high) // 2
        found = first_checkpoint(read, middle, high)
        if found is None:
            high = middle
        elif is_before(found):
            best = found
            low = found.offset + _RECORD
        else:
            high = middle
    return best
