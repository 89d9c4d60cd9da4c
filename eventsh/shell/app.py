"""Open a shell: attach or start a pool, run lines or a prompt, and put everything in order again."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from typing import Any

from eventsh.cli.terminal import wants_color
from eventsh.commands.outcome import Exit, exit_status
from eventsh.commands.status import status
from eventsh.errors import EventError, UsageError
from eventsh.escape import escape
from eventsh.runtime.endpoint import find_endpoint
from eventsh.shell.render import Paint
from eventsh.shell.script import read_script
from eventsh.shell.shell import Leave, Shell
from eventsh.shell.verbs import make_verbs

__all__ = ["run_shell"]

_TIMEOUT_S = 10.0
_OFFERED_WORKERS = 4


def run_shell(
    address: str | None, *, workers: int | None, handlers: Sequence[str], commands: Sequence[str] | None
) -> int:
    """Run a shell to its end; gives the exit status. Raises EventError when it can't be opened."""
    found = str(find_endpoint(address)[1])
    # For every verb, and for every program that is started from here.
    os.environ["EVENTSH_ADDRESS"] = found
    is_interactive = commands is None and sys.stdin.isatty() and sys.stdout.isatty()
    paint = Paint(wants_color(sys.stdout, os.environ))
    shell = Shell(found, make_verbs(), paint, sys.stdout, is_interactive=is_interactive)
    shell.attach = lambda: _attach(shell)
    _log_here(shell)
    try:
        if is_interactive:
            from eventsh.shell.prompt import run_prompt

            return run_prompt(shell, lambda: _open(shell, workers, handlers))
        lines = _lines(shell, commands)
        _open(shell, workers, handlers)
        with suppress(Leave):
            return _run_all(shell, lines)
        return 0
    finally:
        close(shell)


def _lines(shell: Shell, commands: Sequence[str] | None) -> list[tuple[str, Iterable[tuple[int, str]]]]:
    if commands is not None:
        return [("-c", [(number, line)]) for number, line in enumerate(commands, 1)]
    return [("standard input", read_script(_rows(), shell.verbs))]


def _rows() -> Iterator[str]:
    """Yield each row of standard input when it arrives."""
    try:
        yield from iter(sys.stdin.readline, "")
    except OSError as error:
        raise UsageError(f"can't read standard input: {error.strerror}") from None


def _run_all(shell: Shell, parts: list[tuple[str, Iterable[tuple[int, str]]]]) -> int:
    for name, lines in parts:
        if end := shell.run_lines(lines, name):
            return end
    return 0


def _open(shell: Shell, workers: int | None, handlers: Sequence[str]) -> dict[str, Any] | None:
    """Attach; gives the broker's status, None where there is none and none was wanted."""
    if workers is not None:
        start_pool(shell, workers, handlers)
    try:
        answer = status(shell.address, timeout_s=_TIMEOUT_S)
    except EventError as error:
        if exit_status(error) is not Exit.NO_BROKER or not shell.is_interactive:
            raise
        if not _offer_pool(shell, error):
            return None
        answer = status(shell.address, timeout_s=_TIMEOUT_S)
    _attach(shell)
    return answer


def _attach(shell: Shell) -> None:
    """Attach to the broker that is there. Raises EventError."""
    # Tells at once when there is none; the connection would wait for one.
    status(shell.address, timeout_s=_TIMEOUT_S)
    from eventsh.shell.link import Link

    link = Link(
        shell.address, shell.watcher, on_state=lambda attached: _tell_state(shell, attached), on_look=shell.tick
    )
    link.open()
    shell.link = link


def _tell_state(shell: Shell, attached: bool) -> None:
    """The connection is lost, or back. Called in its thread, which must not wait for itself."""
    if attached:
        shell.show(shell.paint("yellow", "attached again; what was posted in between was not seen"))
        threading.Thread(target=shell.attached_again, name="eventsh-shell-again", daemon=True).start()
    elif not shell.is_closing:
        shell.show(shell.paint("yellow", "the broker is gone; attaching again as soon as there is one"))


def _offer_pool(shell: Shell, error: EventError) -> bool:
    shell.show(escape(str(error)))
    try:
        answer = input(f"Start a pool of {_OFFERED_WORKERS} workers here, which ends with this shell? [Y/n] ")
    except EOFError:
        return False
    if answer.strip().lower() not in ("", "y", "yes"):
        return False
    start_pool(shell, _OFFERED_WORKERS, [])
    return True


def start_pool(shell: Shell, workers: int, handlers: Sequence[str]) -> None:
    """Start a pool that ends with the shell. Raises EventError."""
    from eventsh.shell.pool import HostedPool

    if shell.is_interactive:
        shell.show(
            shell.paint("dim", f"starting {workers} worker{'' if workers == 1 else 's'} at {escape(shell.address)}")
        )
    pool = HostedPool(shell.address, workers, handlers, shell.show_pool_line, shell.show_pool_log)
    shell.pool = pool
    pool.wait_ready()


def _log_here(shell: Shell) -> None:
    """What eventsh warns of in this process is shown as all else is; Python would write it into the prompt."""

    class Above(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            shell.show_record(record)

    log = logging.getLogger("eventsh")
    log.addHandler(Above(logging.WARNING))
    log.propagate = False


def close(shell: Shell) -> None:
    """End what the shell started, and undo what it did to others."""
    shell.is_closing = True
    for pid in shell.paused:
        with suppress(OSError):
            os.kill(pid, signal.SIGCONT)
    if shell.link is not None:
        shell.link.close()
    if shell.pool is not None:
        shell.pool.stop()
