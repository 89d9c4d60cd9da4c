"""`eventsh replay`: its options, the question before it, a line of progress and keys on a terminal, and its result."""

from __future__ import annotations

import os
import select
import sys
import termios
import tty
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from eventsh.cli.parameters import Json, Timeout, read_seconds, read_whole
from eventsh.cli.report import say, say_json
from eventsh.errors import UsageError
from eventsh.escape import escape

if TYPE_CHECKING:
    from eventsh.commands.replay import Controls, Plan, Played, Progress, ReplayArguments, Target
    from eventsh.recording.player import Unique

__all__ = ["EXAMPLES", "replay"]

EXAMPLES = """\
eventsh replay a.evlog --to unix:/run/test/e.sock
eventsh replay a.evlog --to unix:/run/test/e.sock --speed max --wait-workers 4
eventsh replay a.evlog --from 10s --until marker:fixed --dry-run
eventsh replay a.evlog --source cache --map-source cache=cache2 --rate 500"""

_BAR_WIDTH = 24
_KEYS = {" ": "p", "+": "+", "-": "-", "=": "+", "q": "q", "\x03": "q"}


def replay(
    file: Annotated[str, typer.Argument(metavar="FILE", help="The recording.")],
    to: Annotated[
        str | None,
        typer.Option(
            "--to", "--address", "-a", metavar="ADDRESS", help="The broker to post to. Asked for if not given."
        ),
    ] = None,
    speed: Annotated[
        str | None, typer.Option("--speed", metavar="N|max", help="As a multiple of the recorded one.  [default: 1]")
    ] = None,
    rate: Annotated[
        str | None, typer.Option("--rate", metavar="N", help="Post so many events a second, whatever was recorded.")
    ] = None,
    max_gap: Annotated[
        str | None,
        typer.Option(
            "--max-gap",
            metavar="SECONDS",
            help="Shorten longer pauses to this. Without it, pauses of more than a day are left out: a clock was set.",
        ),
    ] = None,
    begin: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="PLACE",
            help="Begin at 10s (from the start), 2026-01-31T12:00:00, seq:N, number:N or marker:NAME.",
        ),
    ] = None,
    end: Annotated[str | None, typer.Option("--until", metavar="PLACE", help="End there.")] = None,
    source: Annotated[str | None, typer.Option("--source", metavar="GLOB", help="Only of sources like this.")] = None,
    event: Annotated[str | None, typer.Option("--event", metavar="GLOB", help="Only events like this.")] = None,
    count: Annotated[str | None, typer.Option("--count", "-n", metavar="N", help="No more than N events.")] = None,
    loop: Annotated[
        str | None, typer.Option("--loop", metavar="N|forever", help="Replay it so many times.  [default: 1]")
    ] = None,
    map_source: Annotated[
        list[str] | None,
        typer.Option("--map-source", metavar="A=B", help="Post events of A as of B; may be given again."),
    ] = None,
    unique: Annotated[
        str,
        typer.Option(
            "--unique",
            metavar="again|worker|all",
            help="Who runs a unique event: again one worker, the worker that ran it (if it is there), or all.",
        ),
    ] = "again",
    wait_workers: Annotated[
        str | None, typer.Option("--wait-workers", metavar="N", help="Wait first until N workers are attached.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be posted, and post nothing.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Ask nothing.")] = False,
    timeout: Timeout = None,
    json: Json = False,
) -> int:
    """Post a recording's events again, each at its time, marked so that handlers can tell (eventsh.replayed()).

    On a terminal, space pauses, the right arrow posts one batch, + and - change the speed, q ends it.

    Exit status: 0, 1 the recording can't be read or something in it is too large, 2 refused, 3 no broker there, 4 not
    taken or workers not there in time, 5 no worker is attached.
    """
    from eventsh.commands.outcome import Exit
    from eventsh.commands.patterns import Pattern
    from eventsh.commands.replay import ReplayArguments, find_target, plan_replay
    from eventsh.commands.replay import replay as run
    from eventsh.recording.positions import Span

    arguments = ReplayArguments(
        path=file,
        pattern=Pattern(source, event),
        speed=_speed(speed),
        rate=None if rate is None else _number("--rate", rate),
        max_gap_s=None if max_gap is None else read_seconds(max_gap, "--max-gap"),
        begin=begin,
        end=end,
        count=read_whole("--count", count),
        loop=0 if loop == "forever" else read_whole("--loop", loop) or 1,
        sources=dict(map(_mapping, map_source or ())),
        unique=_unique(unique),
        wait_workers=read_whole("--wait-workers", wait_workers, minimum=0) or 0,
    )
    if rate is not None and speed is not None:
        raise UsageError("--rate and --speed exclude each other: leave out one")
    timeout_s = read_seconds(timeout)
    # Refused before any broker is asked.
    Span(file, begin, end)
    if dry_run:
        _show_plan(plan_replay(arguments), as_json=json)
        return 0
    total = _total(arguments)
    target = find_target(to, file, timeout_s=timeout_s)
    _check(target, to, yes, total)
    if not target.workers and not arguments.wait_workers:
        sys.stderr.write("eventsh: no worker is attached: nobody gets it (see --wait-workers)\n")
        return int(Exit.NOBODY)
    with _controls(json) as controls:
        played = run(arguments, target.address, controls, total=total, timeout_s=timeout_s)
    _show_played(played, as_json=json)
    return 0


def _total(arguments: ReplayArguments) -> int | None:
    """How many events there are, where somebody sees how far it is; reading them all takes a while."""
    from eventsh.commands.replay import plan_replay

    if not sys.stderr.isatty() or not arguments.loop:
        return None
    return plan_replay(arguments).events * arguments.loop


def _speed(text: str | None) -> float | None:
    if text is None:
        return 1.0
    return None if text == "max" else _number("--speed", text)


def _number(flag: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1e12:
        raise UsageError(f"{flag} must be a number above 0{' or max' if flag == '--speed' else ''}, not {text[:40]!r}")
    return value


def _mapping(text: str) -> tuple[str, str]:
    before, equals, after = text.partition("=")
    if not before or not after or not equals:
        raise UsageError(f"--map-source must be A=B, not {text[:80]!r}")
    return before, after


def _unique(text: str) -> Unique:
    choices: dict[str, Unique] = {"again": "again", "worker": "worker", "all": "all"}
    if text not in choices:
        raise UsageError(f"--unique must be again, worker or all, not {text[:40]!r}")
    return choices[text]


def _check(target: Target, named: str | None, yes: bool, total: int | None) -> None:
    """Never silently into a pool, least of all into the one that is being recorded."""
    if target.is_same_file:
        raise UsageError(
            f"the broker at {target.address} records into this very file, which would never end: replay a copy of it"
        )
    notice = ""
    if target.recorded_to is not None:
        notice = f"; what is posted there is recorded into {target.recorded_to}, marked as replayed"
    if target.is_origin:
        notice = "; that is the pool which was recorded, and still runs" + notice
    if yes or (named is not None and not notice):
        return
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        if notice:
            raise UsageError(f"replay into {target.address}{notice}: if that is meant, add --yes")
        raise UsageError(f"say where to replay to: --to ADDRESS, or --yes for {target.address}")
    workers = f"{target.workers} worker{'' if target.workers == 1 else 's'}"
    events = "" if total is None else f"{total:,} events "
    sys.stderr.write(escape(f"replay {events}into {target.address} ({workers}){notice}? [y/N] "))
    sys.stderr.flush()
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise UsageError("nothing was replayed")


@contextmanager
def _controls(as_json: bool) -> Iterator[Controls]:
    from eventsh.commands.replay import Controls

    class Terminal(Controls):
        """A line of progress, and keys where there is a keyboard."""

        def __init__(self, descriptor: int | None) -> None:
            self.descriptors = () if descriptor is None else (descriptor,)
            self.was_shown = False

        def tell(self, progress: Progress) -> None:
            self.was_shown = True
            sys.stderr.write(f"\r\x1b[K{_progress_line(progress)}\r")
            sys.stderr.flush()

        def commands(self) -> str:
            if not self.descriptors or not select.select(self.descriptors, [], [], 0)[0]:
                return ""
            typed = os.read(self.descriptors[0], 64).decode("latin-1")
            if not typed:
                # The terminal is gone.
                self.descriptors = ()
            steps = typed.count("\x1b[C") + typed.count("\x1bOC")
            rest = typed.replace("\x1b[C", "").replace("\x1bOC", "")
            return "s" * steps + "".join(_KEYS.get(key, "") for key in rest)

    if as_json or not sys.stderr.isatty():
        yield Controls()
        return
    descriptor = sys.stdin.fileno() if sys.stdin.isatty() else None
    terminal = Terminal(descriptor)
    before = None if descriptor is None else termios.tcgetattr(descriptor)
    try:
        if descriptor is not None:
            tty.setcbreak(descriptor)
        yield terminal
    finally:
        if descriptor is not None and before is not None:
            termios.tcsetattr(descriptor, termios.TCSADRAIN, before)
        if terminal.was_shown:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()


def _progress_line(progress: Progress) -> str:
    parts = []
    if progress.total:
        done = min(1.0, progress.events / progress.total)
        full = int(done * _BAR_WIDTH)
        parts.append(f"[{'#' * full}{'.' * (_BAR_WIDTH - full)}] {done:4.0%}")
    parts.append(f"{progress.events:,} events")
    parts.append(f"{progress.position_s:.1f} s")
    if progress.rate is not None:
        parts.append(f"{progress.rate:g}/s")
    else:
        parts.append("max" if progress.speed is None else f"x{progress.speed:g}")
    if progress.rate is not None or progress.speed is not None:
        parts.append(f"{progress.late_s * 1000:.1f} ms late")
    if progress.is_paused:
        parts.append("paused")
    return "  ".join(parts)


def _show_plan(plan: Plan, *, as_json: bool) -> None:
    if as_json:
        say_json(asdict(plan))
        return
    takes = "as fast as can be" if plan.seconds is None else f"in {plan.seconds:,.1f} s"
    say(f"would post {plan.events:,} events, {plan.unique:,} of them unique, {takes}")
    for source, events in plan.sources.items():
        say(f"{events:>12,}  {escape(source)}")
    _warn(plan.damages)


def _warn(damages: list[str]) -> None:
    for damage in damages:
        sys.stderr.write(f"eventsh: {escape(damage)}\n")


def _show_played(played: Played, *, as_json: bool) -> None:
    if as_json:
        say_json(asdict(played))
        return
    text = f"replayed {played.events:,} events in {played.seconds:.2f} s ({played.events_per_s:,.0f}/s"
    text += f", {played.achieved:.2f} times the recorded speed)" if played.achieved is not None else ")"
    if played.late_p99_s is not None and played.late_p50_s is not None and played.late_max_s is not None:
        late: list[Any] = [played.late_p50_s, played.late_p99_s, played.late_max_s]
        text += "; late by {:.2f} ms (p50), {:.2f} ms (p99), {:.2f} ms (most)".format(*(each * 1000 for each in late))
    say(f"{text}{'; stopped' if played.is_stopped else ''}")
    _warn(played.damages)
