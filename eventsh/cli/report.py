"""What commands return, as text for people or as JSON for programs, on standard output."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from eventsh.escape import escape, expressible, render_data

if TYPE_CHECKING:
    from eventsh.commands.post import Posted
    from eventsh.commands.record import Recorded
    from eventsh.receipt import HandlerRun, Receipt, WorkerReceipt

__all__ = [
    "columns",
    "say",
    "say_json",
    "show_handlers",
    "show_posted",
    "show_progress",
    "show_receipt",
    "show_recorded",
    "show_status",
    "show_workers",
]


def say(text: str) -> None:
    """Write it, and a newline, at once."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def show_progress(count: int, seconds: float) -> None:
    """How far a long post is, on a terminal: each call writes over the last one."""
    sys.stderr.write(f"\r\x1b[K{count:,} posted, {count / seconds:,.0f}/s\r")
    sys.stderr.flush()


def show_posted(posted: Posted, *, as_json: bool, with_rate: bool) -> None:
    """What became of a post."""
    if as_json:
        say_json(asdict(posted))
        return
    text = _describe(posted)
    if with_rate and posted.posted and posted.seconds:
        text += f" in {posted.seconds:.2f} s ({posted.posted / posted.seconds:,.0f}/s)"
    say(text)


def _describe(posted: Posted) -> str:
    if not posted.posted and not posted.repeats:
        return "nothing to post: standard input was empty"
    repeats = f"{_number(posted.repeats, 'repeat')} ignored, as the unique key is taken"
    if not posted.posted:
        return repeats
    text = f"posted {_number(posted.posted, 'event')}"
    # The receipt of a repeat does not tell who had the first one.
    if posted.unique == "given":
        text += f" to worker {posted.workers[0]}" if posted.workers[0] >= 0 else " to an observer"
    elif posted.unique is None:
        text += f" to {_number(len(posted.workers), 'worker')}"
    if posted.missing:
        slots = ", ".join(str(number) for number in posted.missing)
        text += f"; not yet to {slots}: not attached or stuck, gets it or is told of a gap"
    return f"{text}; {repeats}" if posted.repeats else text


def show_receipt(receipt: Receipt, *, as_json: bool) -> None:
    """Which handlers of an event ran."""
    if as_json:
        say_json(asdict(receipt))
    elif receipt.unique == "repeat":
        say("1 repeat ignored, as the unique key is taken")
    else:
        say("\n".join(line for worker in receipt.workers for line in _worker_lines(worker)))


def _worker_lines(worker: WorkerReceipt) -> list[str]:
    name = "an observer" if worker.worker_id is None else f"worker {worker.worker_id}"
    if not worker.received:
        return [f"{name}: not received yet: not attached or stuck, gets it or is told of a gap"]
    if not worker.answered:
        return [f"{name}: received; its handlers have not returned in time"]
    ran = _number(len(worker.handlers), "handler") if worker.handlers else "no handler"
    return [f"{name} (pid {worker.pid}): received, {ran}", *map(_run_line, worker.handlers)]


def _run_line(run: HandlerRun) -> str:
    failed = "" if run.error is None else f"  failed: {escape(run.error)}"
    return f"  {run.seconds * 1000:10,.3f} ms  {escape(run.name)} ({escape(run.location)}){failed}"


def _number(number: int, word: str) -> str:
    return f"{number:,} {word}{'' if number == 1 else 's'}"


def show_status(status: dict[str, Any], *, as_json: bool) -> None:
    """A broker's account of itself and its workers."""
    if as_json:
        say_json(status)
        return
    broker, workers = status["broker"], status["workers"]
    lines = [
        f"broker   {escape(broker['address'])}",
        f"         pid {broker['pid']}, up {_duration(broker['uptime_s'])}",
        f"events   {_number(broker['events'], 'event')} crossed it, {broker['unconfirmed']:,} unconfirmed, {broker['held']:,} held",
        f"unique   {_number(broker['unique_keys'], 'key')} taken, {_number(broker['ignored_repeats'], 'repeat')} ignored",
        f"clients  {_number(broker['connections'], 'connection')}, {_number(broker['observers'], 'observer')}",
        "",
    ]
    if broker.get("dead_letters"):
        lines[-1:] = [f"dead     {_number(broker['dead_letters'], 'dead letter')}, see eventsh dead list", ""]
    if status.get("recording") is not None:
        lines[-1:] = [*_recording_lines(status["recording"]), ""]
    say("\n".join(lines))
    show_workers(workers, as_json=False)


def show_workers(workers: list[dict[str, Any]], *, as_json: bool) -> None:
    """The workers alone."""
    if as_json:
        say_json(workers)
    elif workers:
        say("\n".join(_table(workers)))
    else:
        say("no workers: start some with 'eventsh serve --workers 4', or attach your own")


def _recording_lines(recording: dict[str, Any]) -> list[str]:
    lines = []
    if recording["state"] != "off":
        state = (
            recording["state"] if recording["error"] is None else f"{recording['state']}: {escape(recording['error'])}"
        )
        lines.append(f"record   {escape(recording['path'])} ({state})")
        holes = recording["holes"]
        missed = f", {_missed(recording['missed'])} missed in {_number(holes, 'hole')}" if holes else ""
        lines.append(f"         {_number(recording['events'], 'event')}, {_number(recording['bytes'], 'byte')}{missed}")
    if (flight := recording.get("flight")) is not None:
        last = f", last written to {escape(flight['last_dump'])}" if flight["last_dump"] else ""
        lines.append(f"flight   the last {flight['events']:,} events, {flight['bytes']:,} bytes{last}")
    return lines


def show_recorded(recorded: Recorded, *, as_json: bool) -> None:
    """What came of a recording."""
    if as_json:
        say_json(asdict(recorded))
        return
    text = f"recorded {_number(recorded.events, 'event')} in {recorded.seconds:.1f} s: {escape(recorded.path)}"
    if recorded.holes:
        text += f"; {_missed(recorded.missed)} are missing, in {_number(recorded.holes, 'hole')}"
    say(f"{text} ({recorded.bytes:,} bytes)")


def _missed(events: int) -> str:
    # A hole may be of unknown size.
    return f"{events:,}" if events else "an unknown number"


def show_handlers(workers: list[dict[str, Any]], *, as_json: bool) -> None:
    """What is registered in each worker."""
    if as_json:
        say_json(workers)
        return
    lines: list[str] = []
    for worker in workers:
        lines.append(f"worker {worker['worker_id']} (pid {worker['pid']}): {_what_of(worker)}")
        if worker["handlers"]:
            names = ("", "source", "event", "calls", "errors", "p99 ms", "kind", "handler")
            rows = [names, *map(_handler_row, worker["handlers"])]
            lines += [f"  {line}".rstrip() for line in columns(rows, left=("source", "event", "kind", "handler"))]
    if any(handler["differs"] for worker in workers for handler in worker["handlers"]):
        lines.append("* not every worker has this handler: are all of them running the same program?")
    say("\n".join(lines) or "no workers: start some with 'eventsh serve --workers 4', or attach your own")


def _what_of(worker: dict[str, Any]) -> str:
    if worker["error"] is not None:
        return escape(worker["error"])
    return _number(len(worker["handlers"]), "handler") if worker["handlers"] else "no handlers"


def _handler_row(handler: dict[str, Any]) -> tuple[str, ...]:
    p99_s = handler["p99_s"]
    return (
        "*" if handler["differs"] else "",
        "(all)" if handler["source"] is None else escape(handler["source"]),
        "(all)" if handler["event"] is None else escape(handler["event"]),
        str(handler["calls"]),
        str(handler["errors"]),
        "-" if p99_s is None else f"{p99_s * 1000:.3f}",
        ("async" if handler["async"] else "sync") + (" weak" if handler["weak"] else ""),
        f"{escape(handler['name'])} ({escape(handler['location'])})",
    )


def columns(rows: Sequence[Sequence[str]], *, left: Sequence[str]) -> list[str]:
    """As wide as they must be; those whose heading is in `left` begin at the left."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    signs = ["<" if heading in left else ">" for heading in rows[0]]
    return [
        "  ".join(f"{cell:{sign}{width}}" for cell, sign, width in zip(row, signs, widths, strict=True)) for row in rows
    ]


def _table(workers: Sequence[dict[str, Any]]) -> list[str]:
    """Columns as wide as they must be. Not rich's table: it breaks numbers where it is narrow, and 80 columns in a
    pipe, and takes longer to import than the broker to answer."""
    # For programs alone, which have more than 80 columns.
    names = [name for name in workers[0] if name not in ("host", "since_s")]
    rows = [["worker", *names[1:]]] + [[_cell(worker[name]) for name in names] for worker in workers]
    widths = [max(len(row[column]) for row in rows) for column in range(len(names))]
    return ["  ".join(f"{cell:>{width}}" for cell, width in zip(row, widths, strict=True)) for row in rows]


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:,}" if isinstance(value, int) and value > 9_999_999 else str(value)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"


def say_json(value: Any) -> None:
    """Write it as JSON in one line. What of it is no UTF-8, as a path can be, is written as \\udcff."""
    say(render_data(_expressible(value)))


def _expressible(value: Any) -> Any:
    if isinstance(value, str):
        return expressible(value)
    if isinstance(value, dict):
        return {_expressible(key): _expressible(each) for key, each in value.items()}
    return [_expressible(each) for each in value] if isinstance(value, list | tuple) else value
