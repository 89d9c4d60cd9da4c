"""Signals to the processes of a pool: to real ones, that a broker tells of."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from eventsh.commands import processes
from eventsh.errors import EventError
from tests.cli.pool import wait_until


def test_a_pause_that_fails_leaves_no_worker_stopped(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    gone = subprocess.Popen(["true"])
    gone.wait()
    alive = [subprocess.Popen(["sleep", "60"]) for _ in range(2)]
    pids = [alive[0].pid, alive[1].pid, gone.pid]

    def status(address: str | None, *, timeout_s: float) -> dict[str, object]:
        # As of a moment ago: the last one has ended since.
        return {"workers": [{"worker_id": at, "pid": pid, "state": "attached"} for at, pid in enumerate(pids)]}

    monkeypatch.setattr(processes, "status", status)
    address = f"unix:{tmp_path}/e.sock"
    try:
        with pytest.raises(EventError, match=r"worker 2 \(pid [0-9]+\) has ended"):
            processes.pause(address, None)
        wait_until(lambda: [_state(process.pid) for process in alive] == ["S", "S"], "both go on")
        pids.pop()
        assert processes.pause(address, None) == {0: alive[0].pid, 1: alive[1].pid}
        wait_until(lambda: [_state(process.pid) for process in alive] == ["T", "T"], "both stop")
    finally:
        for process in alive:
            process.kill()
            process.wait()


def _state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
