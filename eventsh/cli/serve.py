"""The verb `serve`: its options, and what they come to. What it does is in commands/serve.py, imported when used.

An option that eventsh.options knows takes its default, its range and its environment variable from there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from eventsh.cli.parameters import read_seconds, read_whole
from eventsh.errors import ConfigureError
from eventsh.options import OPTIONS, format_option, parse_option

if TYPE_CHECKING:
    from eventsh.runtime.log import LogFormat

__all__ = ["EXAMPLES", "serve"]

EXAMPLES = """\
eventsh serve --workers 4
eventsh serve --handlers handlers.py --max-payload-len 1MiB
eventsh serve --workers 0 --listen unix:/run/app/events.sock
eventsh serve --record today.evlog --flight-recorder 64MB
eventsh serve -l tcp://host:7878 --token-file token --tls-cert tls.pem"""


def _option(name: str, metavar: str) -> Any:
    """A command-line option for an option of eventsh.options, as text: that module parses and checks it."""
    option = OPTIONS[name]
    default = format_option(name, option.default).removesuffix(".0")
    return typer.Option(
        option.flag,
        metavar=metavar,
        envvar=option.env,
        show_envvar=False,
        help=f"{option.help}  [${option.env}; default: {default}]",
    )


def serve(
    ctx: typer.Context,
    workers: Annotated[
        str | None,
        typer.Option("--workers", "-w", metavar="N", help="How many workers; 0 runs the broker alone.  [default: 4]"),
    ] = None,
    handlers: Annotated[
        list[str] | None,
        typer.Option(
            "--handlers",
            metavar="FILE_OR_MODULE",
            help="Python with @eventsh.on(...) handlers; may be given again. Without any, workers print what they get.",
        ),
    ] = None,
    listen: Annotated[
        str | None,
        typer.Option(
            "--listen",
            "-l",
            "--address",
            "-a",
            metavar="ADDRESS",
            help="Where to listen; by default $EVENTSH_ADDRESS, else a socket of your own.",
        ),
    ] = None,
    timeout: Annotated[str | None, _option("timeout", "SECONDS")] = None,
    unique_timeout: Annotated[str | None, _option("unique_timeout", "SECONDS")] = None,
    max_queue_len: Annotated[str | None, _option("max_queue_len", "N")] = None,
    max_queue_bytes: Annotated[str | None, _option("max_queue_bytes", "SIZE")] = None,
    max_payload_len: Annotated[str | None, _option("max_payload_len", "SIZE")] = None,
    heartbeat: Annotated[str | None, _option("heartbeat", "SECONDS")] = None,
    token_file: Annotated[str | None, _option("token_file", "FILE")] = None,
    tls_cert: Annotated[str | None, _option("tls_cert", "FILE")] = None,
    tls_key: Annotated[str | None, _option("tls_key", "FILE")] = None,
    tls_ca: Annotated[str | None, _option("tls_ca", "FILE")] = None,
    tls_name: Annotated[str | None, _option("tls_name", "HOST")] = None,
    allow_scripts: Annotated[str | None, _option("allow_scripts", "yes|no")] = None,
    stop_timeout: Annotated[
        str | None,
        typer.Option(
            "--stop-timeout",
            metavar="SECONDS",
            help="How long workers may take to finish what they have, then they are killed.  [default: 10]",
        ),
    ] = None,
    log_format: Annotated[
        str,
        typer.Option("--log-format", metavar="text|json", help="How to log to standard error."),
    ] = "text",
    record: Annotated[str | None, _option("record", "FILE")] = None,
    record_fsync: Annotated[str | None, _option("record_fsync", "never|interval|always")] = None,
    record_max_size: Annotated[str | None, _option("record_max_size", "SIZE")] = None,
    record_max_age: Annotated[str | None, _option("record_max_age", "SECONDS")] = None,
    record_compress: Annotated[str | None, _option("record_compress", "yes|no")] = None,
    flight_recorder: Annotated[str | None, _option("flight_recorder", "SIZE")] = None,
    flight_dir: Annotated[str | None, _option("flight_dir", "DIRECTORY")] = None,
) -> int:
    """Run a broker and a pool of workers, and restart what dies.

    Ctrl-C stops it, SIGHUP reloads the handlers, SIGUSR2 has the flight recorder written out, SIGTTIN adds a worker, and
    SIGTTOU has the last one leave once it has handled what it was given.

    Exit status: 0 after Ctrl-C or SIGTERM, 1 a process could not be kept running, or another broker has the address,
    2 refused, 128 + N after a second signal N.
    """
    from eventsh.commands.serve import DEFAULT_STOP_TIMEOUT_S, DEFAULT_WORKERS, ServeArguments
    from eventsh.commands.serve import serve as run
    from eventsh.runtime.endpoint import check_reachable, complete_options, find_endpoint

    formats: dict[str, LogFormat] = {"text": "text", "json": "json"}
    if log_format not in formats:
        raise ConfigureError(f"--log-format must be text or json, not {log_format!r}", option="log_format")
    # The parameters that are options have their names.
    given = {name: text for name, text in ctx.params.items() if name in OPTIONS and text is not None}
    options = complete_options({name: parse_option(name, text) for name, text in given.items()})
    wanted = read_whole("--workers", workers, minimum=0)
    transport, address = find_endpoint(listen, options)
    check_reachable(transport, address)
    arguments = ServeArguments(
        address=address,
        workers=DEFAULT_WORKERS if wanted is None else wanted,
        handlers=tuple(handlers or ()),
        options=options,
        log_format=formats[log_format],
        stop_timeout_s=read_seconds(stop_timeout, "--stop-timeout", DEFAULT_STOP_TIMEOUT_S),
    )
    return run(arguments, _notify)


def _notify(text: str) -> None:
    """Print a line, best effort: output without a reader, or on a full disk, must not end the pool."""
    from eventsh.cli.app import drop_output
    from eventsh.cli.report import say

    try:
        say(text)
    except OSError:
        drop_output(1)
