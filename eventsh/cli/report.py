"""What commands return, as text for people or as JSON for programs, on standard output."""

from __future__ import annotations

import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import orjson

if TYPE_CHECKING:
    from eventsh.commands.post import Posted

__all__ = ["show_posted", "show_status"]


def show_posted(posted: Posted, *, as_json: bool, with_rate: bool) -> None:
    """What became of a post."""
    if as_json:
        _print_json(asdict(posted))
        return
    what = f"posted {posted.posted:,} event{'s' if posted.posted != 1 else ''}"
    if posted.unique == "repeat":
        text = "ignored: the unique key is taken (a repeat within the broker's timeout)"
    elif not posted.posted:
        text = "nothing to post: standard input was empty"
    elif posted.unique == "given":
        text = f"{what} to worker {posted.workers[0]}" if posted.workers[0] >= 0 else f"{what} to an observer"
    else:
        text = f"{what} to {len(posted.workers)} worker{'s' if len(posted.workers) != 1 else ''}"
    if posted.missing:
        text += f"; queued for {_slots(posted.missing)}, which did not take it yet"
    if with_rate and posted.seconds:
        text += f" in {posted.seconds:.2f} s ({posted.posted / posted.seconds:,.0f}/s)"
    sys.stdout.write(text + "\n")


def _slots(numbers: list[int]) -> str:
    return f"slot{'s' if len(numbers) > 1 else ''} {', '.join(str(number) for number in numbers)}"


def show_status(status: dict[str, Any], *, as_json: bool) -> None:
    """A broker's account of itself and its workers."""
    if as_json:
        _print_json(status)
        return
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    broker = status["broker"]
    console.print(f"broker  {broker['address']}  pid {broker['pid']}  up {_duration(broker['uptime_s'])}", markup=False)
    console.print(
        f"        {broker['events']:,} events, {broker['unconfirmed']:,} unconfirmed, {broker['held']:,} held,"
        f" {broker['unique_keys']:,} unique keys, {broker['observers']} observers, {broker['connections']} connections",
        markup=False,
    )
    workers = status["workers"]
    if not workers:
        console.print("no workers: start some with 'eventsh serve --workers 4', or attach your own", markup=False)
        return
    columns = [name for name in workers[0] if name != "worker_id"]
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1))
    table.add_column("worker", justify="right")
    for name in columns:
        table.add_column(name, justify="left" if name == "state" else "right")
    for worker in workers:
        table.add_row(*(_cell(worker[name]) for name in ("worker_id", *columns)))
    console.print(table)


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:,}" if isinstance(value, int) and value > 9_999_999 else str(value)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"


def _print_json(value: Any) -> None:
    sys.stdout.write(orjson.dumps(value).decode() + "\n")
