"""The shell's verbs that write handlers: register, register_weak, unregister, load and handlers. See verbs.py."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from typing import Annotated, Any

import typer

from eventsh.cli.parameters import Json, Timeout, read_seconds, read_whole
from eventsh.commands.register import Outcome, Registered
from eventsh.core.scripts import is_script_location
from eventsh.errors import UsageError
from eventsh.escape import escape
from eventsh.shell.registry import CODE
from eventsh.shell.shell import Shell

__all__ = ["VERBS"]

# Of a script at the broker: its shell's pid, and the number there.
_NAME = re.compile(r"[0-9]{1,20}\.[0-9]{1,20}")

Workers = Annotated[bool, typer.Option("--workers", "-w", help="In every worker of the pool, not in this shell.")]
OneWorker = Annotated[
    list[str] | None, typer.Option("--worker", metavar="WORKER", help="In this worker; may be given again.")
]
Keep = Annotated[
    bool,
    typer.Option(
        "--keep", help="It stays when this shell ends, as long as the broker lives; what it prints is printed there."
    ),
]
Source = Annotated[str | None, typer.Argument(metavar="[SOURCE]", help="Of which source; without it, all events.")]
Events = Annotated[
    list[str] | None, typer.Argument(metavar="[EVENT]...", help="Which events, all without; last, @FILE:FUNCTION.")
]


def register(
    ctx: typer.Context,
    source: Source = None,
    events: Events = None,
    workers: Workers = False,
    worker: OneWorker = None,
    keep: Keep = False,
) -> None:
    """Write a handler: code behind a colon, or @FILE:FUNCTION. Gives a number for unregister.

    data, event, source and pid are bound; await makes it async. It runs in this shell, or with --workers in the pool,
    where what it prints or raises comes back to this shell. It ends with the shell, and a worker that is restarted gets
    it again. Code goes into workers only over a unix socket of the same user.
    """
    _register(ctx, source, events, workers=workers, worker=worker, keep=keep, weak=False)


def register_weak(
    ctx: typer.Context,
    source: Source = None,
    events: Events = None,
    workers: Workers = False,
    worker: OneWorker = None,
) -> None:
    """As register, of @FILE:FUNCTION, held only as long as the file's module holds it."""
    _register(ctx, source, events, workers=workers, worker=worker, keep=False, weak=True)


def _register(
    ctx: typer.Context,
    source: str | None,
    events: list[str] | None,
    *,
    workers: bool,
    worker: list[str] | None,
    keep: bool,
    weak: bool,
) -> None:
    shell: Shell = ctx.obj
    shell.working_link()
    code, start = ctx.meta[CODE]
    words = [word for word in (source, *(events or [])) if word is not None]
    with shell.place_of_code(code or "", start):
        outcome = shell.book.register(words, code, workers=_chosen(workers, worker, keep), weak=weak, keep=keep)
    _tell(shell, outcome)


def load(
    ctx: typer.Context,
    file: Annotated[str, typer.Argument(metavar="FILE", help="Python with @eventsh.on(...) handlers.")],
    workers: Workers = False,
    worker: OneWorker = None,
    keep: Keep = False,
) -> None:
    """Run a file of handlers in this shell, or with --workers in the pool. Gives a number for unregister."""
    shell: Shell = ctx.obj
    shell.working_link()
    _tell(shell, shell.book.load(file, workers=_chosen(workers, worker, keep), keep=keep))


def unregister(
    ctx: typer.Context,
    number: Annotated[
        str, typer.Argument(metavar="NUMBER", help="What register or load gave; or the name of what any shell kept.")
    ],
) -> None:
    """Take back what was registered, by its number; what any shell registered with --keep, by its name."""
    shell: Shell = ctx.obj
    if _NAME.fullmatch(number):
        errors = shell.book.unregister_name(number)
    else:
        chosen = read_whole("NUMBER", number)
        assert chosen is not None
        errors = shell.book.unregister(chosen)
    for worker, error in errors.items():
        _say(f"worker {worker}: {escape(error)}")
    _say(f"unregistered {number}")


def handlers(
    ctx: typer.Context,
    save: Annotated[
        str | None, typer.Option("--save", metavar="FILE", help="Write what this shell registered, as serve takes it.")
    ] = None,
    timeout: Timeout = None,
    json: Json = False,
) -> None:
    """Show which handlers each worker has, and what this shell registered; --save writes that as a file.

    p99 is in milliseconds, of calls that are timed now and then. A * marks a handler that not every worker has.
    """
    from eventsh.cli.report import show_handlers
    from eventsh.commands.handlers import handlers as ask

    shell: Shell = ctx.obj
    if save is not None:
        _save(shell, save)
        return
    answer = ask(shell.address, timeout_s=read_seconds(timeout))
    show_handlers(answer, as_json=json)
    if json:
        return
    if others := _of_others(shell, answer):
        _say("\nkept, or of other shells; unregister NAME takes one back:")
        for row in others:
            _say(f"  {row}")
    if shell.book.all:
        _say("\nregistered by this shell:")
        for found in shell.book.all:
            _say(f"  {found.number:3}  {_levels(found)}  {found.where}  {escape(found.what)}")


def _of_others(shell: Shell, workers: list[dict[str, Any]]) -> list[str]:
    """The handlers that other shells brought in: the name to take each back by, what it is registered for, and, where it
    comes from a file, which it is."""
    own = {shell.book.name_of(found.number) for found in shell.book.all}
    rows: dict[str, None] = {}
    for handler in (handler for worker in workers for handler in worker["handlers"]):
        # A worker of an earlier version does not say.
        name = handler.get("script")
        if name is not None and name not in own:
            words = [name, "", handler["source"] or "(all)", *filter(None, [handler["event"]])]
            if is_script_location(handler["location"]) is None:
                words += ["", f"{handler['name']} ({handler['location']})"]
            rows[" ".join(map(escape, words))] = None
    return list(rows)


def _save(shell: Shell, path: str) -> None:
    text = shell.book.as_file()
    try:
        with open(path, "x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise UsageError(f"{path} is there already: choose another name, or remove it") from None
    count = len(shell.book.all)
    _say(f"wrote {count} registration{'' if count == 1 else 's'}; eventsh serve --handlers {path} has them")


def _chosen(workers: bool, worker: list[str] | None, keep: bool) -> tuple[int, ...] | None:
    if worker:
        numbers = [read_whole("--worker", text, minimum=0) for text in worker]
        return tuple(number for number in numbers if number is not None)
    if keep and not workers:
        raise UsageError("--keep is for handlers in workers: add --workers")
    return () if workers else None


def _tell(shell: Shell, outcome: Outcome) -> None:
    found = outcome.registered
    where = "in this shell"
    if found.workers is not None:
        where = f"in {outcome.workers} worker{'' if outcome.workers == 1 else 's'}"
        if not outcome.workers and not outcome.errors:
            where = "for workers that attach; none is there now"
    if found.keep:
        name = shell.book.name_of(found.number)
        _say(f"registered {found.number} {where} until the broker ends; unregister {name} takes it back in any shell")
    else:
        _say(f"registered {found.number} {where}; unregister {found.number} takes it back")
    for worker, error in outcome.errors.items():
        _say(f"worker {worker}: {escape(error)}")


def _levels(found: Registered) -> str:
    if found.file is not None and found.function is None:
        return "(its own)"
    return " ".join(map(escape, (found.source or "(all)", *found.events)))


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")


VERBS: dict[str, tuple[Callable[..., int | None], str]] = {
    "register": (
        register,
        """\
register cache purge: print(data["key"])
register cache purge --workers: print(pid, data)
register jobs --worker 2 @handlers.py:run""",
    ),
    "register_weak": (register_weak, "register_weak cache purge @handlers.py:purge"),
    "unregister": (unregister, "unregister 1\nunregister 4711.1"),
    "load": (load, "load handlers.py\nload handlers.py --workers"),
    "handlers": (handlers, "handlers\nhandlers --save handlers.py\nhandlers --json | jq '.[0]'"),
}
