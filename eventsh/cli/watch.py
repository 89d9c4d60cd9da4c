"""`eventsh tail` on a terminal or in a pipe: a line for each event on standard output, all else on standard error."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from datetime import datetime

import orjson

from eventsh.cli.templates import Template
from eventsh.cli.terminal import wants_color
from eventsh.commands.patterns import Pattern
from eventsh.commands.tail import Seen, tail
from eventsh.errors import UsageError
from eventsh.escape import escape, render_data
from eventsh.event import LIFECYCLE_SOURCE

__all__ = ["watch"]

# What the broker may take to answer at the start.
_ATTACH_TIMEOUT_S = 10.0
_DIM, _CYAN, _GREEN, _YELLOW, _PLAIN = "\x1b[2m", "\x1b[36m", "\x1b[32m", "\x1b[33m", "\x1b[0m"


def watch(
    address: str | None,
    source: str | None,
    event: str | None,
    *,
    count: int | None,
    template: str | None,
    as_json: bool,
) -> int:
    """Print events until `count` of them, or Ctrl-C; gives the exit status. Raises as `tail` does, and UsageError."""
    if count is not None and count < 1:
        raise UsageError(f"--count must be at least 1, not {count}")
    if as_json and template is not None:
        raise UsageError("--json and --format exclude each other")
    render = _renderer(template, as_json)
    left = count

    def show(seen: Seen) -> bool:
        nonlocal left
        sys.stdout.write(render(seen) + "\n")
        sys.stdout.flush()
        if left is not None:
            left -= 1
        return left != 0

    # As any filter in a pipe: when nobody reads any more, it ends without a word.
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    try:
        tail(address, Pattern(source, event), show, on_state=_tell_state(), timeout_s=_ATTACH_TIMEOUT_S)
    except KeyboardInterrupt:
        return 130
    return 0


def _tell_state() -> Callable[[bool], None]:
    was_attached = False

    def tell(attached: bool) -> None:
        nonlocal was_attached
        if attached:
            text = "attached again" if was_attached else "watching; Ctrl-C ends it"
        else:
            text = "the broker is gone; attaching again as soon as there is one"
        was_attached = was_attached or attached
        sys.stderr.write(f"eventsh: {text}\n")
        sys.stderr.flush()

    return tell


def _renderer(template: str | None, as_json: bool) -> Callable[[Seen], str]:
    if as_json:
        return _as_json
    if template is not None:
        compiled = Template(template)
        return lambda seen: compiled.render(_fields(seen))
    color = wants_color(sys.stdout, os.environ)
    return lambda seen: _as_line(seen, color)


def _fields(seen: Seen) -> dict[str, object]:
    return {
        "source": seen.source,
        "event": seen.event,
        "data": seen.data,
        "pid": seen.pid,
        "seq": seen.seq or None,
        "time": _clock(seen),
    }


def _as_json(seen: Seen) -> str:
    return orjson.dumps(
        {
            "source": seen.source,
            "event": seen.event,
            "data": seen.data,
            "pid": seen.pid,
            "seq": seen.seq or None,
            "time_ns": seen.time_ns or None,
        }
    ).decode()


def _as_line(seen: Seen, color: bool) -> str:
    who = f"{seen.pid}" if seen.pid is not None else "-"
    source, event, data = escape(seen.source), escape(seen.event), render_data(seen.data)
    if not color:
        return f"{_clock(seen)} {who} {source} {event} {data}"
    tint = _YELLOW if seen.source == LIFECYCLE_SOURCE else _CYAN
    return f"{_DIM}{_clock(seen)} {who}{_PLAIN} {tint}{source}{_PLAIN} {_GREEN}{event}{_PLAIN} {data}"


def _clock(seen: Seen) -> str:
    """The local time of day to the millisecond, as for people who watch."""
    if not seen.time_ns:
        return "--:--:--.---"
    return datetime.fromtimestamp(seen.time_ns / 1e9).astimezone().strftime("%H:%M:%S.%f")[:-3]
