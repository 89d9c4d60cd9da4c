"""The verbs of the command line: their options and their help. What they do is in commands/, imported when used.

Those that need many options have files of their own. As all annotations of this file are strings until typer asks for
them, a verb that is not built costs nothing.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib import import_module
from typing import Annotated, Any

import typer
from typer.main import get_command

from eventsh.cli.command import Command, Group, UsageException
from eventsh.cli.parameters import Address, Json, Timeout, read_content, read_seconds, read_whole
from eventsh.cli.security import secured
from eventsh.errors import UsageError

__all__ = ["COMPLETE", "PROGRAM", "VERBS", "build_command", "load_verb", "run_verb", "summarize"]

PROGRAM = "eventsh"
# The first word of the line with which the scripts in completions/ ask what can stand at the cursor.
COMPLETE = "__complete"


def post(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="Who the event is from, such as cache.")],
    event: Annotated[str, typer.Argument(metavar="EVENT", help="What happened, such as purge.")],
    data: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[DATA]...",
            help="""JSON, or <"k":1> (an object in brackets), or pairs k=text k:=json, or @FILE, or - for standard"""
            " input. Without it: null.",
        ),
    ] = None,
    unique: Annotated[
        str | None,
        typer.Option(
            "--unique", metavar="KEY", help="Have one worker run it; repeats of the key are ignored for a while."
        ),
    ] = None,
    count: Annotated[
        str | None, typer.Option("--count", "-n", metavar="N", help="Post it N times.  [default: 1]")
    ] = None,
    stdin: Annotated[
        bool, typer.Option("--stdin", help="Post once for each line of standard input, each a JSON value.")
    ] = False,
    text: Annotated[bool, typer.Option("--text", help="DATA is a plain string, not JSON.")] = False,
    wait: Annotated[
        bool, typer.Option("--wait", help="Wait for the handlers: show which ran, how long they took, and errors.")
    ] = False,
    address: Address = None,
    timeout: Timeout = None,
    json: Json = False,
) -> int:
    """Post an event, and wait until every live worker has it; with --wait, until their handlers have returned.

    Without --wait a unique event is lost if its worker and the broker are killed together before its handlers returned.

    Exit status: 0 every live worker has it, 2 refused, 3 no broker there, 4 not confirmed in time, 5 no worker is
    attached. With --wait: 4 not all workers answered in time, 6 a handler failed. DATA that begins with a dash goes
    behind two dashes.
    """
    from eventsh.cli.report import show_posted, show_progress, show_receipt
    from eventsh.commands.arguments import parse_data
    from eventsh.commands.post import post_and_wait, post_data, post_lines

    timeout_s = read_seconds(timeout)
    times = read_whole("--count", count)
    if wait and (stdin or times is not None):
        raise UsageError("--wait is for one event: leave out --stdin and --count")
    if stdin:
        if data or text or times is not None:
            raise UsageError("--stdin takes its data from standard input: leave out DATA, --text and --count")
        progress = show_progress if sys.stderr.isatty() and not json else None
        posted = post_lines(
            address, source, event, _read_stdin, unique=unique, timeout_s=timeout_s, on_progress=progress
        )
    else:
        value = parse_data(data or [], text=text, read_stdin=_read_all_stdin, read_file=read_content)
        if wait:
            receipt, end = post_and_wait(address, source, event, value, unique=unique, timeout_s=timeout_s)
            show_receipt(receipt, as_json=json)
            return int(end)
        posted = post_data(address, source, event, value, unique=unique, count=times or 1, timeout_s=timeout_s)
    show_posted(posted, as_json=json, with_rate=stdin or times is not None)
    return 0


def tail(
    source: Annotated[
        str | None, typer.Argument(metavar="[SOURCE]", help="Only of sources like this: *, ? and [abc] are wild.")
    ] = None,
    event: Annotated[str | None, typer.Argument(metavar="[EVENT]", help="Only events like this.")] = None,
    count: Annotated[str | None, typer.Option("--count", "-n", metavar="N", help="End after N events.")] = None,
    template: Annotated[
        str | None,
        typer.Option(
            "--format",
            metavar="TEMPLATE",
            help="A line for each event, with {time} {source} {event} {data} {data[key]} {pid} {seq}.",
        ),
    ] = None,
    address: Address = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object a line, for programs.")] = False,
) -> None:
    """Watch the events that cross the broker, one a line, until Ctrl-C.

    Nobody waits for a watcher: what it is too slow for is shown as a gap.

    Exit status: 0 after N events or when nobody reads any more, 2 refused, 3 no broker there, 4 no answer in time,
    by SIGINT after Ctrl-C.
    """
    from eventsh.cli.watch import watch

    watch(address, source, event, count=read_whole("--count", count), template=template, as_json=json)


def status(address: Address = None, timeout: Timeout = None, json: Json = False) -> None:
    """Show the broker and its workers.

    For each worker: whether it is attached, what is queued for it, and what it has handled, dropped and failed.

    Exit status: 0, 1 a token or certificate is wrong, 2 refused, 3 no broker there, 4 no answer in time.
    """
    from eventsh.cli.report import show_status
    from eventsh.commands.status import status as ask

    show_status(ask(address, timeout_s=read_seconds(timeout)), as_json=json)


def handlers(address: Address = None, timeout: Timeout = None, json: Json = False) -> None:
    """Show which handlers each worker has, how often they ran, failed, and how long they take.

    p99 is in milliseconds, of calls that are timed now and then. A * marks a handler that not every worker has.

    Exit status: 0, 1 a token or certificate is wrong, 2 refused, 3 no broker there, 4 no answer in time.
    """
    from eventsh.cli.report import show_handlers
    from eventsh.commands.handlers import handlers as ask

    show_handlers(ask(address, timeout_s=read_seconds(timeout)), as_json=json)


def _read_stdin() -> bytes:
    """What has come to standard input, as soon as something has; nothing at its end."""
    import os

    try:
        return os.read(0, 256 * 1024)
    except OSError as error:
        raise UsageError(f"can't read standard input: {error.strerror}") from None


def _read_all_stdin() -> bytes:
    from eventsh.commands.arguments import MAX_CONTENT_BYTES

    content = bytearray()
    while len(content) <= MAX_CONTENT_BYTES and (piece := _read_stdin()):
        content += piece
    return bytes(content)


# The function of a verb and its examples; or the module that has both, by the names of the verb and EXAMPLES.
VERBS: dict[str, tuple[Callable[..., int | None], str] | str] = {
    "serve": "eventsh.cli.serve",
    "post": (
        post,
        """\
eventsh post cache purge '{"key": "k1", "size": 3}'
eventsh post cache purge key=k1 size:=3
eventsh post jobs refresh --unique refresh-1
eventsh post cache purge key=k1 --wait
seq 1000 | eventsh post load tick --stdin""",
    ),
    "tail": (
        tail,
        """\
eventsh tail
eventsh tail cache 'purge*'
eventsh tail --json --count 10 | jq .data
eventsh tail --format '{time} {source}/{event} {data[key]}'""",
    ),
    "status": (
        status,
        """\
eventsh status
eventsh status --json | jq '.workers[] | select(.dropped > 0)'""",
    ),
    "handlers": (
        handlers,
        """\
eventsh handlers
eventsh handlers --json | jq '.[].handlers[] | select(.differs)'""",
    ),
    "dead": "eventsh.cli.dead",
    "bench": "eventsh.cli.bench",
    "record": "eventsh.cli.record",
    "replay": "eventsh.cli.replay",
    "log": "eventsh.cli.log",
    "shell": "eventsh.cli.shell",
    "plugins": "eventsh.cli.plugins",
}
EXAMPLES = """\
eventsh serve --workers 4
eventsh post greeting hello '{"text": "hi"}'    (in another terminal)
eventsh COMMAND --help"""


def _show_version(wanted: bool) -> None:
    if wanted:
        from eventsh import __version__

        sys.stdout.write(f"eventsh {__version__}\n")
        raise typer.Exit


def _switch_off(plugins: list[str] | None) -> None:
    # Before the command is looked for, which may be a plugin's.
    if plugins:
        from eventsh.plugins import apply_options

        apply_options(plugins)


def _root(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=_show_version, is_eager=True)
    ] = False,
    plugin: Annotated[
        list[str] | None,
        typer.Option(
            "-p",
            metavar="no:NAME",
            help="Do without a plugin, here and in all processes that this starts; no:all.",
            callback=_switch_off,
            is_eager=True,
        ),
    ] = None,
) -> None:
    """Events between the worker processes of one host."""


def load_verb(name: str) -> tuple[Callable[..., int | None], str]:
    """The function and the examples of a verb."""
    verb = VERBS[name]
    if not isinstance(verb, str):
        return verb
    module = import_module(verb)
    return getattr(module, name), module.EXAMPLES


def summarize(name: str) -> str:
    """What a verb does, in one line."""
    return (load_verb(name)[0].__doc__ or "").partition("\n")[0]


def build_command(verb: str | None = None) -> Any:
    """typer's command for one verb, or for `eventsh` with all of them: building all takes as long as a post."""
    settings = {"help_option_names": ["-h", "--help"], "max_content_width": 100}
    app = typer.Typer(
        # Plain text: rich takes 0.1 s to import, and one line says more than a frame around it.
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        add_completion=False,
    )
    for name in VERBS if verb is None else [verb]:
        function, examples = load_verb(name)
        app.command(name, cls=Command, epilog=examples, context_settings=settings)(secured(function))
    if verb is None:
        app.callback(cls=Group, epilog=EXAMPLES, context_settings=settings)(_root)
    return get_command(app)


def run_verb(arguments: list[str]) -> int:
    """Run one command line; gives its exit status. Raises EventError, UsageError for a wrong line, and OSError when the
    output can't be written."""
    if not arguments and sys.stdin.isatty() and sys.stdout.isatty():
        # Somebody is there to talk to.
        arguments = ["shell"]
    if arguments[:1] == [COMPLETE]:
        from eventsh.cli.complete import complete

        return complete(arguments[1:])
    verb = arguments[0] if arguments and arguments[0] in VERBS else None
    command = build_command(verb)
    try:
        if verb is not None:
            context = command.make_context(f"eventsh {verb}", arguments[1:])
        else:
            context = command.make_context("eventsh", list(arguments) or ["--help"])
        with context:
            return command.invoke(context) or 0
    except typer.Exit as end:
        # Without a command there is nothing to do: the help is shown, and a script learns of its mistake.
        return end.exit_code if arguments else 2
    except UsageException as error:
        raise UsageError(_describe(error, verb)) from None


def _describe(error: Any, verb: str | None) -> str:
    # The parser's own errors know no context.
    where = getattr(getattr(error, "ctx", None), "command_path", f"eventsh {verb}" if verb else "eventsh")
    text = error.format_message().removesuffix(".")
    if getattr(error, "option_name", "")[1:2].isdigit():
        text += "; put -- before DATA that begins with a dash"
    return f"{text} (see {where} --help)"
