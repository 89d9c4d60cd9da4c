"""`eventsh dead`: its arguments, and how dead letters are shown."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from eventsh.cli.parameters import Address, Json, Timeout, read_seconds, read_whole
from eventsh.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["EXAMPLES", "dead"]

EXAMPLES = """\
eventsh dead list
eventsh dead show 1
eventsh dead retry 1
eventsh dead drop --all
eventsh dead list --json | jq '.dead[].deaths[].ended'"""

_ACTIONS = ("list", "show", "retry", "drop")
_DONE = {"retry": "retried", "drop": "dropped"}


def dead(
    action: Annotated[str, typer.Argument(metavar="list|show|retry|drop", help="What to do.")],
    number: Annotated[
        str | None, typer.Argument(metavar="[ID]", help="For show, retry and drop: which one, as list shows it.")
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="For retry and drop: all of them.")] = False,
    address: Address = None,
    timeout: Timeout = None,
    json: Json = False,
) -> None:
    """Show the events that killed the processes which handled them, and retry or drop them.

    An event in which --max-deliveries processes died is delivered to no worker again, and kept here. show adds its data.
    retry posts it anew, at the end of the order, to the workers that lacked it. drop removes it.

    Exit status: 0, 1 there is no such dead letter, or a token or certificate is wrong, 2 refused, 3 no broker there, 4 no
    answer in time.
    """
    from eventsh.cli.report import say_json
    from eventsh.commands.dead import dead as ask

    answer = ask(address, action, _read(action, number, every), timeout_s=read_seconds(timeout))
    if json:
        say_json(answer)
    else:
        _show(action, answer)


def _read(action: str, number: str | None, every: bool) -> int | None:
    """Return the id of the dead letter that is meant; None: all of them."""
    if action not in _ACTIONS:
        raise UsageError(f"dead can {', '.join(_ACTIONS[:-1])} or {_ACTIONS[-1]}, not {action[:40]!r}")
    if action == "list" and (number is not None or every):
        raise UsageError("dead list shows all dead letters: leave out ID and --all")
    if action == "show" and every:
        raise UsageError("dead show shows one: leave out --all, or use eventsh dead list")
    if action in _DONE and (number is not None) is every:
        raise UsageError(f"dead {action} needs an ID (see eventsh dead list) or --all, and not both")
    if action == "show" and number is None:
        raise UsageError("dead show needs an ID: see eventsh dead list")
    return read_whole("ID", number)


def _show(action: str, answer: dict[str, Any]) -> None:
    from eventsh.cli.report import say

    if action == "list":
        say("\n".join(_list_lines(answer)))
    elif action == "show":
        say("\n".join(_letter_lines(answer)))
    else:
        ids = ", ".join(map(str, answer["ids"]))
        say(f"{_DONE[action]} {ids}" if ids else "no dead letters")


def _list_lines(answer: dict[str, Any]) -> Iterator[str]:
    from eventsh.cli.report import columns
    from eventsh.escape import escape

    letters, discarded = answer["dead"], answer["discarded"]
    if letters:
        rows = [
            (
                str(letter["id"]),
                _clock(letter["time"]),
                escape(letter["source"]),
                escape(letter["event"]),
                "-" if letter["unique"] is None else escape(letter["unique"]),
                str(len(letter["deaths"])),
                escape(", ".join(dict.fromkeys(death["ended"] for death in letter["deaths"]))),
            )
            for letter in letters
        ]
        names = ("id", "time", "source", "event", "unique", "deaths", "ended")
        lines = columns([names, *rows], left=("time", "source", "event", "unique", "ended"))
        yield from (line.rstrip() for line in lines)
    else:
        yield "no dead letters"
    if discarded:
        yield f"{discarded:,} older discarded: the list is full (--max-dead-letters)"


def _letter_lines(letter: dict[str, Any]) -> Iterator[str]:
    from eventsh.escape import escape, render_data

    yield f"dead letter {letter['id']}, since {_clock(letter['time'])}"
    yield f"  source   {escape(letter['source'])}"
    yield f"  event    {escape(letter['event'])}"
    if letter["unique"] is not None:
        yield f"  unique   {escape(letter['unique'])}"
    yield f"  data     {render_data(letter['data'])}"
    for death in letter["deaths"]:
        worker = "an observer" if death["worker_id"] is None else f"worker {death['worker_id']}"
        yield f"  killed   {worker} (pid {death['pid']}) at {_clock(death['time'])}: {escape(death['ended'])}"
    if letter["missing"]:
        yield f"  missing  in worker {', '.join(map(str, letter['missing']))}"


def _clock(time_s: float) -> str:
    """A time in seconds since 1970 as the local date and time."""
    from datetime import datetime

    return datetime.fromtimestamp(time_s).astimezone().strftime("%Y-%m-%d %H:%M:%S")
