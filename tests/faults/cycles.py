"""Row 13: `eventsh serve` is started and ended, in every way and at any moment, and nothing of it may stay."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from tests.faults.processes import HANDLERS, environment, is_alive

__all__ = ["MARK", "CycleReport", "leftovers", "run_cycles"]

# In the environment of everything that one cycle starts: so it is found wherever it went.
MARK = "FAULTS_CYCLE"
# How long after its start a pool is ended, at most: from before its first import to long after it is ready.
_LIFE_S = 1.6
# What a child may take to end by itself once its supervisor was killed.
_ORPHAN_S = 30.0
_STATUS = {signal.SIGTERM: 0, signal.SIGINT: 0}
# The default of a signal that came before Python could take it, or before `serve` did.
_EARLY_STATUS = {signal.SIGTERM: {-signal.SIGTERM, 143}, signal.SIGINT: {-signal.SIGINT, 130, 1}}


@dataclass(slots=True)
class CycleReport:
    """How many were started, how each was ended, and what was wrong after that."""

    seed: int
    cycles: int = 0
    ends: Counter[str] = field(default_factory=Counter)
    stop_s: list[float] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        ends = ", ".join(f"{name} {count}" for name, count in sorted(self.ends.items()))
        lines = [f"row 13, seed {self.seed}: {self.cycles} starts and stops ({ends}), {len(self.faults)} faults"]
        if self.stop_s:
            lines.append(f"  longest stop {max(self.stop_s):.2f} s")
        return "\n".join(lines + [f"  FAULT: {fault}" for fault in self.faults[:40]])


def leftovers(mark: str) -> list[int]:
    """Every living process with this mark in its environment."""
    wanted, found = f"{MARK}={mark}".encode(), []
    for entry in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):
            if wanted in entry.read_bytes().split(b"\0") and is_alive(int(entry.parent.name)):
                found.append(int(entry.parent.name))
    return found


def run_cycles(cycles: int, seed: int, say: Callable[[str], None], workers: int = 2) -> CycleReport:
    """Start a pool and end it, `cycles` times."""
    draw, report, told = random.Random(seed), CycleReport(seed), 0
    with tempfile.TemporaryDirectory(prefix="evf-", dir="/tmp") as directory:
        for number in range(cycles):
            _cycle(Path(directory), f"{os.getpid()}-{number}", workers, draw, report)
            report.cycles += 1
            for fault in report.faults[told:]:
                say(f"FAULT: {fault}")
            told = len(report.faults)
            for ledger in Path(directory).glob("*.ledger"):
                ledger.unlink()
            if report.cycles % 25 == 0:
                say(f"{report.cycles}/{cycles} starts and stops, {len(report.faults)} faults")
    return report


def _cycle(directory: Path, mark: str, workers: int, draw: random.Random, report: CycleReport) -> None:
    run = directory / "run"
    # What a killed supervisor left behind is taken over by the next one, if that comes so far.
    before = {path.name for path in run.iterdir()} if run.exists() else set()
    how = draw.choice((signal.SIGTERM, signal.SIGINT, signal.SIGKILL))
    # Half of them at any moment of the start.
    life_s = draw.uniform(0.0, _LIFE_S)
    command = [sys.executable, "-m", "eventsh", "serve", "--workers", str(workers), "--handlers", HANDLERS]
    with (directory / "serve.err").open("wb") as err:
        process = subprocess.Popen(
            [*command, "--listen", f"unix:{run}/e.sock"],
            stdout=subprocess.DEVNULL,
            stderr=err,
            env={**environment(directory), MARK: mark},
        )
    try:
        time.sleep(life_s)
        begun = time.monotonic()
        process.send_signal(how)
        status = process.wait(30.0)
        report.stop_s.append(time.monotonic() - begun)
    except subprocess.TimeoutExpired:
        report.faults.append(f"{mark}: {how.name} after {life_s:.2f} s did not end it")
        process.kill()
        status = process.wait()
    report.ends[how.name] += 1
    _look(directory, mark, how, life_s, status, before, report)


def _look(
    directory: Path,
    mark: str,
    how: signal.Signals,
    life_s: float,
    status: int,
    before: set[str],
    report: CycleReport,
) -> None:
    """What the end left behind, and whether its status is by convention."""
    where = f"{mark}: {how.name} after {life_s:.2f} s"
    log = (directory / "serve.err").read_text(errors="replace")
    if how in _STATUS and status != _STATUS[how] and not (status in _EARLY_STATUS[how] and "is ready" not in log):
        report.faults.append(f"{where}: exit status {status}: {log[-500:]}")
    end = time.monotonic() + (_ORPHAN_S if how is signal.SIGKILL else 0.0)
    while (left := leftovers(mark)) and time.monotonic() < end:
        time.sleep(0.02)
    for pid in left:
        report.faults.append(f"{where}: process {pid} is left")
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    run = directory / "run"
    # A lock's file alone is no sign of anything: it is the lock on it that counts.
    kept = {"e.sock.lock"} if how is signal.SIGKILL or "is ready" not in log else set()
    kept &= before | ({"e.sock.lock"} if how is signal.SIGKILL else set())
    stale = sorted(path.name for path in run.iterdir() if path.name not in kept) if run.exists() else []
    if stale:
        report.faults.append(f"{where}: {stale} is left")
        for name in stale:
            (run / name).unlink()
