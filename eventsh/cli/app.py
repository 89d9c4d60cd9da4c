"""The program `eventsh`: from its arguments to its exit status.

Decides how trouble is told: a mistake of the user's is one line on standard error, never a traceback. What the commands
are is in cli/verbs.py, which is imported inside, so that Ctrl-C is quiet also while Python still loads.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import os
import signal
import sys
from typing import NoReturn, TextIO

__all__ = ["drop_output", "main"]


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run the command line and exit; after Ctrl-C by SIGINT, so that a loop of a shell around it ends too."""
    interrupts: list[KeyboardInterrupt] = []
    # The first that is registered is called last, after all that cleans up.
    atexit.register(_end_by_interrupt, interrupts)
    try:
        _open_streams()
        _load_orjson()
        status = _run(sys.argv[1:] if arguments is None else arguments)
    except KeyboardInterrupt as error:
        if error.args:
            _complain(str(error), 130)
        interrupts.append(error)
        status = 130
    try:
        sys.stderr.flush()
    except OSError:
        # What nobody reads any more changes no exit status.
        drop_output(2)
    # Or Python looks through all of typer for garbage twice before it ends: a seventh of the time that a post takes.
    gc.freeze()
    sys.exit(status)


def _end_by_interrupt(interrupts: list[KeyboardInterrupt]) -> None:
    if not interrupts:
        return
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGINT,))
    # The first process of a container outlives this: it ends with its exit status.
    os.kill(os.getpid(), signal.SIGINT)


def _load_orjson() -> None:
    """Import what everything here needs, with Ctrl-C held back until that is done.

    A KeyboardInterrupt in the midst of orjson's own imports ends the process with a segmentation fault (3.11), and
    they are a good part of what a command takes to start.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT,))
    try:
        import orjson  # noqa: F401 - for those that import it next
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _run(arguments: list[str]) -> int:
    from eventsh.commands.outcome import advice, exit_status
    from eventsh.errors import EventError

    try:
        from eventsh.cli.verbs import run_verb

        status = run_verb(arguments)
        # Left to Python's end, a failure would be a message of its own.
        sys.stdout.flush()
        return status
    except EventError as error:
        return _complain(f"{error}{advice(error)}", int(exit_status(error)))
    except OSError as error:
        # Commands turn what goes wrong with a broker or a file into an EventError: what is left is the output.
        drop_output(1)
        if isinstance(error, BrokenPipeError):
            # As any filter: when nobody reads any more there is nothing more to do, and nobody to tell.
            return 0
        return _complain(f"can't write the output: {error.strerror or error}", 1)


def drop_output(descriptor: int) -> None:
    """Let go of what could not be written: it would be tried again at the end, and fail again."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, descriptor)
    os.close(null)


def _complain(message: str, status: int) -> int:
    from eventsh.escape import escape

    try:
        sys.stderr.write(f"eventsh: {escape(message)}\n")
    except OSError:
        # The exit status still tells.
        drop_output(2)
    return status


def _open_streams() -> None:
    """Have all three streams, also where the user closed some: the next file or socket would take their numbers."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)
    if sys.stdin is None:
        sys.stdin = open(0, closefd=False)  # noqa: SIM115 - it stays open until the end
    sys.stdout = _writable(sys.stdout, 1)
    sys.stderr = _writable(sys.stderr, 2)


def _writable(stream: TextIO | None, descriptor: int) -> TextIO:
    # An event can hold any character, and not every terminal's encoding has it.
    if stream is None:
        return open(descriptor, "w", errors="backslashreplace", closefd=False)
    stream.reconfigure(errors="backslashreplace")  # type: ignore[attr-defined]
    return stream


if __name__ == "__main__":
    main()
