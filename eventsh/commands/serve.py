"""`eventsh serve`: a broker and a pool of workers under one supervisor.

Decides what the pool's programs are and what is said at the start. Never prints: the caller gives `say`.
"""

from __future__ import annotations

import asyncio
import logging
import os
import shlex
import shutil
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NoReturn

from eventsh.address import Address, parse_address
from eventsh.commands.status import status
from eventsh.errors import ConfigureError, EventError, TransportError
from eventsh.escape import expressible
from eventsh.options import Options, broker_arguments
from eventsh.plugins import find_transport
from eventsh.recording.segments import zstandard
from eventsh.recording.writer import Writer
from eventsh.runtime.election import lock_address, unlock_address
from eventsh.runtime.endpoint import find_endpoint
from eventsh.runtime.interpreter import python_command, python_environment
from eventsh.runtime.loader import is_file_name
from eventsh.runtime.log import LogFormat, configure_logging
from eventsh.runtime.pool import Pool
from eventsh.runtime.presence import keep_lock_file
from eventsh.runtime.process import Program
from eventsh.runtime.token import read_token
from eventsh.runtime.worker import worker_arguments

if TYPE_CHECKING:
    from eventsh.transport import Connection, Transport

__all__ = ["DEFAULT_STOP_TIMEOUT_S", "DEFAULT_WORKERS", "ServeArguments", "serve"]

DEFAULT_WORKERS = 4
# Twice the default of `timeout`, so that a worker whose last events wait for a slow one can still drain.
DEFAULT_STOP_TIMEOUT_S = 10.0
# How long the broker that has the address is asked for its pid.
_ASK_S = 1.0

_log = logging.getLogger("eventsh")


@dataclass(frozen=True, slots=True)
class ServeArguments:
    """What to serve. `handlers` are files and modules, for every worker; without any, workers print what they get."""

    address: Address
    workers: int = DEFAULT_WORKERS
    handlers: tuple[str, ...] = ()
    options: Options = field(default_factory=Options)
    log_format: LogFormat = "text"
    stop_timeout_s: float = DEFAULT_STOP_TIMEOUT_S

    def __post_init__(self) -> None:
        if not 0 <= self.workers <= self.options.max_slots:
            raise ConfigureError(
                f"workers must be from 0 to {self.options.max_slots} (max_slots), not {self.workers}", option="workers"
            )
        for name in self.handlers:
            if is_file_name(name) and not os.path.isfile(name):
                raise ConfigureError(f"handlers: there is no file {name!r}", option="handlers")


def serve(arguments: ServeArguments, say: Callable[[str], None]) -> int:
    """Run a broker and its workers until a signal stops them; gives the exit status of the command.

    0 after SIGTERM, SIGINT or the end of the terminal, also if a worker had to be killed because it did not stop in
    time (which is logged); 1 when a process could not be kept running; 128 + the number of a second signal, which
    kills at once. `say` gets each line for the person who started it. Logs to stderr. Call it in the main thread.
    Raises EventError when the pool can't be started, TransportError when another broker has the address.
    """
    transport = find_transport(arguments.address.scheme).with_options(arguments.options)
    transport.check_address(arguments.address)
    if arguments.options.token_file is not None:
        # Here, where its mistake is the command's own, and not only in each child.
        read_token(arguments.options.token_file)
    lock = lock_address(transport, arguments.address)
    if lock is None:
        raise TransportError(
            f"a broker is already running at {arguments.address}{_whose(arguments.address)}: stop it, or choose another"
            " address with --listen"
            " (one that a program started ends by itself, seconds after the last that is attached)"
        )
    try:
        _check_recording(arguments.options)
        configure_logging(arguments.log_format)
        if sys.stderr.isatty() and arguments.log_format == "text":
            # Whoever sits there is told in `pool_ready` what matters of the start, and nothing else but what goes wrong.
            _log.setLevel(logging.WARNING)
        return asyncio.run(_run(arguments, _Plan(arguments, transport, lock, say)))
    finally:
        # Held here also while a broker is restarted, so that the address is never anybody else's in between.
        unlock_address(transport, arguments.address, lock)


def _whose(address: Address) -> str:
    """Return the pid to stop, for people; nothing if the broker does not say it at once."""
    try:
        broker = status(str(address), timeout_s=_ASK_S)["broker"]
    except EventError:
        return ""
    return f" (pid {broker['supervisor'] or broker['pid']})"


def _check_recording(options: Options) -> None:
    """Say at once what would otherwise be the broker's trouble, again and again."""
    if options.record is not None:
        Writer(options.record).close()
    if options.record_compress:
        zstandard()
    directory = options.flight_dir or "."
    if options.flight_recorder is not None and not os.access(directory, os.W_OK | os.X_OK):
        raise ConfigureError(f"flight_dir: {directory!r} is no directory that can be written to", option="flight_dir")


async def _run(arguments: ServeArguments, plan: _Plan) -> int:
    # A socket that can't be is told in one line and at once, and not by a broker that is started again and again. The
    # lock is ours, so nobody else listens there; whoever comes meanwhile comes again.
    await plan.try_listening()
    limit, stop_timeout_s = arguments.options.max_slots, arguments.stop_timeout_s
    keeping = asyncio.create_task(plan.keep_lock(), name="keep the lock")
    try:
        return await Pool(plan, arguments.workers, max_workers=limit, stop_timeout_s=stop_timeout_s).run()
    finally:
        keeping.cancel()


class _Plan:
    """The programs of `serve`, for the pool."""

    def __init__(self, arguments: ServeArguments, transport: Transport, lock: int, say: Callable[[str], None]) -> None:
        self._arguments = arguments
        self._transport = transport
        self._lock = lock
        self._say = say
        self._address = arguments.address
        self._listening = False
        self._env = python_environment()

    def broker_program(self, workers: int) -> Program:
        # The slots exist from the start: nothing that is posted before the last worker is there passes it by.
        # A supervised broker is ended by its supervisor, never by itself.
        options = self._arguments.options.replace(slots=workers, linger=None)
        flags = ["--address", str(self._address), "--log-format", self._arguments.log_format]
        flags += [f"--supervisor-pid={os.getpid()}"]
        flags += ["--lock-fd", str(self._lock), "--keep-lock-file", *broker_arguments(options)]
        return Program((*python_command("eventsh.runtime.broker"), *flags), (self._lock,), self._env)

    def worker_program(self, worker_id: int) -> Program:
        arguments = self._arguments
        flags = ["--address", str(self._address), "--worker-id", str(worker_id), "--log-format", arguments.log_format]
        flags += [f"--stop-timeout-s={arguments.stop_timeout_s}", *worker_arguments(arguments.options)]
        # One argument each, so that a name that begins with a dash is not taken for a flag.
        flags += [f"--handlers={name}" for name in arguments.handlers]
        return Program((*python_command("eventsh.runtime.worker"), *flags), env=self._env)

    def broker_ready(self, facts: Mapping[str, Any]) -> None:
        if self._listening:
            return
        self._listening = True
        told = facts.get("address")
        if told and told != expressible(str(self._address)):
            # With port 0 the system chose one; workers need it, and so does the next broker.
            self._address = parse_address(told)
        self._say(f"listening at {self._address} (pid {os.getpid()})")

    def pool_ready(self) -> None:
        _log.setLevel(logging.NOTSET)
        workers = self._arguments.workers
        if workers:
            self._say(f"{workers} worker{'s are' if workers > 1 else ' is'} ready; in another terminal, type:")
        else:
            self._say("no workers here: attach your own to this address; in another terminal, type:")
        self._say(f"    {_command_as_typed()} post{self._where()} source event '<\"k\":1>'")
        reload = f", kill -HUP {os.getpid()} reloads the handlers" if workers else ""
        self._say(f"Ctrl-C stops it{reload}")

    def _where(self) -> str:
        """The options that lead to this address, if some are needed."""
        options = self._arguments.options
        flags = {"--token-file": options.token_file, "--tls-ca": options.tls_ca or options.tls_cert}
        flags["--tls-name"] = options.tls_name
        if find_endpoint(None)[1] != self._address:
            flags["--address"] = str(self._address)
        return "".join(f" {flag} {shlex.quote(text)}" for flag, text in flags.items() if text)

    async def clean_up(self, broker_status: int | None) -> None:
        if broker_status in (None, 0):
            return
        # A broker that was killed leaves its endpoint behind. Only the transport knows what that is: it removes what is
        # stale when it listens, and the rest when it stops listening.
        with suppress(EventError):
            await self.try_listening()

    async def keep_lock(self) -> None:
        """Keep the lock's file at its name, until cancelled. The next broker inherits the lock."""
        await keep_lock_file(self._transport, self._arguments.address, self._lock)

    async def try_listening(self) -> None:
        """Listen for a moment. Raises TransportError. Only for who has the lock."""
        listener = await self._transport.listen(self._address, _refuse)
        await listener.close()


def _command_as_typed() -> str:
    """What runs this program again from the same directory: in a virtual environment that is not activated, its path."""
    typed = sys.argv[0]
    if os.path.basename(typed) != "eventsh":
        return f"{shlex.quote(sys.executable)} -m eventsh"
    found = shutil.which("eventsh")
    if found is not None and os.path.realpath(found) == os.path.realpath(typed):
        return "eventsh"
    return shlex.quote(min(typed, os.path.relpath(typed), key=len))


def _refuse(connection: Connection) -> NoReturn:
    raise TransportError("stopping")
