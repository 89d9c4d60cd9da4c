"""`eventsh log`: its actions and options, and what it prints."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from eventsh.cli.parameters import Json, read_whole
from eventsh.cli.report import columns, say, say_json
from eventsh.cli.terminal import leave_interrupts
from eventsh.errors import UsageError
from eventsh.escape import escape, render_data

if TYPE_CHECKING:
    from eventsh.commands.log import Filter, LogStats
    from eventsh.commands.log_files import Written
    from eventsh.recording.frames import RecordedEvent
    from eventsh.recording.reader import Item

__all__ = ["ACTIONS", "EXAMPLES", "log"]

EXAMPLES = """\
eventsh log show a.evlog --source cache --from 10s
eventsh log stats a.evlog
eventsh log verify a.evlog || eventsh log repair a.evlog mended.evlog
eventsh log filter a.evlog slow.evlog --where 'data.ms > `100`'
eventsh log cat a.evlog --json | jq -c 'select(.event == "purge")'"""

_ROWS_OF_EVENTS = 30
_CHART_ROWS = 8
# Of each action: how many files it takes, at least and at most (None: any number).
_FILES: dict[str, tuple[int, int | None]] = {
    "show": (1, 1),
    "stats": (1, 1),
    "verify": (1, None),
    "repair": (2, 2),
    "cat": (1, 1),
    "filter": (2, 2),
    "merge": (3, None),
    "diff": (2, 2),
    "import": (2, 2),
    "export": (2, 2),
}
ACTIONS = tuple(_FILES)
_FILTERS = frozenset(("--source", "--event", "--from", "--until", "--worker", "--pid", "--where"))
# What an action takes beside files; anything else has no meaning for it.
_FLAGS: dict[str, frozenset[str]] = {
    "show": _FILTERS | {"--count", "--json"},
    "stats": _FILTERS | {"--json"},
    "verify": frozenset(("--json",)),
    "repair": frozenset(("--json",)),
    "cat": _FILTERS | {"--json"},
    "filter": _FILTERS | {"--json"},
    "merge": frozenset(("--json",)),
    "diff": _FILTERS | {"--count", "--strict", "--json"},
    "import": frozenset(("--json",)),
    "export": _FILTERS | {"--csv"},
}


def log(
    action: Annotated[
        str,
        typer.Argument(
            metavar="ACTION", help="show, stats, verify, repair, cat, filter, merge, diff, import or export: see above."
        ),
    ],
    files: Annotated[list[str], typer.Argument(metavar="FILE...", help="Recordings; - is standard input or output.")],
    source: Annotated[str | None, typer.Option("--source", metavar="GLOB", help="Only of sources like this.")] = None,
    event: Annotated[str | None, typer.Option("--event", metavar="GLOB", help="Only events like this.")] = None,
    begin: Annotated[
        str | None,
        typer.Option(
            "--from", metavar="PLACE", help="From 10s, 2026-01-31T12:00:00, seq:N, number:N or marker:NAME on."
        ),
    ] = None,
    end: Annotated[str | None, typer.Option("--until", metavar="PLACE", help="Up to there.")] = None,
    worker: Annotated[
        str | None, typer.Option("--worker", metavar="WORKER", help="Only unique events that this worker got.")
    ] = None,
    pid: Annotated[str | None, typer.Option("--pid", metavar="N", help="Only what this process posted.")] = None,
    where: Annotated[
        str | None,
        typer.Option("--where", metavar="EXPR", help="Only events for which this JMESPath expression is true."),
    ] = None,
    count: Annotated[str | None, typer.Option("--count", "-n", metavar="N", help="show, diff: no more than N.")] = None,
    strict: Annotated[bool, typer.Option("--strict", help="diff: compare posters, numbers and times too.")] = False,
    csv: Annotated[bool, typer.Option("--csv", help="export: events as CSV, for a spreadsheet.")] = False,
    json: Json = False,
) -> int:
    """Look into recordings, and make others of them.

    show FILE: its events, for people; paged on a terminal. stats FILE: counts, rates, gaps. verify FILE...: whether all is
    whole. repair FILE NEW: all that can be read of one file. cat FILE --json: a line of JSON for each event. filter FILE
    NEW: a part of it. merge A B... NEW: several by time. diff A B: what only one has. import TEXT NEW: a recording out of
    such lines. export FILE TEXT: the lines, or CSV.

    Exit status: 0; 1 a file is damaged, or can't be read or written; diff: 1 they differ; repair: 3 repaired with loss;
    2 refused.
    """
    from eventsh.commands.log import Filter

    if action not in _FILES:
        raise UsageError(f"log can't {action[:40]!r}: it can {', '.join(_FILES)}")
    least, most = _FILES[action]
    if len(files) < least or (most is not None and len(files) > most):
        raise UsageError(f"log {action} takes {least}{' or more' if most is None else ''} files, not {len(files)}")
    given = {
        "--source": source,
        "--event": event,
        "--from": begin,
        "--until": end,
        "--worker": worker,
        "--pid": pid,
        "--where": where,
        "--count": count,
        "--strict": strict or None,
        "--csv": csv or None,
        "--json": json or None,
    }
    for flag, value in given.items():
        if value is not None and flag not in _FLAGS[action]:
            raise UsageError(f"{flag} has no meaning for log {action}: leave it out")
    chosen = Filter(
        source,
        event,
        begin,
        end,
        read_whole("--worker", worker, minimum=0),
        read_whole("--pid", pid, minimum=0),
        where,
    )
    limit = read_whole("--count", count)
    match action:
        case "show":
            return _show(files[0], chosen, limit, as_json=json)
        case "cat":
            return _export(files[0], "-", chosen, as_csv=False)
        case "export":
            return _export(files[0], files[1], chosen, as_csv=csv)
        case "stats":
            return _stats(files[0], chosen, as_json=json)
        case "verify":
            return _verify(files, as_json=json)
        case "diff":
            return _diff(files[0], files[1], chosen, limit, strict=strict, as_json=json)
        case _:
            return _make(action, files, chosen, as_json=json)


def _make(action: str, files: list[str], chosen: Filter, *, as_json: bool) -> int:
    from eventsh.commands.log import log_repair
    from eventsh.commands.log_files import log_filter, log_import, log_merge

    if action == "repair":
        repaired = log_repair(files[0], files[1])
        if as_json:
            say_json(asdict(repaired))
        else:
            lost = (
                f"; {repaired.lost_bytes:,} bytes could not be read" if repaired.damages else ", and nothing was lost"
            )
            say(f"{escape(repaired.path)} has {repaired.events:,} events{lost}")
        return 3 if repaired.damages else 0
    if action == "import":
        with _input(files[0]) as lines:
            written = log_import(lines, files[1])
    else:
        written = log_filter(files[0], chosen, files[1]) if action == "filter" else log_merge(files[:-1], files[-1])
    _tell_written(written, as_json=as_json)
    return 1 if written.damages else 0


def _tell_written(written: Written, *, as_json: bool) -> None:
    if as_json:
        say_json(asdict(written))
        return
    say(f"{escape(written.path)} has {written.events:,} events ({written.size_bytes:,} bytes)")
    _warn(written.damages)


def _warn(damages: list[str]) -> None:
    for damage in damages:
        sys.stderr.write(f"eventsh: {escape(damage)}\n")


@contextmanager
def _input(path: str) -> Iterator[Any]:
    if path == "-":
        yield sys.stdin.buffer
        return
    try:
        with open(path, "rb") as file:
            yield file
    except OSError as error:
        raise UsageError(f"can't read {path}: {error.strerror}") from error


def _export(path: str, target: str, chosen: Filter, *, as_csv: bool) -> int:
    from eventsh.commands.log_files import log_export

    if target == "-":
        damages = log_export(path, chosen, sys.stdout.buffer.write, as_csv=as_csv)
        sys.stdout.buffer.flush()
    else:
        try:
            # Others must not read what an event may hold.
            descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            try:
                with open(descriptor, "wb") as file:
                    damages = log_export(path, chosen, file.write, as_csv=as_csv)
            except BaseException:
                os.unlink(target)
                raise
        except OSError as error:
            raise UsageError(f"can't write {target}: {error.strerror}") from error
    _warn(damages)
    return 1 if damages else 0


# --- show ---


def _show(path: str, chosen: Filter, limit: int | None, *, as_json: bool) -> int:
    from eventsh.commands.log import log_items
    from eventsh.recording.reader import Damage

    damages: list[str] = []
    left = limit
    with _pager() as write:
        for item in log_items(path, chosen):
            if isinstance(item, Damage):
                damages.append(f"{item.path}: {item.reason}")
                continue
            for line in _json_lines(item) if as_json else _lines(item):
                if left == 0:
                    break
                write(line)
                left = None if left is None else left - 1
            if left == 0:
                break
    _warn(damages)
    return 1 if damages else 0


def _json_lines(item: Item) -> Iterator[str]:
    from eventsh.recording.frames import Frame, events_of
    from eventsh.recording.reader import Note
    from eventsh.recording.text import event_members, note_members

    if isinstance(item, Frame):
        for event in events_of(item):
            members = event_members(event)
            yield "{" + ",".join(f'"{name}":{render_data(value)}' for name, value in members.items()) + "}"
    elif isinstance(item, Note):
        yield render_data(note_members(item))


def _lines(item: Item) -> Iterator[str]:
    from eventsh.recording.frames import Frame, events_of
    from eventsh.recording.reader import Note

    if isinstance(item, Frame):
        for event in events_of(item):
            yield _event_line(event)
    elif isinstance(item, Note):
        facts = " ".join(f"{escape(name)}={render_data(value)}" for name, value in item.facts.items())
        yield f"--- {item.kind.name.lower()} {facts}"


def _event_line(event: RecordedEvent) -> str:
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
def _pager() -> Iterator[Any]:
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


# --- stats, verify, diff ---


def _stats(path: str, chosen: Filter, *, as_json: bool) -> int:
    from eventsh.commands.log import log_stats

    stats = log_stats(path, chosen)
    if as_json:
        say_json(asdict(stats))
    else:
        say("\n".join(_stats_lines(stats)))
    return 1 if stats.damages else 0


def _stats_lines(stats: LogStats) -> Iterator[str]:
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


def _verify(files: list[str], *, as_json: bool) -> int:
    from eventsh.commands.log import log_verify

    is_whole = True
    for path in files:
        verdict = log_verify(path)
        is_whole = is_whole and verdict.is_whole
        if as_json:
            say_json({**asdict(verdict), "is_whole": verdict.is_whole})
            continue
        word = "whole" if verdict.is_whole else "DAMAGED"
        end = "" if verdict.is_closed else "; not closed: it is still written, or its writer was killed"
        say(f"{escape(path)}: {word}, {verdict.events:,} events, {verdict.holes} holes{end}")
        for damage in verdict.damages:
            say(f"    {escape(damage)}")
    return 0 if is_whole else 1


def _diff(first: str, second: str, chosen: Filter, limit: int | None, *, strict: bool, as_json: bool) -> int:
    from eventsh.commands.log_files import log_diff
    from eventsh.recording.text import event_members

    counts = {"-": 0, "+": 0}
    damages: list[str] = []
    for shown, difference in enumerate(log_diff(first, second, chosen, damages.append, strict=strict)):
        counts[difference.side] += 1
        if limit is not None and shown >= limit:
            continue
        if as_json:
            members = {"side": difference.side, **event_members(difference.event)}
            say("{" + ",".join(f'"{name}":{render_data(value)}' for name, value in members.items()) + "}")
        else:
            say(f"{difference.side} {_event_line(difference.event)}")
    if not as_json:
        same = "no difference in what can be read" if damages else "no difference"
        is_same = not any(counts.values())
        say(same if is_same else f"{counts['-']:,} only in the first, {counts['+']:,} only in the second")
    _warn(damages)
    return 1 if damages or any(counts.values()) else 0
