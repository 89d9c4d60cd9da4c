"""Handlers that kill their own process where an event says so. They note each call in a file of $FAULTS_LEDGER."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
import time
from typing import Any

import eventsh

_calls = os.open(os.path.join(os.environ["FAULTS_LEDGER"], "calls"), os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
_worker: list[int] = []


def _note(what: str, data: dict[str, Any]) -> None:
    line = json.dumps([what, data["case"], data["number"], os.getpid(), _worker[0]])
    os.write(_calls, f"{line}\n".encode())


def _started(data: dict[str, Any], event: str, source: str, pid: int | None) -> None:
    _worker[:] = [data["worker_id"]]


def _handle(data: dict[str, Any], event: str, source: str, pid: int | None) -> None:
    how = data.get("how")
    if how is None:
        _note("done", data)
        return
    _note("dies", data)
    time.sleep(data["after_s"])
    if how == "SIGKILL":
        os.kill(os.getpid(), signal.SIGKILL)
    elif how == "SIGSEGV":
        ctypes.string_at(0)
    else:
        os._exit(3)


def _take_gap(data: dict[str, Any], event: str, source: str, pid: int | None) -> None:
    _note("gap", {"case": data["reason"], "number": data["missed"]})


eventsh.register(_started, "eventsh", "started")
eventsh.register(_take_gap, "eventsh", "gap")
eventsh.register(_handle, "kill")

if __name__ == "__main__":
    # A worker of its own, for a pool without a supervisor of eventsh's.
    eventsh.configure(sys.argv[1], worker_id=int(sys.argv[2]), broker="auto", timeout=60.0)
    signal.pause()
