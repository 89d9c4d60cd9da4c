"""`eventsh log show|stats|verify|repair`: look into recordings, and mend them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from eventsh.commands.patterns import Pattern
from eventsh.errors import RecordingError, UsageError
from eventsh.protocol.frame import HEADER
from eventsh.recording.format import (
    CHECKPOINT_BYTES,
    FILE_HEADER_BYTES,
    Record,
    RecordDecoder,
    RecordKind,
    decode_checkpoint,
    decode_facts,
    decode_file_header,
    decode_start,
)
from eventsh.recording.frames import Frame, RecordedEvent, choose, events_of, runs_of
from eventsh.recording.positions import Span
from eventsh.recording.reader import Damage, Item, Note, Reader
from eventsh.recording.seek import first_checkpoint
from eventsh.recording.writer import Writer

__all__ = [
    "Filter",
    "LogStats",
    "Repaired",
    "Verdict",
    "log_items",
    "log_repair",
    "log_stats",
    "log_verify",
    "new_recording",
]

_BARS = 60


@dataclass(frozen=True, slots=True)
class Filter:
    """What of a recording is meant. `where` is a JMESPath expression over the members of an event; it is the user's, never
    out of a recording. `worker` is the slot that ran a unique event, `pid` the poster's."""

    source: str | None = None
    event: str | None = None
    begin: str | None = None
    end: str | None = None
    worker: int | None = None
    pid: int | None = None
    where: str | None = None

    def wanted(self) -> Callable[[RecordedEvent], bool] | None:
        """None where everything is. Raises UsageError for an expression that is none."""
        pattern = Pattern(self.source, self.event)
        search = None if self.where is None else _compile(self.where)
        if all(part is None for part in (self.source, self.event, self.worker, self.pid, search)):
            return None

        def is_wanted(event: RecordedEvent) -> bool:
            return (
                pattern.matches(event.source, event.event)
                and (self.worker is None or event.worker == self.worker)
                and (self.pid is None or event.pid == self.pid)
                and (search is None or search(event))
            )

        return is_wanted


def _compile(expression: str) -> Callable[[RecordedEvent], bool]:
    import jmespath
    from jmespath.exceptions import JMESPathError, JMESPathTypeError

    from eventsh.recording.text import event_members

    try:
        compiled = jmespath.compile(expression)
    except JMESPathError as error:
        raise UsageError(f"--where: {str(error).splitlines()[0]}") from None

    def search(event: RecordedEvent) -> bool:
        try:
            found = compiled.search(event_members(event))
        except (JMESPathTypeError, TypeError):
            # The expression does not fit this event's data: a text compared with a number, say.
            return False
        except JMESPathError as error:
            raise UsageError(f"--where: {str(error).splitlines()[0]}") from None
        # As JMESPath itself has it: 0 is true, and what is empty is not.
        return found is not None and found is not False and found not in ("", [], {})

    return search


def log_items(path: str, chosen: Filter) -> Iterator[Item]:
    """What of a recording is meant, in its order. Raises UsageError and RecordingError."""
    wanted = chosen.wanted()
    for item in Span(path, chosen.begin, chosen.end):
        if wanted is None or not isinstance(item, Frame):
            yield item
        else:
            yield from choose(item, wanted)


# --- stats ---


@dataclass(slots=True)
class LogStats:
    """Of a recording. `by_event` has source, event, count and bytes of data, the most first; `rates` how many events each
    of equal parts of the time has; `seq_gaps` are events that crossed the broker and are not in it, beside the holes."""

    path: str
    files: int = 0
    file_bytes: int = 0
    events: int = 0
    unique: int = 0
    replayed: int = 0
    frames: int = 0
    data_bytes: int = 0
    first_ns: int = 0
    last_ns: int = 0
    epochs: int = 0
    posters: int = 0
    seq_gaps: int = 0
    holes: list[dict[str, Any]] = field(default_factory=list)
    markers: list[dict[str, Any]] = field(default_factory=list)
    damages: list[str] = field(default_factory=list)
    by_event: list[tuple[str, str, int, int]] = field(default_factory=list)
    rates: list[int] = field(default_factory=list)
    part_s: float = 0.0


def log_stats(path: str, chosen: Filter) -> LogStats:
    """Count. Raises UsageError and RecordingError."""
    reader = Reader(path)
    stats = LogStats(path, len(reader.paths), reader.size_bytes)
    counts: dict[tuple[str, str], list[int]] = {}
    seconds: dict[int, int] = {}
    epochs: set[int] = set()
    posters: set[int] = set()
    last = (0, 0)
    for item in log_items(path, chosen):
        if isinstance(item, Damage):
            stats.damages.append(f"{item.path}: {item.reason}")
        elif isinstance(item, Note):
            if item.kind is RecordKind.HOLE:
                stats.holes.append(item.facts)
            elif item.kind is RecordKind.MARKER:
                stats.markers.append(item.facts)
        else:
            last = _count_frame(item, stats, last)
            _count_events(item, counts)
            epochs.add(item.epoch)
            posters.add(HEADER.unpack_from(item.data)[5])
            seconds[item.time_ns // 10**9] = seconds.get(item.time_ns // 10**9, 0) + item.events
    stats.epochs, stats.posters = len(epochs), len(posters - {0})
    rows = [(source, event, events, size) for (source, event), (events, size) in counts.items()]
    stats.by_event = sorted(rows, key=lambda row: (-row[2], row[0], row[1]))
    stats.data_bytes = sum(row[3] for row in stats.by_event)
    _set_rates(stats, seconds)
    return stats


def _count_frame(frame: Frame, stats: LogStats, last: tuple[int, int]) -> tuple[int, int]:
    _, _, flags, count, _, _, _, seq, time_ns = HEADER.unpack_from(frame.data)
    stats.frames += 1
    stats.events += count
    stats.unique += bool(flags & 1)
    stats.replayed += count if flags & 16 else 0
    stats.first_ns = min(stats.first_ns or time_ns, time_ns)
    stats.last_ns = max(stats.last_ns, time_ns)
    if last[0] == frame.epoch and seq > last[1] + 1:
        stats.seq_gaps += seq - last[1] - 1
    return frame.epoch, seq + count - 1


def _count_events(frame: Frame, counts: dict[tuple[str, str], list[int]]) -> None:
    total = frame.events
    size = len(frame.data)
    for source, event, datas in runs_of(frame):
        both = counts.setdefault((source, event), [0, 0])
        both[0] += len(datas)
        # A frame's bytes, shared out: to encode each event again would take ten times as long.
        both[1] += size * len(datas) // total


def _set_rates(stats: LogStats, seconds: dict[int, int]) -> None:
    if not seconds:
        return
    first, last = min(seconds), max(seconds)
    stats.part_s = part = max(1, -(-(last - first + 1) // _BARS))
    stats.rates = [0] * ((last - first) // part + 1)
    for second, count in seconds.items():
        stats.rates[(second - first) // part] += count


# --- verify and repair ---


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a recording is whole. `is_closed`: it ends in good order, and is neither being written nor was its writer
    killed. `damages` says where it is not whole."""

    path: str
    events: int
    holes: int
    is_closed: bool
    damages: list[str]

    @property
    def is_whole(self) -> bool:
        return not self.damages


def log_verify(path: str) -> Verdict:
    """Read every record and every body. Raises RecordingError where there is nothing to read."""
    events = holes = 0
    is_closed = False
    damages: list[str] = []
    for item in Reader(path):
        if isinstance(item, Damage):
            damages.append(f"{item.path}: {item.reason}")
            is_closed = False
            continue
        is_closed = isinstance(item, Note) and item.kind is RecordKind.END
        if isinstance(item, Frame):
            events += item.events
            try:
                runs_of(item)
            except RecordingError as error:
                damages.append(f"{path}: {error}")
        elif isinstance(item, Note):
            holes += item.kind is RecordKind.HOLE
    return Verdict(path, events, holes, is_closed, damages)


@dataclass(frozen=True, slots=True)
class Repaired:
    """What a repair made of one file. `lost_bytes` could not be read; where they were in the middle a hole says so."""

    path: str
    events: int
    lost_bytes: int
    damages: int


def log_repair(path: str, target: str) -> Repaired:
    """Write everything of one file that can be read into `target`, which must not be there. Behind damage it goes on with
    the next checkpoint. Raises RecordingError."""
    try:
        file = open(path, "rb", buffering=0)  # noqa: SIM115 - closed below
    except OSError as error:
        raise RecordingError(f"can't read {path}: {error.strerror}") from error
    with file, new_recording(target) as writer:
        read = _reader(file.fileno())
        size = os.fstat(file.fileno()).st_size
        lost = damages = 0
        offset = FILE_HEADER_BYTES
        copier = _Copier(writer)
        try:
            copier.before = decode_file_header(read(0, FILE_HEADER_BYTES)).events
        except RecordingError:
            damages += 1
        while offset < size:
            end = copier.copy(read, offset)
            if end >= size:
                break
            damages += 1
            following = first_checkpoint(read, end + 1, size)
            begin = size if following is None else following.offset
            lost += begin - end
            if following is not None:
                missed = copier.miss(following.events)
                facts = {"missed": missed, "reason": "damaged", "epoch": following.epoch, "first_seq": 0, "last_seq": 0}
                writer.add(RecordKind.HOLE, facts)
                if following.epoch != writer.epoch:
                    writer.start({"epoch": following.epoch})
            offset = begin
        writer.finish()
        return Repaired(target, writer.events, lost, damages)


def _reader(descriptor: int) -> Callable[[int, int], bytes]:
    return lambda offset, count: os.pread(descriptor, count, offset)


class _Copier:
    """Copies records of a file, and counts. `before`: how many events of the recording are not in the new file, as they
    are in earlier files or lost; None: not known yet."""

    def __init__(self, writer: Writer) -> None:
        self.before: int | None = None
        self._writer = writer

    def copy(self, read: Callable[[int, int], bytes], offset: int) -> int:
        """Copy the records from `offset` on; gives where the first one begins that can't be read, or the end."""
        decoder = RecordDecoder(offset)
        while decoder.error is None and (data := read(offset, CHECKPOINT_BYTES)):
            offset += len(data)
            for record in decoder.receive_data(data):
                self._copy_record(record)
        return decoder.offset

    def _copy_record(self, record: Record) -> None:
        """Append a record of another file. Ends are its own."""
        writer = self._writer
        if record.kind == RecordKind.EVENTS:
            writer.write([(record.payload, record.worker)])
        elif record.kind == RecordKind.START:
            writer.start(decode_start(record))
        elif record.kind in (RecordKind.HOLE, RecordKind.MARKER):
            writer.add(RecordKind(record.kind), decode_facts(record))
        elif record.kind == RecordKind.CHECKPOINT and self.before is None:
            self.before = decode_checkpoint(record).events - writer.events

    def miss(self, events: int) -> int | None:
        """Go on at a place before which the recording has so many events; gives how many are lost, None where that can't
        be known."""
        before, self.before = self.before, events - self._writer.events
        return None if before is None else max(0, self.before - before)


@contextmanager
def new_recording(path: str) -> Iterator[Writer]:
    """A recording that was not there before, and is not left behind if its user fails. Its user finishes it."""
    writer = Writer(path, fresh=True)
    try:
        yield writer
    except BaseException as error:
        os.unlink(path)
        if isinstance(error, OSError):
            raise RecordingError(f"can't write {path}: {error.strerror}") from error
        raise
    finally:
        writer.close()


def all_events(path: str, chosen: Filter, on_damage: Callable[[str], None]) -> Iterator[RecordedEvent]:
    """The single events that are meant. Damage, which is told, ends the file that it is in."""
    for item in log_items(path, chosen):
        if isinstance(item, Frame):
            yield from events_of(item)
        elif isinstance(item, Damage):
            on_damage(f"{item.path}: {item.reason}")
