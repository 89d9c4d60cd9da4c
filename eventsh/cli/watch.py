"""`eventsh tail` on a terminal or in a pipe: a line for each event on standard output, all else on standard error."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from typing import TextIO

from eventsh.cli.report import say
from eventsh.cli.templates import Template
from eventsh.cli.terminal import wants_color
from eventsh.commands.arguments import check_utf8
from eventsh.commands.patterns import Pattern
from eventsh.commands.tail import Seen, tail
from eventsh.errors import UsageError
from eventsh.escape import escape, render_data
from eventsh.event import LIFECYCLE_SOURCE

__all__ = ["clock", "watch"]

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
) -> None:
    """Print events until `count` of them, or until nobody reads. Raises as `tail` does, UsageError, and OSError when
    the output can't be written."""
    if as_json and template is not None:
        raise UsageError("--json and --format exclude each other: leave out one")
    for word, text in (("source", source), ("event", event), ("template", template)):
        if text is not None:
            check_utf8(text, word)
    render = _renderer(template, as_json)
    left = count

    def show(seen: Seen) -> bool:
        nonlocal left
        say(render(seen))
        if left is not None:
            left -= 1
        return left != 0

    tail(
        address,
        Pattern(source, event),
        show,
        on_state=_state_teller(),
        timeout_s=_ATTACH_TIMEOUT_S,
        output=_pipe_of(sys.stdout),
    )


def _pipe_of(stream: TextIO) -> int | None:
    """The descriptor of a stream that is a pipe, whose reader may leave at any time."""
    descriptor = stream.fileno()
    return descriptor if stat.S_ISFIFO(os.fstat(descriptor).st_mode) else None


def _state_teller() -> Callable[[bool], None]:
    was_attached = False

    def tell(attached: bool) -> None:
        nonlocal was_attached
        if attached:
            text = (
                "attached again; what was posted in between was not seen"
                if was_attached
                else "watching; Ctrl-C ends it"
            )
        else:
            text = "the broker is gone; attaching again as soon as there is one"
        was_attached = was_attached or attached
        with suppress(OSError):  # nothing depends on it
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
        "time": clock(seen),
    }


def _as_json(seen: Seen) -> str:
    # Each member by itself, for `data` may be as deep as an event's data can be.
    members = {**_fields(seen), "time_ns": seen.time_ns or None}
    del members["time"]
    return "{" + ",".join(f'"{name}":{render_data(value)}' for name, value in members.items()) + "}"


def _as_line(seen: Seen, color: bool) -> str:
    who = f"{seen.pid}" if seen.pid is not None else "-"
    source, event, data = escape(seen.source), escape(seen.event), render_data(seen.data)
    if not color:
        return f"{clock(seen)} {who} {source} {event} {data}"
    tint = _YELLOW if seen.source == LIFECYCLE_SOURCE else _CYAN
    return f"{_DIM}{clock(seen)} {who}{_PLAIN} {tint}{source}{_PLAIN} {_GREEN}{event}{_PLAIN} {data}"


def clock(seen: Seen) -> str:
    """The local time of day to the millisecond, as for people who watch."""
    if not seen.time_ns:
        return "--:--:--.---"
    return datetime.fromtimestamp(seen.time_ns / 1e9).astimezone().strftime("%H:%M:%S.%f")[:-3]
