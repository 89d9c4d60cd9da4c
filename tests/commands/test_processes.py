"""Signals to the processes of a pool: to real ones, that a broker tells of."""

from __future__ import annotations

import signal
import subprocess
from pathlib import Path

import pytest

from eventsh.commands import processes
from eventsh.errors import EventError
from eventsh.runtime.host import pid_space, process_state
from tests.cli.pool import COMMAND, environment, run, wait_until
from tests.container import CONTAINER, needs_container


def test_a_pause_that_fails_leaves_no_worker_stopped(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    gone = subprocess.Popen(["true"])
    gone.wait()
    alive = [subprocess.Popen(["sleep", "60"]) for _ in range(2)]
    pids = [alive[0].pid, alive[1].pid, gone.pid]

    def status(address: str | None, *, timeout_s: float) -> dict[str, object]:
        # As of a moment ago: the last one has ended since.
        rows = [{"worker_id": at, "pid": pid, "host": pid_space(), "state": "attached"} for at, pid in enumerate(pids)]
        return {"workers": rows}

    monkeypatch.setattr(processes, "status", status)
    address = f"unix:{tmp_path}/e.sock"

    def states() -> list[str]:
        return [process_state(process.pid) for process in alive]

    try:
        # Somebody else's affair, from the beginning to the end.
        alive[0].send_signal(signal.SIGSTOP)
        wait_until(lambda: states() == ["T", "S"], "one is stopped")
        with pytest.raises(EventError, match=r"worker 2 \(pid [0-9]+\) has ended"):
            processes.pause(address, None)
        wait_until(lambda: states() == ["T", "S"], "the other one goes on")
        pids.pop()
        assert processes.pause(address, None) == {1: alive[1].pid}
        wait_until(lambda: states() == ["T", "T"], "both are stopped")
        assert processes.resume(address, None) == {0: alive[0].pid, 1: alive[1].pid}
        wait_until(lambda: states() == ["S", "S"], "both go on")
    finally:
        for process in alive:
            process.kill()
            process.wait()


@needs_container
def test_processes_of_another_container_get_no_signal(tmp_path: Path):
    address = f"unix:{tmp_path}/run/e.sock"
    container = subprocess.Popen(
        [*CONTAINER, *COMMAND, "serve", "--workers", "1"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=environment(address),
    )
    try:
        wait_until(lambda: run(address, "post", "a", "b", "--wait").status == 0, "it serves")
        # A signal that does nobody any harm: there may be a process of that number here.
        for line, who in (("kill 0 --signal URG", "worker 0"), ("pause", "worker 0"), ("reload", "the supervisor")):
            done = run(address, "shell", "-c", line)
            assert (done.status, f"can't signal {who}: it runs in another container" in done.err) == (1, True), done.err
    finally:
        container.kill()
        container.wait()
