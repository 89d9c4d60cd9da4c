"""`eventsh record`: its options, and what it says while it runs."""

from __future__ import annotations

import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Annotated

import typer

from eventsh.cli.parameters import Address, Json, Timeout, read_seconds
from eventsh.errors import UsageError

if TYPE_CHECKING:
    from eventsh.recording.writer import Fsync

__all__ = ["EXAMPLES", "record"]

EXAMPLES = """\
eventsh record today.evlog
eventsh record purges.evlog --source cache --event 'purge*' --for 10s
eventsh record --flight
eventsh record --mark 'deployed 1.4'"""

Source = Annotated[
    str | None, typer.Option("--source", metavar="GLOB", help="Only of sources like this: *, ? and [abc] are wild.")
]
Event = Annotated[str | None, typer.Option("--event", metavar="GLOB", help="Only events like this.")]


def record(
    file: Annotated[
        str | None,
        typer.Argument(metavar="[FILE]", help="Where to record; one that is there already is continued."),
    ] = None,
    source: Source = None,
    event: Event = None,
    seconds: Annotated[
        str | None, typer.Option("--for", metavar="SECONDS", help="End after so long: 10s, 500ms or 5m.")
    ] = None,
    max_size: Annotated[
        str | None, typer.Option("--max-size", metavar="SIZE", help="End before the file grows longer by this: 100MB.")
    ] = None,
    fsync: Annotated[
        str, typer.Option("--fsync", metavar="never|interval", help="Whether to write to the disk each second.")
    ] = "interval",
    mark: Annotated[
        str | None,
        typer.Option("--mark", metavar="NAME", help="Put a marker into the recording of 'serve --record' instead."),
    ] = None,
    flight: Annotated[
        bool, typer.Option("--flight", help="Have the flight recorder of 'serve' written out instead.")
    ] = False,
    address: Address = None,
    timeout: Timeout = None,
    json: Json = False,
) -> int:
    """Record the events that cross the broker, until Ctrl-C.

    Nobody waits for a recorder: what it is too slow for is a hole in the recording. It sees no unique events, which are
    one worker's alone; 'eventsh serve --record FILE' has those too.

    Exit status: 0 ended by Ctrl-C, --for or --max-size, 1 the file can't be written, 2 refused, 3 no broker there,
    4 no answer in time.
    """
    from eventsh.cli.report import say_json, show_recorded
    from eventsh.commands.patterns import Pattern
    from eventsh.commands.record import add_marker, write_flight_recorder
    from eventsh.commands.record import record as run
    from eventsh.options import parse_option

    timeout_s = read_seconds(timeout)
    if mark is not None or flight:
        if file is not None or (mark is not None and flight):
            raise UsageError("--mark and --flight are for the broker's own recording: give neither FILE nor the other")
        if mark is not None:
            facts = {"path": add_marker(address, mark, timeout_s=timeout_s), "marker": mark}
        else:
            facts = write_flight_recorder(address, timeout_s=timeout_s)
        say_json(facts)
        return 0
    if file is None:
        raise UsageError("say where to record: eventsh record FILE")
    policies: dict[str, Fsync] = {"never": "never", "interval": "interval"}
    if fsync not in policies:
        raise UsageError(f"--fsync must be never or interval, not {fsync[:40]!r}")
    size = None if max_size is None else parse_option("record_max_size", max_size, label="--max-size")
    assert size is None or isinstance(size, int)
    done = run(
        address,
        file,
        Pattern(source, event),
        seconds=None if seconds is None else read_seconds(seconds, "--for"),
        max_bytes=size,
        fsync=policies[fsync],
        on_state=_tell_state,
        timeout_s=timeout_s,
    )
    show_recorded(done, as_json=json)
    return 0


def _tell_state(attached: bool) -> None:
    text = "recording; Ctrl-C ends it" if attached else "the broker is gone; attaching again as soon as there is one"
    with suppress(OSError):  # nothing depends on it
        sys.stderr.write(f"eventsh: {text}\n")
        sys.stderr.flush()
