"""The worker program: load handlers, attach to the broker, handle events until told to stop.

    python -m eventsh.runtime.worker --address A --worker-id I [--handlers X]... [--timeout=S]...

Everything of delivery is the client's; this decides only the order of a worker's life.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import signal
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, TextIO

from eventsh.core.failure import error_text
from eventsh.errors import ConfigureError, EventError
from eventsh.escape import escape, render_data
from eventsh.event import LIFECYCLE_SOURCE
from eventsh.options import OPTIONS, Options, format_option, parse_option
from eventsh.runtime.bus import Bus, default_bus
from eventsh.runtime.child import EXIT_OK, EXIT_USAGE, Supervisor, add_child_arguments, start_child
from eventsh.runtime.loader import HandlersError, load_handlers
from eventsh.runtime.loop import new_event_loop

if TYPE_CHECKING:
    from eventsh.option import OptionValue

__all__ = ["main", "print_events", "worker_arguments"]

# What a worker is told by flags of its own, or never asked: it is a worker, and starts no broker.
OWN_OPTIONS = frozenset({"broker", "worker_id", "role"})

# Of the time that the supervisor waits before it kills, what draining may take.
DRAIN_SHARE = 0.8

# As a shell says it of a program that Ctrl-C ended.
EXIT_INTERRUPTED = 128 + signal.SIGINT

_log = logging.getLogger("eventsh.worker")


def worker_arguments(options: Options) -> list[str]:
    """The command line that tells a worker program these options: a client's that differ from the default."""
    return [
        f"{option.flag}={format_option(name, getattr(options, name))}"
        for name, option in _worker_options()
        if getattr(options, name) != option.default
    ]


def _worker_options() -> Iterable[tuple[str, Any]]:
    return ((name, option) for name, option in OPTIONS.items() if "client" in option.scope and name not in OWN_OPTIONS)


def _parse_options(arguments: Iterable[str]) -> dict[str, OptionValue]:
    names = {option.flag: name for name, option in _worker_options()}
    values: dict[str, OptionValue] = {}
    for argument in arguments:
        flag, _, text = argument.partition("=")
        if flag not in names:
            raise ConfigureError(f"{argument!r} is no option of a worker; they are {', '.join(names)}")
        values[names[flag]] = parse_option(names[flag], text)
    return values


def _parse_arguments(arguments: Sequence[str]) -> tuple[argparse.Namespace, dict[str, OptionValue]]:
    parser = argparse.ArgumentParser(prog="python -m eventsh.runtime.worker", allow_abbrev=False)
    parser.add_argument("--address", required=True)
    parser.add_argument("--worker-id", type=int, required=True)
    parser.add_argument("--handlers", action="append", default=[], metavar="FILE_OR_MODULE")
    parser.add_argument("--standby", action="store_true", help="import, then wait to be told to attach")
    parser.add_argument("--stop-timeout-s", type=float, default=10.0)
    add_child_arguments(parser)
    known, rest = parser.parse_known_args(arguments)
    return known, _parse_options(rest)


def print_events(worker_id: int, stream: TextIO) -> Callable[[Any, str, str, int | None], None]:
    """A handler that writes a line for each event, harmless for a terminal. It goes quiet once nobody reads."""
    broken = False

    def print_event(data: Any, event: str, source: str, pid: int | None) -> None:
        nonlocal broken
        # Who comes and goes is in the log and in `status`; here it would bury what a newcomer looks for.
        if broken or (source == LIFECYCLE_SOURCE and event != "gap"):
            return
        try:
            stream.write(f"[worker {worker_id}] {escape(source)} {escape(event)} {render_data(data)}\n")
            stream.flush()
        except OSError as error:
            # As with `serve | head`, or a terminal that was closed: no reason to fail at every event from now on.
            broken = True
            _log.warning("events are no longer printed: %s", error.strerror)

    return print_event


async def _live(known: argparse.Namespace, options: dict[str, Any], supervisor: Supervisor) -> int:
    """From the loaded handlers to the end of this worker; gives the exit status."""
    commands: asyncio.Queue[str] = asyncio.Queue()
    supervisor.follow(asyncio.get_running_loop(), commands.put_nowait, grace_s=known.stop_timeout_s)
    if known.standby:
        supervisor.report("standby")
        if await commands.get() != "attach":
            return EXIT_OK
    bus = default_bus()
    exits: list[BaseException] = []
    loop = asyncio.get_running_loop()

    def end(error: BaseException) -> None:
        exits.append(error)
        loop.call_soon_threadsafe(commands.put_nowait, "exit")

    bus.on_exit = end
    leave = True
    try:
        bus.attach(known.address, {**options, "broker": "never", "worker_id": known.worker_id})
        command = await _attach(bus, commands, supervisor)
        # A slot that is handed over keeps its events for the next process; one that is left is gone.
        leave = command == "stop"
    except EventError as error:
        return supervisor.fail(str(error))
    finally:
        # Done before the supervisor loses its patience, so that it is this process that says what could not be done.
        await bus.close(leave=leave, timeout=known.stop_timeout_s * DRAIN_SHARE)
    # Only its own end: a worker that was to stop or to hand over has done so.
    return _status_of(exits[0], supervisor) if command == "exit" else EXIT_OK


def _status_of(error: BaseException, supervisor: Supervisor) -> int:
    """The exit status that a handler has asked for, as the interpreter takes it."""
    code = getattr(error, "code", EXIT_INTERRUPTED)
    if code is None:
        return EXIT_OK
    return code if isinstance(code, int) else supervisor.fail(error_text(error))


async def _attach(bus: Bus, commands: asyncio.Queue[str], supervisor: Supervisor) -> str:
    """Attach, report it, and give the command that ends this worker; it may come before a broker does."""
    attaching = asyncio.create_task(bus.working_client().waiters.wait_ready(None))
    told = asyncio.create_task(commands.get())
    try:
        await asyncio.wait((attaching, told), return_when=asyncio.FIRST_COMPLETED)
        if attaching.done():
            attaching.result()
            supervisor.report("ready", pid=os.getpid())
        return await told
    finally:
        attaching.cancel()
        told.cancel()


def _load(names: Sequence[str], worker_id: int) -> None:
    if names:
        load_handlers(names)
        if not default_bus().registry.handlers():
            _log.warning("%s: no handler is registered, so every event passes unseen", ", ".join(names))
    else:
        default_bus().registry.register(print_events(worker_id, sys.stdout))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a worker until it is told to stop; gives the exit status."""
    try:
        known, options = _parse_arguments(sys.argv[1:] if arguments is None else arguments)
    except ConfigureError as error:
        sys.stderr.write(f"eventsh worker: {escape(str(error))}\n")
        return EXIT_USAGE
    supervisor = start_child(known.report_fd, known.control_fd, known.log_format)
    # A file of handlers may be the application itself, which configures where it runs in a server.
    default_bus().owner = "eventsh serve"
    try:
        _load(known.handlers, known.worker_id)
    except HandlersError as error:
        return supervisor.fail(str(error), detail=error.detail, unloadable=True)
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        return runner.run(_live(known, options, supervisor))


if __name__ == "__main__":
    sys.exit(main())
