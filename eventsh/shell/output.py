"""Where a command's output goes: to the terminal, to a pager where it is longer than the screen, to another program."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import sys
from typing import Any, TextIO

from eventsh.cli.terminal import leave_interrupts
from eventsh.errors import UsageError

__all__ = ["Unpaged", "page", "run_system"]

# -F: what fits is only printed; -R: colours are colours; -X: it stays on the screen.
_LESS = ("less", "-FRX")


class Unpaged:
    """A terminal that a command takes for a file, so that it opens no pager."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def isatty(self) -> bool:
        return False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def run_system(command: str, stdin: bytes | None = None) -> int:
    """Run a command of the system's shell on this terminal, with `stdin` as its input; gives its exit status. Raises
    KeyboardInterrupt when Ctrl-C ended it."""
    if not command:
        raise UsageError("a command of the system's shell is missing")
    return _run(["/bin/sh", "-c", command], stdin)


def page(text: str, stream: TextIO, *, wanted: bool) -> None:
    """Show a text; in $PAGER, or else less, if it is longer than the screen."""
    pager = _pager() if wanted and text.count("\n") >= shutil.get_terminal_size().lines - 1 else None
    if pager is None:
        stream.write(text)
        stream.flush()
        return
    stream.flush()
    # Who leaves the pager before the end has seen enough.
    _run(pager, text.encode(errors="backslashreplace"))


def _run(command: list[str], stdin: bytes | None) -> int:
    with leave_interrupts() as interrupts:
        ended = subprocess.run(command, input=stdin, check=False).returncode
    status = ended if ended >= 0 else 128 - ended
    if interrupts and status == 128 + signal.SIGINT:
        raise KeyboardInterrupt
    return status


def _pager() -> list[str] | None:
    """What $PAGER says, else less; None where there is neither, or the terminal can't move its cursor."""
    if os.environ.get("TERM", "dumb") == "dumb" or not sys.__stdout__ or not sys.__stdout__.isatty():
        return None
    try:
        chosen = shlex.split(os.environ.get("PAGER", ""))
    except ValueError:
        chosen = []
    pager = chosen or list(_LESS)
    return pager if shutil.which(pager[0]) else None
