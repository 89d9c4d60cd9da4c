"""What the applications under test write down: a line for each event that a handler was given.

A file, for the processes that write are killed. Each line is one write, so that those of several processes don't mix.
"""

from __future__ import annotations

import json
import os
from typing import Any, NamedTuple

__all__ = ["Line", "read", "record"]


class Line(NamedTuple):
    """One event in one process. `poster` is the pid of who posted it."""

    pid: int
    source: str
    event: str
    data: Any
    poster: int | None


def record(data: Any, event: str, source: str, pid: int | None) -> None:
    """A handler."""
    line = json.dumps([os.getpid(), source, event, data, pid]) + "\n"
    descriptor = os.open(os.environ["JOURNAL"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(descriptor, line.encode())
    finally:
        os.close(descriptor)


def read(path: str) -> list[Line]:
    """Every line so far."""
    try:
        with open(path, encoding="utf-8") as file:
            return [Line(*json.loads(line)) for line in file]
    except FileNotFoundError:
        return []
