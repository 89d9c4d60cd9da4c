"""Row 6 of FAULTS.md: handlers that can't be imported, and a worker that dies at its start. One short form, no campaign."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from eventsh.runtime.backoff import MAX_RESTARTS
from tests.faults.campaign import directory
from tests.faults.cycles import MARK, leftovers
from tests.faults.processes import DEADLINE_S, environment

# Each start is a line; then it goes wrong.
HANDLERS = """
import os, time
with open({starts!r}, "a") as starts:
    starts.write(f"{{time.monotonic()}}\\n")
{fault}
"""
FAULTS = {
    "import": ("1 / 0", "{handlers}:5: ZeroDivisionError: division by zero"),
    "death": ("os._exit(3)", "exit status 3"),
    "kill": ("os.kill(os.getpid(), 9)", "killed by SIGKILL"),
}


def start(path: Path, name: str) -> subprocess.Popen[bytes]:
    handlers = path / f"{name}.py"
    handlers.write_text(HANDLERS.format(starts=str(path / f"{name}.starts"), fault=FAULTS[name][0]))
    command = [sys.executable, "-m", "eventsh", "serve", "--workers", "3", "--handlers", str(handlers)]
    with (path / f"{name}.err").open("wb") as err:
        return subprocess.Popen(
            [*command, "--listen", f"unix:{path}/run/{name}.sock"],
            stdout=subprocess.DEVNULL,
            stderr=err,
            env={**environment(path), MARK: str(path)},
        )


def test_what_can_not_start_is_tried_a_few_times_and_then_told_with_its_reason_and_status() -> None:
    with directory() as path:
        (path / "run").mkdir(0o700)
        # At the same time, for each takes as long as its pauses.
        processes = {name: start(path, name) for name in FAULTS}
        try:
            for name, process in processes.items():
                log = path / f"{name}.err"
                assert process.wait(DEADLINE_S) == 1, log.read_text()
                last = log.read_text().splitlines()[-1]
                reason = FAULTS[name][1].format(handlers=path / f"{name}.py")
                # The same handlers fail to import each time; a death may be the host's fault.
                attempts = 1 if name == "import" else 1 + MAX_RESTARTS
                told = "can't load its handlers" if name == "import" else f"did not start in {attempts} attempts"
                assert last.endswith(f"giving up: worker 0 {told}: {reason}")
                starts = [float(line) for line in (path / f"{name}.starts").read_text().splitlines()]
                # The other workers are never started on what the first can't load.
                assert len(starts) == attempts
        finally:
            for process in processes.values():
                process.kill()
                process.wait()
        assert not leftovers(str(path))
        assert not list((path / "run").glob("*"))
