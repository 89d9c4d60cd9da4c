"""`reload`, `kill` and `pause`: signals to the processes of a pool on this host. Decides whose they are; prints nothing."""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from typing import Any

from eventsh.commands.status import status
from eventsh.errors import EventError, UsageError
from eventsh.runtime.endpoint import find_endpoint
from eventsh.runtime.host import pid_space, process_state

__all__ = ["kill", "pause", "reload", "resume"]

_TIMEOUT_S = 10.0


def reload(address: str | None) -> int:
    """Have the pool's supervisor load its handlers anew, worker by worker; gives the supervisor's pid. Raises EventError
    where no supervisor is known."""
    answer = _local_status(address)
    pid = answer["broker"]["supervisor"]
    if pid is None:
        raise EventError(
            "can't reload: this broker was not started by 'eventsh serve', so nobody restarts its workers;"
            " reload the program that they belong to"
        )
    _check_here(answer["broker"], "the supervisor")
    _signal(pid, signal.SIGHUP, "the supervisor")
    return int(pid)


def kill(address: str | None, worker: int, signal_name: str) -> int:
    """Send a signal to a worker; gives its pid. Raises UsageError and EventError."""
    number = _signal_of(signal_name)
    pid = _pids(address, worker)[worker]
    _signal(pid, number, f"worker {worker}")
    return pid


def pause(address: str | None, worker: int | None) -> dict[int, int]:
    """Stop a worker, or all, until `resume`; gives the pids of those that were not stopped before, by worker. Raises
    EventError, and none is stopped by it."""
    found = {number: pid for number, pid in _pids(address, worker).items() if process_state(pid) != "T"}
    done: list[int] = []
    try:
        for number, pid in found.items():
            _signal(pid, signal.SIGSTOP, f"worker {number}")
            done.append(pid)
    except BaseException:
        # Who asked for it does not get to know which are stopped, and would leave them so.
        for pid in done:
            with suppress(OSError):
                os.kill(pid, signal.SIGCONT)
        raise
    return found


def resume(address: str | None, worker: int | None) -> dict[int, int]:
    """Have a worker that was paused, or all, go on; gives the pids by worker. Raises EventError."""
    found = _pids(address, worker)
    for number, pid in found.items():
        _signal(pid, signal.SIGCONT, f"worker {number}")
    return found


def _pids(address: str | None, worker: int | None) -> dict[int, int]:
    """Of one worker, or of all that are attached."""
    workers = _local_status(address)["workers"]
    known = ", ".join(str(row["worker_id"]) for row in workers) or "none"
    found = [
        row for row in workers if worker in (None, row["worker_id"]) and row["state"] not in ("absent", "starting")
    ]
    if worker is not None and not found:
        raise UsageError(f"there is no worker {worker} attached; the workers are {known}")
    if not found:
        raise EventError("no worker is attached")
    for row in found:
        _check_here(row, f"worker {row['worker_id']}")
    return {row["worker_id"]: row["pid"] for row in found}


def _local_status(address: str | None) -> dict[str, Any]:
    """The broker's status, if the pids in it are of this host, and vouched for by its kernel."""
    transport, found = find_endpoint(address)
    if not transport.capabilities.peer_credentials:
        raise EventError(
            f"can't signal processes at {found}: only over a unix socket is it sure that they are of this host and user"
        )
    return status(address, timeout_s=_TIMEOUT_S)


def _check_here(row: dict[str, Any], name: str) -> None:
    """Raise EventError where the pids in `row` are not those of this process's container: the same number may be that of
    somebody else here."""
    if row["host"] != pid_space():
        raise EventError(f"can't signal {name}: it runs in another container; do it from a shell in that one")


def _signal_of(name: str) -> signal.Signals:
    plain = name.upper().removeprefix("SIG")
    try:
        return signal.Signals[f"SIG{plain}"]
    except KeyError:
        raise UsageError(f"there is no signal {name[:40]!r}: write for example TERM or KILL") from None


def _signal(pid: int, number: signal.Signals, name: str) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        raise EventError(f"{name} (pid {pid}) has ended") from None
    except PermissionError:
        raise EventError(f"{name} (pid {pid}) belongs to another user: only that user can signal it") from None
