"""What processes that may be killed leave behind: fixed records in a file each, appended with one write(2) a record.

What was written before a `kill -9` stays in the file: the kernel has it, not the process.
"""

from __future__ import annotations

import os
import struct
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any, NamedTuple

__all__ = ["NO_SLOT", "SLOW_S", "Journal", "Kind", "Life", "Record", "read_lives"]

# kind, slot (0xFFFF: none), poster, number, time. Smaller than a page, so a write is never cut in two.
_RECORD = struct.Struct("<BxHIQQ")
NO_SLOT = 0xFFFF
# How long the handler of an event "slow" keeps its worker.
SLOW_S = 0.15


class Kind(IntEnum):
    STARTED = 1
    JOINED = 2
    """The broker said that this very process is attached; `number` is the broker's pid."""
    HANDLED = 3
    SLOW = 4
    """As HANDLED, by a handler that takes long; SLOW_ENDED is its end."""
    SLOW_ENDED = 5
    UNIQUE = 6
    """`number` is the key's."""
    GAP = 7
    """`number` events were told as missed."""
    POSTED = 8
    POSTED_KEY = 9
    UNIQUE_ENDED = 10
    """As UNIQUE, at the end of its handler. Only in handlers of unique_handlers.py."""


class Record(NamedTuple):
    kind: int
    slot: int
    poster: int
    number: int
    time_ns: int


@dataclass(frozen=True, slots=True)
class Life:
    """The file of one process."""

    pid: int
    started_ns: int
    path: Path

    def records(self) -> Iterator[Record]:
        data = self.path.read_bytes()
        whole = len(data) - len(data) % _RECORD.size
        return map(Record._make, _RECORD.iter_unpack(memoryview(data)[:whole]))


class Journal:
    """The file of this process, and the handlers that write it."""

    def __init__(self, directory: str | Path) -> None:
        path = Path(directory) / f"{os.getpid()}-{time.monotonic_ns()}.ledger"
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL, 0o600)
        self._slot = NO_SLOT
        self._pid = os.getpid()

    def write(self, kind: Kind, poster: int = 0, number: int = 0) -> None:
        os.write(self._file, _RECORD.pack(kind, self._slot, poster, number, time.monotonic_ns()))

    def load(self, data: Any, event: str, source: str, pid: int | None) -> None:
        """A handler of all events of the source "load"."""
        poster, number = data[:2]
        if event == "unique":
            self.write(Kind.UNIQUE, poster, number)
        elif event == "slow":
            self.write(Kind.SLOW, poster, number)
            threading.Event().wait(SLOW_S)
            self.write(Kind.SLOW_ENDED, poster, number)
        else:
            self.write(Kind.HANDLED, poster, number)

    def life(self, data: Any, event: str, source: str, pid: int | None) -> None:
        """A handler of all events of the source "eventsh"."""
        if event == "started":
            self._slot = NO_SLOT if data["worker_id"] is None else data["worker_id"]
            self.write(Kind.STARTED)
        elif event == "worker_joined" and data["pid"] == self._pid:
            self.write(Kind.JOINED, data["worker_id"], pid or 0)
        elif event == "workers_joined":
            for worker in data["workers"]:
                self.life(worker, "worker_joined", source, pid)
        elif event == "gap":
            self.write(Kind.GAP, 0, data["missed"])


def read_lives(directory: Path) -> list[Life]:
    """Every process that kept a journal there, the first one first."""
    lives = []
    for path in directory.glob("*.ledger"):
        pid, started_ns = path.stem.split("-")
        lives.append(Life(int(pid), int(started_ns), path))
    return sorted(lives, key=lambda life: life.started_ns)
