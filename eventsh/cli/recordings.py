"""What people see of recordings: their events line by line, what is counted in them, and a pager around it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from typing import TYPE_CHECKING, Any

from eventsh.cli.report import columns
from eventsh.cli.terminal import leave_interrupts
from eventsh.escape import escape, render_data

if TYPE_CHECKING:
    from eventsh.commands.log import LogStats
    from eventsh.recording.frames import RecordedEvent
    from eventsh.recording.reader import Item

__all__ = ["event_line", "item_lines", "json_lines", "json_members", "pager", "stats_lines"]

_ROWS_OF_EVENTS = 30
_CHART_ROWS = 8


def json_lines(item: Item) -> Iterator[str]:
    """For programs."""
    from eventsh.recording.frames import Frame, events_of
    from eventsh.recording.reader import Note
    from eventsh.recording.text import event_members, note_members

    if isinstance(item, Frame):
        for event in events_of(item):
            yield json_members(event_members(event))
    elif isinstance(item, Note):
        yield render_data(note_members(item))


def json_members(members: dict[str, Any]) -> str:
    """An object, whose values are shown as those of events are."""
    return "{" + ",".join(f'"{name}":{render_data(value)}' for name, value in members.items()) + "}"


def item_lines(item: Item) -> Iterator[str]:
    """For people."""
    from eventsh.recording.frames import Frame, events_of
    from eventsh.recording.reader import Note

    if isinstance(item, Frame):
        for event in events_of(item):
            yield event_line(event)
    elif isinstance(item, Note):
        facts = " ".join(f"{escape(name)}={render_data(value)}" for name, value in item.facts.items())
        yield f"--- {item.kind.name.lower()} {facts}"


def event_line(event: RecordedEvent) -> str:
    """One event, for people."""
    unique = f" unique={render_data(event.unique)}" if event.unique is not None else ""
    worker = f" worker={event.worker}" if event.worker is not None else ""
    replayed = " replayed" if event.replayed else ""
    what = f"{escape(event.source)} {escape(event.event)} {render_data(event.data)}"
    return f"{_clock(event.time_ns)} {event.seq} {event.pid} {what}{unique}{worker}{replayed}"


def _clock(time_ns: int) -> str:
    try:
        when = datetime.fromtimestamp(time_ns / 1e9).astimezone()
    except (OverflowError, ValueError, OSError):
        return f"{time_ns} ns"
    return when.strftime("%Y-%m-%d %H:%M:%S.%f")[:-3]


@contextmanager
def pager() -> Iterator[Any]:
    """Where lines go: a pager on a terminal, else standard output."""
    command = os.environ.get("PAGER") or ("less -FRX" if shutil.which("less") else "")
    if not sys.stdout.isatty() or not command or command == "cat":
        yield lambda line: sys.stdout.write(line + "\n")
        return
    process = subprocess.Popen(command, shell=True, stdin=subprocess.PIPE, text=True, errors="backslashreplace")
    assert process.stdin is not None
    stdin = process.stdin
    with leave_interrupts(lambda: process.poll() is None):
        try:
            yield lambda line: stdin.write(line + "\n")
        except BrokenPipeError:
            # Whoever reads has seen enough.
            pass
        finally:
            with suppress(BrokenPipeError):
                stdin.close()
            process.wait()


def stats_lines(stats: LogStats) -> Iterator[str]:
    """What was counted, for people."""
    seconds = (stats.last_ns - stats.first_ns) / 1e9
    yield f"file     {escape(stats.path)}: {stats.file_bytes:,} bytes in {stats.files} file{'s' * (stats.files != 1)}"
    yield f"events   {stats.events:,} ({stats.unique:,} unique, {stats.replayed:,} replayed) in {stats.frames:,} batches"
    if stats.events:
        rate = f", {stats.events / seconds:,.1f} a second" if seconds else ""
        yield f"time     {_clock(stats.first_ns)} to {_clock(stats.last_ns)}, {seconds:,.3f} s{rate}"
    yield f"from     {stats.posters:,} posters, {stats.epochs:,} broker{'s' * (stats.epochs != 1)}"
    # A recording can say anything.
    missing = sum(missed for hole in stats.holes if type(missed := hole.get("missed")) is int)
    yield f"missing  {len(stats.holes)} holes with {missing:,} events; {stats.seq_gaps:,} numbers that were not seen"
    for hole in stats.holes[:_ROWS_OF_EVENTS]:
        yield f"         hole: {render_data(hole.get('missed'))} events, {escape(str(hole.get('reason')))}"
    for marker in stats.markers[:_ROWS_OF_EVENTS]:
        yield f"marker   {escape(str(marker.get('name')))}"
    for damage in stats.damages:
        yield f"damage   {escape(damage)}"
    if stats.by_event:
        yield ""
        rows = [("events", "share", "bytes", "source", "event")]
        for source, event, count, size in stats.by_event[:_ROWS_OF_EVENTS]:
            share = f"{count / stats.events:.1%}"
            rows.append((f"{count:,}", share, f"{size:,}", escape(source), escape(event)))
        yield from (line.rstrip() for line in columns(rows, left=("source", "event")))
        if len(stats.by_event) > _ROWS_OF_EVENTS:
            yield f"and {len(stats.by_event) - _ROWS_OF_EVENTS:,} more"
    if len(stats.rates) > 1:
        yield ""
        yield from _chart(stats)


def _chart(stats: LogStats) -> Iterator[str]:
    """Events a second over time, as columns."""
    most = max(stats.rates)
    for row in range(_CHART_ROWS, 0, -1):
        label = f"{most * row / _CHART_ROWS / stats.part_s:,.0f}/s" if row in (_CHART_ROWS, _CHART_ROWS // 2) else ""
        bars = "".join("#" if count * _CHART_ROWS > (row - 1) * most else " " for count in stats.rates)
        yield f"{label:>12} |{bars}".rstrip()
    yield f"{'':12} +{'-' * len(stats.rates)}"
    yield f"{'':14}{_clock(stats.first_ns)}; a column is {stats.part_s:g} s"
