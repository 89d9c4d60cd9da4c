"""The shell's own verbs: their parameters and their help. Those of the command line are verbs here by themselves.

To add one: a function with typer's parameters here, and its line in VERBS. What it does belongs into commands/. Those
that write handlers are in register.py.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Annotated

import typer

from eventsh.cli.parameters import Json, read_content, read_whole
from eventsh.errors import UsageError
from eventsh.shell.overview import overview
from eventsh.shell.register import VERBS as HANDLER_VERBS
from eventsh.shell.registry import Verbs
from eventsh.shell.settings import SETTINGS
from eventsh.shell.shell import Leave, Shell

__all__ = ["make_verbs"]


def tail(
    ctx: typer.Context,
    source: Annotated[
        str | None,
        typer.Argument(metavar="[SOURCE]", help="Only of sources like this: *, ? and [abc] are wild; off ends it."),
    ] = None,
    event: Annotated[str | None, typer.Argument(metavar="[EVENT]", help="Only events like this.")] = None,
) -> None:
    """Show events above the prompt as they come; tail off ends it.

    Of many, a sample is shown, and the others are counted (set rate). Nobody waits for this shell.
    """
    from eventsh.commands.patterns import Pattern

    shell: Shell = ctx.obj
    shell.working_link()
    if source == "off" and event is None:
        shell.watcher.pattern = None
        _say("tail is off")
        return
    if source == "on" and event is None:
        source = None
    shell.watcher.pattern = Pattern(source, event)
    _say("tail is on; tail off ends it")


def workers(ctx: typer.Context, json: Json = False) -> None:
    """Show the workers: whether each is attached, what is queued for it, and what it handled, dropped and failed."""
    from eventsh.cli.report import show_workers
    from eventsh.commands.status import status

    shell: Shell = ctx.obj
    show_workers(status(shell.address, timeout_s=10.0)["workers"], as_json=json)


def post_local(
    ctx: typer.Context,
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="Who the event is from.")],
    event: Annotated[str, typer.Argument(metavar="EVENT", help="What happened.")],
    data: Annotated[list[str] | None, typer.Argument(metavar="[DATA]...", help="As of post.")] = None,
) -> None:
    """Post an event to the handlers in this shell alone."""
    from eventsh.api import default_events
    from eventsh.commands.arguments import parse_data

    shell: Shell = ctx.obj
    shell.working_link()
    value = parse_data(data or [], read_stdin=_no_stdin, read_file=read_content)
    default_events().post_local(source, event, value)


def reload(ctx: typer.Context) -> None:
    """Have the pool load its handlers anew, worker by worker; what does not import leaves the old ones at work."""
    from eventsh.commands import processes

    shell: Shell = ctx.obj
    pid = processes.reload(shell.address)
    _say(f"told the supervisor (pid {pid}) to reload the workers")


def kill(
    ctx: typer.Context,
    worker: Annotated[str, typer.Argument(metavar="WORKER", help="The number of the worker.")],
    signal: Annotated[str, typer.Option("--signal", "-s", metavar="SIGNAL", help="What to send.  [default: TERM]")] = (
        "TERM"
    ),
) -> None:
    """End a worker, by default in good order; a supervisor starts another one in its place."""
    from eventsh.commands import processes

    shell: Shell = ctx.obj
    number = _worker(worker)
    pid = processes.kill(shell.address, number, signal)
    _say(f"sent {signal.upper()} to worker {number} (pid {pid})")


def pause(
    ctx: typer.Context,
    worker: Annotated[str | None, typer.Argument(metavar="[WORKER]", help="One worker; all without it.")] = None,
) -> None:
    """Stop a worker, or all, until resume, or until this shell ends.

    For longer than the broker's timeout, it loses events, which are told to it as a gap.
    """
    from eventsh.commands import processes

    shell: Shell = ctx.obj
    pids = processes.pause(shell.address, None if worker is None else _worker(worker))
    shell.paused |= set(pids.values())
    said = f"paused worker {', '.join(map(str, sorted(pids)))}" if pids else "paused already"
    _say(f"{said}; resume goes on")


def resume(
    ctx: typer.Context,
    worker: Annotated[str | None, typer.Argument(metavar="[WORKER]", help="One worker; all without it.")] = None,
) -> None:
    """Have a worker that was paused, or all, go on."""
    from eventsh.commands import processes

    shell: Shell = ctx.obj
    pids = processes.resume(shell.address, None if worker is None else _worker(worker))
    shell.paused -= set(pids.values())
    _say(f"worker {', '.join(map(str, sorted(pids)))} goes on")


def set_(
    ctx: typer.Context,
    name: Annotated[str | None, typer.Argument(metavar="[SETTING]", help=", ".join(SETTINGS))] = None,
    value: Annotated[str | None, typer.Argument(metavar="[VALUE]", help="on, off, or a number.")] = None,
) -> None:
    """Change how this shell shows things; without a value, show what is set."""
    shell: Shell = ctx.obj
    if name is not None and value is not None:
        shell.settings.change(name, value)
        return
    rows = [row for row in shell.settings.rows() if name in (None, row[0])]
    if not rows:
        raise UsageError(f"there is no setting {name!r}; the settings are {', '.join(SETTINGS)}")
    for row_name, row_value, about in rows:
        _say(f"{row_name:8} {row_value:5} {about}")


def history(
    ctx: typer.Context,
    count: Annotated[str | None, typer.Argument(metavar="[N]", help="Only the last N.")] = None,
) -> None:
    """Show what was typed, the oldest first; a line that begins with a blank is not kept."""
    shell: Shell = ctx.obj
    lines = shell.history()
    wanted = read_whole("N", count)
    for line in lines if wanted is None else lines[-wanted:]:
        _say(line)


def source(
    ctx: typer.Context,
    script: Annotated[str, typer.Argument(metavar="FILE", help="A file with one command a line.")],
) -> int:
    """Run the commands in a file, until one fails."""
    from eventsh.shell.script import read_script

    shell: Shell = ctx.obj
    return shell.run_lines(
        read_script(_read_file(script).decode(errors="surrogateescape").splitlines(), shell.verbs), script
    )


def help_(
    ctx: typer.Context,
    command: Annotated[str | None, typer.Argument(metavar="[COMMAND]", help="What to explain.")] = None,
) -> None:
    """Show all commands (also ?), or the help of one."""
    shell: Shell = ctx.obj
    if command is None:
        plugged = [(verb.name, verb.summary) for verb in shell.verbs.plugged()]
        for line in overview(plugged, shell.columns()):
            _say(line)
        return
    found = shell.verbs.find(command)
    if found is None:
        raise UsageError(f"there is no command {command!r}; help lists all")
    with found.command.make_context(found.name, [], resilient_parsing=True) as context:
        _say(found.command.get_help(context))


def exit_(ctx: typer.Context) -> None:
    """Leave (also quit, q); what this shell registered and started ends with it."""
    raise Leave


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")


def _worker(text: str) -> int:
    number = read_whole("WORKER", text, minimum=0)
    assert number is not None
    return number


def _read_file(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()


def _no_stdin() -> bytes:
    raise UsageError("standard input is the shell's: use @FILE")


VERBS: dict[str, tuple[Callable[..., int | None], str]] = {
    "tail": (tail, "tail\ntail cache 'purge*'\ntail off"),
    "workers": (workers, "workers\nworkers --json | jq '.[].pid'"),
    "post_local": (post_local, "post_local cache purge key=k1"),
    "reload": (reload, "reload"),
    "kill": (kill, "kill 2\nkill 2 --signal KILL"),
    "pause": (pause, "pause 2"),
    "resume": (resume, "resume 2"),
    "set": (set_, "set\nset rate 50\nset pager off"),
    "history": (history, "history 20"),
    "source": (source, "source purge.eventsh"),
    "help": (help_, "help post"),
    "exit": (exit_, "exit"),
}


def make_verbs() -> Verbs:
    """All verbs of a shell."""
    return Verbs({**VERBS, **HANDLER_VERBS}, frozenset({"register", "register_weak"}))
