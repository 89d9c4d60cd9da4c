"""Places in a recording as people name them, and the row of frames between two of them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from eventsh.errors import UsageError
from eventsh.notation import parse_seconds
from eventsh.protocol.frame import HEADER
from eventsh.recording.format import Checkpoint, RecordKind
from eventsh.recording.frames import Frame, cut
from eventsh.recording.reader import Item, Note, Reader, Start

__all__ = ["Position", "Span", "parse_position"]

POSITION_HELP = "10s (from the start), 2026-01-31T12:00:00, seq:N, number:N or marker:NAME"

Kind = Literal["time_ns", "seq", "number"]


@dataclass(frozen=True, slots=True)
class Position:
    """A place: a time, the broker's number of an event (in the recording's first epoch), or the recording's own."""

    kind: Kind
    value: int


def parse_position(text: str, reader: Reader, label: str) -> Position:
    """Read a place in this recording. A marker is looked for in all of it. Raises UsageError."""
    kind, colon, rest = text.partition(":")
    if colon and kind in ("seq", "number"):
        if not (rest.isascii() and rest.isdigit() and 0 < len(rest) <= 19):
            raise UsageError(f"{label}: {rest[:40]!r} is no number of an event")
        return Position("seq" if kind == "seq" else "number", int(rest))
    if colon and kind == "marker":
        return Position("number", _find_marker(rest, reader, label))
    if re.match(r"\d{4}-\d\d-\d\d", text):
        try:
            when = datetime.fromisoformat(text).astimezone()
        except (ValueError, OverflowError):
            raise UsageError(f"{label}: {text[:40]!r} is no time: write for example 2026-01-31T12:00:00") from None
        return Position("time_ns", int(when.timestamp() * 1000) * 1_000_000)
    try:
        after_ns = int(parse_seconds(text.removeprefix("+")) * 1e9)
    except (ValueError, OverflowError):
        raise UsageError(f"{label}: {text[:40]!r} is no place in a recording: write {POSITION_HELP}") from None
    return Position("time_ns", first_time_ns(reader) + after_ns)


def first_time_ns(reader: Reader) -> int:
    """When the first event crossed the broker; 0 where there is none."""
    return next((item.time_ns for item in reader if isinstance(item, Frame)), 0)


def _find_marker(name: str, reader: Reader, label: str) -> int:
    names: list[str] = []
    for item in reader:
        if isinstance(item, Note) and item.kind is RecordKind.MARKER:
            if item.facts.get("name") == name:
                return item.events + 1
            names.append(str(item.facts.get("name")))
    known = ", ".join(repr(each) for each in names[:20]) or "none"
    raise UsageError(f"{label}: there is no marker {name[:100]!r}; there is {known}")


class Span:
    """From one place to another. The first one's event is in it, the last one's too, but for a marker's: its events come
    before it."""

    def __init__(self, path: str, begin: str | None = None, end: str | None = None, *, one_file: bool = False) -> None:
        """Raises UsageError for what is no place, RecordingError when there is no recording."""
        whole = Reader(path, one_file=one_file)
        self.begin = None if begin is None else parse_position(begin, whole, "--from")
        self.end = None if end is None else parse_position(end, whole, "--until")
        self._stop_before = end is not None and end.startswith("marker:")
        self._first_epoch: int | None = None
        if "seq" in (self.begin and self.begin.kind, self.end and self.end.kind):
            self._first_epoch = next((item.epoch for item in whole if isinstance(item, Frame)), None)
        start = None if self.begin is None else Start(self._is_before(self.begin))
        self.reader = Reader(path, one_file=one_file, start=start)

    def _is_before(self, begin: Position) -> Callable[[Checkpoint], bool]:
        if begin.kind == "time_ns":
            return lambda here: here.time_ns < begin.value
        if begin.kind == "number":
            return lambda here: here.events < begin.value
        return lambda here: here.epoch == self._first_epoch and here.seq < begin.value

    def __iter__(self) -> Iterator[Item]:
        """The items of the recording that are in it, frames cut to size."""
        began = self.begin is None
        for item in self.reader:
            if not isinstance(item, Frame):
                if began or not isinstance(item, Note):
                    yield item
                continue
            count = item.events
            low = 0 if began or self.begin is None else max(0, min(self._before(item, self.begin), count))
            if low == count:
                continue
            began = True
            high = count if self.end is None else self._high(item, self.end)
            if low < high:
                yield item if high - low == count else cut(item, low, high)
            if high < count:
                return

    def _high(self, frame: Frame, end: Position) -> int:
        if end.kind == "time_ns":
            return frame.events if frame.time_ns <= end.value else 0
        return max(0, min(frame.events, self._before(frame, end) + (not self._stop_before)))

    def _before(self, frame: Frame, place: Position) -> int:
        """How many of the frame's events are before the place; less than 0 where all are far behind it, and more than there
        are where all are far before."""
        if place.kind == "time_ns":
            return frame.events if frame.time_ns < place.value else 0
        if place.kind == "number":
            return place.value - frame.first
        if frame.epoch != self._first_epoch:
            # Of a later broker: behind every place in the first one's life.
            return -1
        return place.value - int(HEADER.unpack_from(frame.data)[7])
