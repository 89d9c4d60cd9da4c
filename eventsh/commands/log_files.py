"""`eventsh log filter|merge|import|export|diff`: recordings out of others, out of text, and beside each other."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from eventsh.commands.log import Filter, all_events, log_items, new_recording
from eventsh.errors import EventError, UsageError
from eventsh.protocol.codec import encode_data
from eventsh.recording.format import RecordKind
from eventsh.recording.frames import Frame, RecordedEvent, events_of
from eventsh.recording.reader import Damage, Item, Note
from eventsh.recording.text import Rows, event_members, note_members, parse_line

if TYPE_CHECKING:
    from eventsh.recording.writer import Writer

__all__ = ["Difference", "Written", "log_diff", "log_export", "log_filter", "log_import", "log_merge", "text_lines"]

# How far ahead a difference looks for where both go on alike.
_LOOK_AHEAD = 1000


@dataclass(frozen=True, slots=True)
class Written:
    """A recording that was written, and what of the others could not be read."""

    path: str
    events: int
    size_bytes: int
    damages: list[str]


class _Copier:
    """Appends items of other recordings, and says whose events follow wherever that changes."""

    def __init__(self, writer: Writer) -> None:
        self.damages: list[str] = []
        self._writer = writer

    def add(self, item: Item) -> None:
        writer = self._writer
        if isinstance(item, Damage):
            self.damages.append(f"{item.path}: {item.reason}")
        elif isinstance(item, Frame):
            if item.epoch != writer.epoch:
                writer.start({"epoch": item.epoch})
            writer.write([(item.data, item.worker)])
        elif item.kind is RecordKind.START:
            writer.start(item.facts)
        elif item.kind is not RecordKind.END:
            writer.add(item.kind, item.facts)

    def result(self) -> Written:
        return Written(self._writer.path, self._writer.events, self._writer.size_bytes, self.damages)


def log_filter(path: str, chosen: Filter, target: str) -> Written:
    """Write what is meant of a recording into another one. Raises UsageError and RecordingError."""
    items = log_items(path, chosen)
    with new_recording(target) as writer:
        copier = _Copier(writer)
        for item in items:
            copier.add(item)
        writer.finish()
    return copier.result()


def log_merge(paths: Iterable[str], target: str) -> Written:
    """Write several recordings into one, by time; each keeps its own order. Raises RecordingError."""
    streams = [_timed(log_items(path, Filter()), number) for number, path in enumerate(paths)]
    with new_recording(target) as writer:
        copier = _Copier(writer)
        for _, _, item in heapq.merge(*streams, key=lambda row: row[:2]):
            copier.add(item)
        writer.finish()
    return copier.result()


def _timed(items: Iterable[Item], number: int) -> Iterator[tuple[int, int, Item]]:
    """With the latest time so far, so that a clock that was set back does not turn a recording's order around."""
    latest = 0
    for item in items:
        if isinstance(item, Frame):
            latest = max(latest, item.time_ns)
        yield latest, number, item


# --- text ---


def text_lines(path: str, chosen: Filter, on_damage: Callable[[str], None]) -> Iterator[bytes]:
    """A line of JSON for each event and other record. Raises UsageError and RecordingError."""
    for item in log_items(path, chosen):
        if isinstance(item, Frame):
            for event in events_of(item):
                yield _encode(event_members(event))
        elif isinstance(item, Note):
            yield _encode(note_members(item))
        else:
            on_damage(f"{item.path}: {item.reason}")


def _encode(members: dict[str, object]) -> bytes:
    # Each member by itself, for `data` may be as deep as an event's data can be.
    return b"{" + b",".join(b'"' + name.encode() + b'":' + encode_data(value) for name, value in members.items()) + b"}"


def log_import(lines: Iterable[bytes], target: str) -> Written:
    """Write a recording out of lines of JSON, as `text_lines` gives them or written by hand. Raises UsageError that names
    the line, and RecordingError."""
    with new_recording(target) as writer:
        importer = _Importer(writer)
        for number, line in enumerate(lines, 1):
            if line.strip():
                importer.take(line, f"line {number}")
        importer.finish()
    return Written(target, writer.events, writer.size_bytes, [])


class _Importer:
    def __init__(self, writer: Writer) -> None:
        self._writer = writer
        self._rows = Rows()
        self._before: RecordedEvent | None = None
        self._has_start = False
        self._is_ended = False

    def take(self, line: bytes, place: str) -> None:
        parsed = parse_line(line, place, self._before)
        self._is_ended = False
        if isinstance(parsed, RecordedEvent):
            self._before = parsed
            try:
                self._write(self._rows.add(parsed))
            except EventError as error:
                raise UsageError(f"{place}: {error}") from None
            return
        self.flush()
        kind, facts = parsed
        if kind is RecordKind.START:
            self._has_start = True
            self._writer.start(facts)
        else:
            self._writer.add(kind, facts)
            self._is_ended = kind is RecordKind.END

    def flush(self) -> None:
        self._write(self._rows.take())

    def finish(self) -> None:
        """What the text says of the end is kept; text without it gets one."""
        self.flush()
        if not self._is_ended:
            self._writer.finish()

    def _write(self, frames: Iterator[tuple[bytes, int, int]]) -> None:
        for data, epoch, worker in frames:
            if epoch != self._writer.epoch or not self._has_start:
                self._has_start = True
                self._writer.start({"epoch": epoch})
            self._writer.write([(data, worker)])


def log_export(path: str, chosen: Filter, write: Callable[[bytes], object], *, as_csv: bool) -> list[str]:
    """Write a recording as lines of JSON, or as CSV (events alone) for a spreadsheet. Gives what could not be read."""
    damages: list[str] = []
    if not as_csv:
        for line in text_lines(path, chosen, damages.append):
            write(line + b"\n")
        return damages
    names = ("time_ns", "epoch", "seq", "pid", "source", "event", "unique", "worker", "data")
    write(",".join(names).encode() + b"\r\n")
    for item in log_items(path, chosen):
        if isinstance(item, Damage):
            damages.append(f"{item.path}: {item.reason}")
        for event in events_of(item) if isinstance(item, Frame) else ():
            members = event_members(event)
            members["unique"] = event.unique
            write(b",".join(_cell(members.get(name), name) for name in names) + b"\r\n")
    return damages


def _cell(value: object, name: str) -> bytes:
    if name == "data":
        text = encode_data(value)
    else:
        text = b"" if value is None else str(value).encode("utf-8", "backslashreplace")
    if text[:1] in (b"=", b"+", b"-", b"@", b"\t", b"\r") and not isinstance(value, int | float):
        # A spreadsheet would take it for a formula, and run it.
        text = b"'" + text
    if any(sign in text for sign in (b'"', b",", b"\n", b"\r")):
        text = b'"' + text.replace(b'"', b'""') + b'"'
    return text


# --- diff ---


@dataclass(frozen=True, slots=True)
class Difference:
    """A row of events that only one of two recordings has: side "-" is the first, "+" the second."""

    side: str
    event: RecordedEvent


def log_diff(
    first: str, second: str, chosen: Filter, on_damage: Callable[[str], None], *, strict: bool
) -> Iterator[Difference]:
    """What the two do not have in common, in order: source, event, data, unique key; with `strict` also the poster, the
    numbers and the time. In constant memory: it looks up to 1000 events ahead for where both go on alike. What can't be read
    of either is told: then they are not known to be alike, whatever is found."""
    sides = (
        _Side(all_events(first, chosen, on_damage), strict),
        _Side(all_events(second, chosen, on_damage), strict),
    )
    one, two = sides
    while one.fill() | two.fill():
        if one.keys and two.keys and one.keys[0] == two.keys[0]:
            one.pop()
            two.pop()
            continue
        skip_one, skip_two = _next_alike(one, two)
        for _ in range(skip_one):
            yield Difference("-", one.pop())
        for _ in range(skip_two):
            yield Difference("+", two.pop())


class _Side:
    def __init__(self, events: Iterator[RecordedEvent], strict: bool) -> None:
        self.keys: deque[bytes] = deque()
        self._events = events
        self._ahead: deque[RecordedEvent] = deque()
        self._strict = strict

    def fill(self) -> bool:
        while len(self.keys) < _LOOK_AHEAD and (event := next(self._events, None)) is not None:
            self._ahead.append(event)
            self.keys.append(self._key(event))
        return bool(self.keys)

    def _key(self, event: RecordedEvent) -> bytes:
        if self._strict:
            return _encode({**event_members(event), "epoch": None})
        members = event_members(event)
        return _encode({name: members.get(name) for name in ("source", "event", "data", "unique", "unique_hex")})

    def pop(self) -> RecordedEvent:
        self.keys.popleft()
        return self._ahead.popleft()


def _next_alike(one: _Side, two: _Side) -> tuple[int, int]:
    """How many events of each to pass over until both are at the same event: as few as can be."""
    places: dict[bytes, int] = {}
    for place, key in enumerate(two.keys):
        places.setdefault(key, place)
    best = (len(one.keys), len(two.keys))
    for place, key in enumerate(one.keys):
        if place >= sum(best):
            break
        if key in places and place + places[key] < sum(best):
            best = (place, places[key])
    return best
