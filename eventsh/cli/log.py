"""`eventsh log`: its actions and options. What people see of a recording is in recordings.py."""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, fields
from typing import TYPE_CHECKING, Annotated, Any

import typer

from eventsh.cli.parameters import Json, read_whole
from eventsh.cli.recordings import event_line, item_lines, json_lines, json_members, pager, stats_lines
from eventsh.cli.report import say, say_json
from eventsh.errors import UsageError
from eventsh.escape import escape

if TYPE_CHECKING:
    from eventsh.commands.log import Filter
    from eventsh.commands.log_files import Written

__all__ = ["ACTIONS", "EXAMPLES", "log"]

EXAMPLES = """\
eventsh log show a.evlog --source cache --from 10s
eventsh log stats a.evlog
eventsh log verify a.evlog || eventsh log repair a.evlog mended.evlog
eventsh log filter a.evlog slow.evlog --where 'data.ms > `100`'
eventsh log cat a.evlog --json | jq -c 'select(.event == "purge")'"""


def log(
    ctx: typer.Context,
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

    if action not in _ACTIONS:
        raise UsageError(f"log can't {action[:40]!r}: it can {', '.join(_ACTIONS)}")
    # By the names of the parameters here.
    filters = [field.name for field in fields(Filter)]
    takes = _check(ctx, action, files, filters)
    values = {
        **ctx.params,
        "worker": read_whole("--worker", worker, minimum=0),
        "pid": read_whole("--pid", pid, minimum=0),
        "count": read_whole("--count", count),
    }
    values["chosen"] = Filter(**{name: values[name] for name in filters})
    return _ACTIONS[action](*files, **{name: values[name] for name in takes})


def _check(ctx: typer.Context, action: str, files: list[str], filters: list[str]) -> list[str]:
    """Raise UsageError for files and options that the action has no use for; gives the names of what else it takes."""
    parameters = inspect.signature(_ACTIONS[action]).parameters.values()
    takes = [parameter.name for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY]
    is_open = any(parameter.kind is parameter.VAR_POSITIONAL for parameter in parameters)
    # All that are named, and one at least of any number more.
    least = len(parameters) - len(takes)
    if len(files) < least or (len(files) > least and not is_open):
        noun = "file" if least == 1 and not is_open else "files"
        raise UsageError(f"log {action} takes {least}{' or more' if is_open else ''} {noun}, not {len(files)}")
    for param in ctx.command.params:
        is_meant = param.name in takes or ("chosen" in takes and param.name in filters)
        if param.param_type_name == "option" and ctx.params.get(param.name) not in (None, False) and not is_meant:
            raise UsageError(f"{param.opts[0]} has no meaning for log {action}: leave it out")
    return takes


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


def _tell_written(written: Written, *, as_json: bool) -> int:
    """Gives the exit status."""
    if as_json:
        say_json(asdict(written))
    else:
        say(f"{escape(written.path)} has {written.events:,} events ({written.size_bytes:,} bytes)")
        _warn(written.damages)
    return 1 if written.damages else 0


# --- the actions ---
#
# Each takes its files, then the options that have a meaning for it, by their names in `log`; `chosen` stands for those
# that say which events. Gives the exit status.


def _show(path: str, *, chosen: Filter, count: int | None, json: bool) -> int:
    from eventsh.commands.log import log_items
    from eventsh.recording.reader import Damage

    damages: list[str] = []
    left = count
    with pager() as write:
        for item in log_items(path, chosen):
            if isinstance(item, Damage):
                damages.append(f"{item.path}: {item.reason}")
                continue
            for line in json_lines(item) if json else item_lines(item):
                if left == 0:
                    break
                write(line)
                left = None if left is None else left - 1
            if left == 0:
                break
    _warn(damages)
    return 1 if damages else 0


def _cat(path: str, *, chosen: Filter, json: bool) -> int:
    """As JSON in any case."""
    return _write_lines(path, "-", chosen, as_csv=False)


def _export(path: str, target: str, *, chosen: Filter, csv: bool) -> int:
    return _write_lines(path, target, chosen, as_csv=csv)


def _write_lines(path: str, target: str, chosen: Filter, *, as_csv: bool) -> int:
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


def _stats(path: str, *, chosen: Filter, json: bool) -> int:
    from eventsh.commands.log import log_stats

    stats = log_stats(path, chosen)
    if json:
        say_json(asdict(stats))
    else:
        say("\n".join(stats_lines(stats)))
    return 1 if stats.damages else 0


def _verify(*paths: str, json: bool) -> int:
    from eventsh.commands.log import log_verify

    is_whole = True
    for path in paths:
        verdict = log_verify(path)
        is_whole = is_whole and verdict.is_whole
        if json:
            say_json({**asdict(verdict), "is_whole": verdict.is_whole})
            continue
        word = "whole" if verdict.is_whole else "DAMAGED"
        end = "" if verdict.is_closed else "; not closed: it is still written, or its writer was killed"
        say(f"{escape(path)}: {word}, {verdict.events:,} events, {verdict.holes} holes{end}")
        for damage in verdict.damages:
            say(f"    {escape(damage)}")
    return 0 if is_whole else 1


def _diff(first: str, second: str, *, chosen: Filter, count: int | None, strict: bool, json: bool) -> int:
    from eventsh.commands.log_files import log_diff
    from eventsh.recording.text import event_members

    counts = {"-": 0, "+": 0}
    damages: list[str] = []
    for shown, difference in enumerate(log_diff(first, second, chosen, damages.append, strict=strict)):
        counts[difference.side] += 1
        if count is not None and shown >= count:
            continue
        if json:
            say(json_members({"side": difference.side, **event_members(difference.event)}))
        else:
            say(f"{difference.side} {event_line(difference.event)}")
    if not json:
        same = "no difference in what can be read" if damages else "no difference"
        is_same = not any(counts.values())
        say(same if is_same else f"{counts['-']:,} only in the first, {counts['+']:,} only in the second")
    _warn(damages)
    return 1 if damages or any(counts.values()) else 0


def _repair(path: str, target: str, *, json: bool) -> int:
    from eventsh.commands.log import log_repair

    repaired = log_repair(path, target)
    if json:
        say_json(asdict(repaired))
    else:
        lost = f"; {repaired.lost_bytes:,} bytes could not be read" if repaired.damages else ", and nothing was lost"
        say(f"{escape(repaired.path)} has {repaired.events:,} events{lost}")
    return 3 if repaired.damages else 0


def _filter(path: str, target: str, *, chosen: Filter, json: bool) -> int:
    from eventsh.commands.log_files import log_filter

    return _tell_written(log_filter(path, chosen, target), as_json=json)


def _merge(first: str, second: str, *rest: str, json: bool) -> int:
    from eventsh.commands.log_files import log_merge

    *others, target = rest
    return _tell_written(log_merge([first, second, *others], target), as_json=json)


def _import(lines: str, target: str, *, json: bool) -> int:
    from eventsh.commands.log_files import log_import

    with _input(lines) as opened:
        written = log_import(opened, target)
    return _tell_written(written, as_json=json)


_ACTIONS: dict[str, Callable[..., int]] = {
    "show": _show,
    "stats": _stats,
    "verify": _verify,
    "repair": _repair,
    "cat": _cat,
    "filter": _filter,
    "merge": _merge,
    "diff": _diff,
    "import": _import,
    "export": _export,
}
ACTIONS = tuple(_ACTIONS)
