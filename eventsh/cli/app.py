"""The command line: the verbs, their options and their help. What they do is in commands/, which is imported when used.

An option that eventsh.options knows takes its default, its range and its environment variable from there.
"""

from __future__ import annotations

import os
import sys
from typing import Annotated, Any, NoReturn

import typer

from eventsh.errors import EventError

__all__ = ["app", "main"]

app = typer.Typer(
    name="eventsh",
    help="Events between the worker processes of one host.",
    epilog="Start with: eventsh serve --workers 4, and in another terminal: eventsh post greeting hello '{\"text\": \"hi\"}'",
    no_args_is_help=True,
    # Plain text: rich's boxes take 0.1 s to import, and one line says more than a frame around it.
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)

_Click = next(base for base in typer.BadParameter.__mro__ if base.__name__ == "ClickException")

Address = Annotated[
    str | None,
    typer.Option("--address", "-a", metavar="ADDRESS", help="Where the broker is; by default $EVENTSH_ADDRESS, else a socket of your own."),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]
WaitSeconds = Annotated[str | None, typer.Option("--timeout", metavar="SECONDS", help="How long to wait for the broker: 10, 500ms, 1m.  [default: 10]")]


def _seconds(text: str | None, default: float) -> float:
    from eventsh.options import parse_option

    if text is None:
        return default
    seconds = parse_option("timeout", text)
    assert isinstance(seconds, float)
    return seconds


def _version(wanted: bool) -> None:
    if wanted:
        from eventsh import __version__

        typer.echo(f"eventsh {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    pass


@app.command(
    epilog="Examples: eventsh post cache purge '{\"key\": \"k1\"}'   eventsh post cache purge key=k1 size:=3   "
    "eventsh post jobs refresh --unique refresh-1   seq 1000 | eventsh post load tick --stdin"
)
def post(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="Who the event is from, such as cache.", show_default=False)],
    event: Annotated[str, typer.Argument(metavar="EVENT", help="What happened, such as purge.", show_default=False)],
    data: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[DATA]...",
            help="""JSON; or <"k":1> (an object whose braces need no care); or pairs k=text k:=json; or @FILE; or - for"""
            " standard input. Without it: null.",
            show_default=False,
        ),
    ] = None,
    unique: Annotated[str | None, typer.Option("--unique", metavar="KEY", help="Have one worker run it; repeats of the key are ignored for a while.")] = None,
    count: Annotated[int, typer.Option("--count", "-n", metavar="N", help="Post it N times.")] = 1,
    stdin: Annotated[bool, typer.Option("--stdin", help="Post once for each line of standard input, each a JSON value.")] = False,
    text: Annotated[bool, typer.Option("--text", help="DATA is a plain string, not JSON.")] = False,
    address: Address = None,
    timeout: WaitSeconds = None,
    json: Json = False,
) -> None:
    """Post an event, and wait until every live worker has it.

    Exit status: 0 every live worker has it, 2 refused data, 3 no broker there, 4 not confirmed in time, 5 no worker
    is attached.
    """
    from eventsh.cli.report import show_posted
    from eventsh.commands.arguments import parse_data
    from eventsh.commands.post import DEFAULT_TIMEOUT_S, post_lines
    from eventsh.commands.post import post as post_event
    from eventsh.errors import UsageError

    timeout_s = _seconds(timeout, DEFAULT_TIMEOUT_S)
    if stdin:
        if data or text or count != 1:
            raise UsageError("--stdin takes its data from standard input: leave out DATA, --text and --count")
        progress = _progress if sys.stderr.isatty() and not json else None
        posted = post_lines(address, source, event, sys.stdin.buffer, unique=unique, timeout_s=timeout_s, on_progress=progress)
        if progress is not None:
            sys.stderr.write("\r\x1b[K")
    else:
        value = parse_data(data or [], text=text, read_stdin=sys.stdin.buffer.read, read_file=_read_file)
        posted = post_event(address, source, event, value, unique=unique, count=count, timeout_s=timeout_s)
    show_posted(posted, as_json=json, with_rate=stdin or count > 1)


def _progress(count: int, seconds: float) -> None:
    sys.stderr.write(f"\r\x1b[K{count} posted, {count / seconds:,.0f}/s")
    sys.stderr.flush()


def _read_file(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()


@app.command(
    epilog="Examples: eventsh tail   eventsh tail cache 'purge*'   eventsh tail --json --count 10 | jq .data   "
    "eventsh tail --format '{time} {source}/{event} {data[key]}'"
)
def tail(
    source: Annotated[str | None, typer.Argument(metavar="[SOURCE]", help="Only events of sources like this: *, ?, [abc].", show_default=False)] = None,
    event: Annotated[str | None, typer.Argument(metavar="[EVENT]", help="Only events like this.", show_default=False)] = None,
    count: Annotated[int | None, typer.Option("--count", "-n", metavar="N", help="End after N events.")] = None,
    format: Annotated[str | None, typer.Option("--format", metavar="TEMPLATE", help="A line for each event, with {time} {source} {event} {data} {pid} {seq}.")] = None,  # noqa: A002 - the option's name
    address: Address = None,
    json: Json = False,
) -> None:
    """Watch the events that cross the broker, one a line, until Ctrl-C.

    Nobody waits for a watcher: what it is too slow for is shown as a gap. Exit status: 0 after N events, 3 no broker
    there, 130 after Ctrl-C.
    """
    from eventsh.cli.watch import watch

    raise typer.Exit(watch(address, source, event, count=count, template=format, as_json=json))


@app.command(epilog="Examples: eventsh status   eventsh status --json | jq '.workers[] | select(.dropped > 0)'")
def status(address: Address = None, timeout: WaitSeconds = None, json: Json = False) -> None:
    """Show the broker and its workers: who is attached, what is queued, handled, dropped and failed.

    Exit status: 0, 3 no broker there, 4 no answer in time.
    """
    from eventsh.cli.report import show_status
    from eventsh.commands.post import DEFAULT_TIMEOUT_S
    from eventsh.commands.status import status as ask

    show_status(ask(address, timeout_s=_seconds(timeout, DEFAULT_TIMEOUT_S)), as_json=json)


def _option(name: str, metavar: str) -> Any:
    """A command-line option for an option of eventsh.options, as text: that module parses and checks it."""
    from eventsh.options import OPTIONS, format_option

    option = OPTIONS[name]
    shown = format_option(name, option.default)
    return typer.Option(option.flag, metavar=metavar, envvar=option.env, help=f"{option.help}  [default: {shown}]", show_envvar=False)


@app.command(
    epilog="Examples: eventsh serve --workers 4   eventsh serve --handlers handlers.py   "
    "eventsh serve --workers 0 --listen unix:/run/app/events.sock"
)
def serve(
    workers: Annotated[int, typer.Option("--workers", "-w", metavar="N", help="How many workers; 0 runs the broker alone.")] = 4,
    handlers: Annotated[
        list[str] | None,
        typer.Option("--handlers", metavar="FILE_OR_MODULE", help="Python with @eventsh.on(...) handlers; may be given again. Without it workers print what they get."),
    ] = None,
    listen: Annotated[str | None, typer.Option("--listen", "-l", metavar="ADDRESS", help="Where to listen; by default $EVENTSH_ADDRESS, else a socket of your own.")] = None,
    timeout: Annotated[str | None, _option("timeout", "SECONDS")] = None,
    unique_timeout: Annotated[str | None, _option("unique_timeout", "SECONDS")] = None,
    max_queue_len: Annotated[str | None, _option("max_queue_len", "N")] = None,
    max_payload_len: Annotated[str | None, _option("max_payload_len", "SIZE")] = None,
    log_format: Annotated[str, typer.Option("--log-format", metavar="text|json", help="How to log to standard error.")] = "text",
) -> None:
    """Run a broker and a pool of workers, and restart what dies. Ctrl-C stops it, SIGHUP reloads the handlers.

    Exit status: 0 after Ctrl-C or SIGTERM, 1 when a process could not be kept running, or another broker has the
    address, 2 a wrong option, 128 + N after a second signal N.
    """
    from eventsh.commands.serve import ServeArguments
    from eventsh.commands.serve import serve as run
    from eventsh.errors import ConfigureError
    from eventsh.options import Options, parse_option
    from eventsh.runtime.endpoint import find_endpoint

    if log_format not in ("text", "json"):
        raise ConfigureError(f"--log-format must be text or json, not {log_format!r}", option="log_format")
    given = {"timeout": timeout, "unique_timeout": unique_timeout, "max_queue_len": max_queue_len, "max_payload_len": max_payload_len}
    values = {name: parse_option(name, value) for name, value in given.items() if value is not None}
    arguments = ServeArguments(
        address=find_endpoint(listen)[1],
        workers=workers,
        handlers=tuple(handlers or ()),
        options=Options.from_values(**values),
        log_format=log_format,
    )
    raise typer.Exit(run(arguments, typer.echo))


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run the command line and exit. A mistake of the user's is one line on standard error, never a traceback."""
    from eventsh.commands.outcome import Exit, exit_status

    try:
        status = app(args=arguments, prog_name="eventsh", standalone_mode=False)
    except EventError as error:
        status = _complain(str(error) + _advice(error), exit_status(error))
    except _Click as error:
        context = getattr(error, "ctx", None)
        where = context.command_path if context is not None else "eventsh"
        status = _complain(f"{error.format_message()} (see {where} --help)", Exit.USAGE)  # type: ignore[attr-defined]
    except (typer.Abort, KeyboardInterrupt):
        status = 130
    except BrokenPipeError:
        # Nobody reads what we print any more, as with `| head`. Python would complain about it once more at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 141
    sys.exit(int(status or 0))


def _complain(message: str, status: int) -> int:
    from eventsh.escape import escape

    sys.stderr.write(f"eventsh: {escape(message)}\n")
    return status


def _advice(error: EventError) -> str:
    from eventsh.commands.outcome import Exit, exit_status

    return "; start one with 'eventsh serve --workers 4'" if exit_status(error) is Exit.NO_BROKER else ""


if __name__ == "__main__":
    main()
