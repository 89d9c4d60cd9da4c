"""Handlers as in handlers.py, and one that behaves badly, in worker 0 alone, in the way that the event's name says."""

from __future__ import annotations

import os
import sys
import time
from typing import Any

import eventsh
import tests.faults.handlers  # noqa: F401 - registers its handlers, which come before the one below

_slot: int | None = None


@eventsh.on("eventsh", "started")
def note_slot(data: Any, event: str, source: str, pid: int | None) -> None:
    global _slot
    _slot = data["worker_id"]


@eventsh.on("bad")
def misbehave(data: Any, event: str, source: str, pid: int | None) -> None:
    if _slot != 0:
        return
    match event:
        case "slow":
            time.sleep(data)
        case "hang":
            while True:
                time.sleep(1.0)
        case "raise":
            raise ValueError("bad on purpose")
        case "exit":
            sys.exit(3)
        case "die":
            os._exit(3)
        case "fork and exit":
            if os.fork() == 0:
                os._exit(0)
        case "fork and return":
            os.fork()
