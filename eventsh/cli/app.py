"""The program `eventsh`: from its arguments to its exit status.

Decides how trouble is told: a mistake of the user's is one line on standard error, never a traceback. What the commands
are is in cli/verbs.py, which is imported inside, so that Ctrl-C is quiet also while Python still loads.
"""

from __future__ import annotations

import os
import sys
from typing import NoReturn, TextIO

__all__ = ["main"]


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run the command line and exit."""
    try:
        _open_streams()
        status = _finish_output(_run(sys.argv[1:] if arguments is None else arguments))
    except KeyboardInterrupt:
        status = 130
    sys.exit(status)


def _run(arguments: list[str]) -> int:
    from eventsh.commands.outcome import exit_status
    from eventsh.errors import EventError

    try:
        from eventsh.cli.verbs import run_verb

        return run_verb(arguments)
    except EventError as error:
        return _complain(str(error), int(exit_status(error)))
    except BrokenPipeError:
        # As any filter: when nobody reads any more there is nothing more to do, and nobody to tell.
        return 0
    except OSError as error:
        # Commands turn what goes wrong with a broker or a file into an EventError: what is left is the output.
        return _complain(f"can't write the output: {error.strerror or error}", 1)


def _complain(message: str, status: int) -> int:
    from eventsh.escape import escape

    sys.stderr.write(f"eventsh: {escape(message)}\n")
    return status


def _open_streams() -> None:
    """Have all three streams, also where the user closed some: the next file or socket would take their numbers."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)
    if sys.stdin is None:
        sys.stdin = open(0, closefd=False)
    sys.stdout = _writable(sys.stdout, 1)
    sys.stderr = _writable(sys.stderr, 2)


def _writable(stream: TextIO | None, descriptor: int) -> TextIO:
    # An event can hold any character, and not every terminal's encoding has it.
    if stream is None:
        return open(descriptor, "w", errors="backslashreplace", closefd=False)
    stream.reconfigure(errors="backslashreplace")  # type: ignore[attr-defined]
    return stream


def _finish_output(status: int) -> int:
    """Write what is still buffered; gives the exit status. Left to Python, a failure would be a message of its own."""
    try:
        sys.stdout.flush()
    except OSError as error:
        # What could not be written is tried again at the end, and must not fail again.
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.close(null)
        if not isinstance(error, BrokenPipeError):
            return _complain(f"can't write the output: {error.strerror or error}", 1)
    return status


if __name__ == "__main__":
    main()
