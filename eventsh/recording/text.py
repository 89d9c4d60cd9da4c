"""A recording as lines of JSON, one for each event or other record, and back. No I/O.

    {"source":"cache","event":"purge","data":{"key":"k1"},"pid":71,"seq":9,"time_ns":1700000000000000000,"epoch":17,
     "origin":3,"number":4}                      and where it has them "unique" ("unique_hex", its bytes,
                                                 where they are no text), "worker", "replayed" and "resent"
    {"record":"start","epoch":17,...}            "start", "hole", "marker" or "end", with what it says

Only source, event and data are needed: who writes lines by hand gets the rest by counting.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import orjson

from eventsh.errors import NotSerializable, UsageError
from eventsh.event import check_name
from eventsh.protocol.codec import check_integers, encode_data
from eventsh.protocol.frame import BATCH_BYTES, BATCH_EVENTS
from eventsh.recording.format import NO_WORKER, RecordKind
from eventsh.recording.frames import RecordedEvent, encode_events

if TYPE_CHECKING:
    from eventsh.recording.reader import Note

__all__ = ["Parsed", "Rows", "event_members", "note_members", "parse_line"]

# A frame of the wire has them as numbers of this many bits.
_BITS = {"pid": 32, "seq": 64, "time_ns": 64, "epoch": 64, "origin": 32, "number": 64}
_NOTES = {kind.name.lower(): kind for kind in (RecordKind.START, RecordKind.HOLE, RecordKind.MARKER, RecordKind.END)}

Parsed = RecordedEvent | tuple[RecordKind, dict[str, Any]]


def event_members(event: RecordedEvent) -> dict[str, Any]:
    """What a line says of an event."""
    members: dict[str, Any] = {
        "source": event.source,
        "event": event.event,
        "data": event.data,
        "pid": event.pid,
        "seq": event.seq,
        "time_ns": event.time_ns,
        "epoch": event.epoch,
        "origin": event.origin,
        "number": event.origin_number,
    }
    if event.unique is not None:
        try:
            event.unique.encode()
            members["unique"] = event.unique
        except UnicodeEncodeError:
            # A lone surrogate, as in names of files, which JSON can't express.
            members["unique_hex"] = event.unique.encode("utf-8", "surrogatepass").hex()
    if event.worker is not None:
        members["worker"] = event.worker
    if event.replayed:
        members["replayed"] = True
    if event.resent:
        members["resent"] = True
    return members


def note_members(note: Note) -> dict[str, Any]:
    """What a line says of another record."""
    return {"record": note.kind.name.lower(), **note.facts}


def parse_line(line: bytes, place: str, before: RecordedEvent | None) -> Parsed:
    """Read one line. What an event does not say is counted on from the one before. Raises UsageError that names `place`."""
    try:
        members = orjson.loads(line)
        check_integers(line.decode())
    except orjson.JSONDecodeError as error:
        raise UsageError(f"{place}: not JSON: {error.msg} at character {error.pos}") from None
    except NotSerializable as error:
        raise UsageError(f"{place}: {error}") from None
    if not isinstance(members, dict):
        raise UsageError(f"{place}: not an object")
    name = members.pop("record", None)
    if name is not None:
        if not isinstance(name, str) or name not in _NOTES:
            raise UsageError(f"{place}: no record is called {name!r:.60}; there are {', '.join(_NOTES)}")
        if name == "start" and not _is_number(members.get("epoch"), 64):
            raise UsageError(f"{place}: a start needs an epoch")
        return _NOTES[name], members
    return _parse_event(members, place, before)


def _parse_event(members: dict[str, Any], place: str, before: RecordedEvent | None) -> RecordedEvent:
    source, event = members.get("source"), members.get("event")
    try:
        check_name(source, "source")
        check_name(event, "event")
    except UsageError as error:
        raise UsageError(f"{place}: {error}") from None
    for member, bits in _BITS.items():
        if member in members and not _is_number(members[member], bits):
            raise UsageError(f"{place}: {member} must be a whole number of at most {bits} bits")
    worker, unique = members.get("worker"), members.get("unique")
    if (coded := members.get("unique_hex")) is not None:
        try:
            unique = bytes.fromhex(coded).decode("utf-8", "surrogatepass")
        except (TypeError, ValueError):
            raise UsageError(f"{place}: unique_hex must be the bytes of a key, in hexadecimal") from None
    if worker is not None and not _is_number(worker, 16):
        raise UsageError(f"{place}: worker must be the number of a slot")
    if unique is not None and (
        not isinstance(unique, str) or not 0 < len(unique.encode("utf-8", "surrogatepass")) <= 65535
    ):
        raise UsageError(f"{place}: unique must be a key, a string that is not empty")
    assert isinstance(source, str)
    assert isinstance(event, str)
    return RecordedEvent(
        source,
        event,
        members.get("data"),
        pid=members.get("pid", before.pid if before else 0),
        seq=members.get("seq", before.seq + 1 if before else 1),
        time_ns=members.get("time_ns", before.time_ns if before else 0),
        epoch=members.get("epoch", before.epoch if before else 1),
        origin=members.get("origin", before.origin if before else 1),
        origin_number=members.get("number", before.origin_number + 1 if before else 1),
        unique=unique,
        worker=worker,
        replayed=members.get("replayed") is True,
        resent=members.get("resent") is True,
    )


def _is_number(value: object, bits: int) -> bool:
    return type(value) is int and 0 <= value < 1 << bits


class Rows:
    """Puts single events together into the frames that they once were: neighbours of one poster, with one stamp."""

    def __init__(self) -> None:
        self._row: list[RecordedEvent] = []
        self._bytes = 0

    def add(self, event: RecordedEvent) -> Iterator[tuple[bytes, int, int]]:
        """Gives each frame that is complete, with its epoch and worker."""
        row = self._row
        size = len(encode_data(event.data)) + len(event.source) + len(event.event)
        is_full = self._bytes + size > BATCH_BYTES or len(row) >= BATCH_EVENTS
        if row and (is_full or not _is_next(row[-1], event)):
            yield from self.take()
        self._row.append(event)
        self._bytes += size

    def take(self) -> Iterator[tuple[bytes, int, int]]:
        """What is left."""
        if self._row:
            first = self._row[0]
            yield encode_events(self._row), first.epoch, NO_WORKER if first.worker is None else first.worker
            self._row = []
            self._bytes = 0


def _is_next(before: RecordedEvent, event: RecordedEvent) -> bool:
    if before.unique is not None or event.unique is not None:
        return False
    following = replace(
        before,
        source=event.source,
        event=event.event,
        data=None,
        seq=before.seq + 1,
        origin_number=before.origin_number + 1,
    )
    return following == replace(event, data=None)
