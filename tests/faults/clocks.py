"""Row 18: the wall clock is set under a broker and between two, and the host of a broker restarts under its clients.

The machine's own clock is left alone: libfaketime, loaded into the processes that are started here, moves theirs by what
a file says at that moment.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import eventsh
from tests.compatibility.versions import PROGRAM, Worker
from tests.faults.processes import DEADLINE_S, ROOT, ask, environment, wait_until

__all__ = ["LIBRARY", "SHIFTS_S", "YEAR_S", "ClockReport", "Host", "missed_by", "set_clocks"]

LIBRARY = next(iter(sorted(map(str, Path("/usr/lib").glob("*/faketime/libfaketime.so.1")))), None)
YEAR_S = 365 * 24 * 3600
SHIFTS_S = (60, -3600, YEAR_S, -YEAR_S)
# Posts in each broker's life.
_POSTS = 7


class Host:
    """A broker, workers and a poster at one address, whose wall clock can be set. Use it in a `with` statement."""

    def __init__(self, directory: Path, address: str, timeout_s: float, *flags: str) -> None:
        self.directory = directory
        self.address = address
        self.posted = 0
        self.broker: subprocess.Popen[bytes] | None = None
        self._timeout_s = timeout_s
        self._flags = (f"--timeout={timeout_s}", *flags)
        self._stack = ExitStack()
        self._shift = directory / "shift"
        self._brokers = 0
        self.set_clock(0)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def _environment(self) -> dict[str, str]:
        if LIBRARY is None:
            return environment(self.directory)
        return {
            **environment(self.directory),
            "LD_PRELOAD": LIBRARY,
            "FAKETIME_TIMESTAMP_FILE": str(self._shift),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "NO_FAKE_STAT": "1",
        }

    def set_clock(self, shift_s: float) -> None:
        """Set the wall clock of all processes, in seconds from the right time."""
        # By renaming, for they may read it at any moment.
        new = self._shift.with_suffix(".new")
        new.write_text(f"{shift_s:+g}s\n")
        new.rename(self._shift)

    def _start(self, command: list[str], **streams: Any) -> subprocess.Popen[Any]:
        process = subprocess.Popen([sys.executable, *command], env=self._environment, cwd=ROOT, **streams)
        self._stack.callback(_end, process)
        return process

    def start_broker(self, *, boot: str = "", uptime_s: int = 0) -> None:
        """Start a broker, on this host or as if on one that was booted `uptime_s` ago."""
        self._brokers += 1
        module = ["tests.faults.clock_broker", boot, str(uptime_s)] if boot else ["eventsh.runtime.broker"]
        command = ["-m", *module, "--address", self.address, "--linger=none", *self._flags]
        with (self.directory / f"broker-{self._brokers}.err").open("wb") as err:
            self.broker = self._start(command, stderr=err)
        wait_until(lambda: self.state is not None, "the broker listens")

    def kill_broker(self) -> None:
        assert self.broker is not None
        self.broker.kill()
        self.broker.wait()

    @property
    def state(self) -> dict[str, Any] | None:
        return ask(self.address)

    def start_worker(self, name: str) -> Worker:
        journal = self.directory / name
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        with (self.directory / f"{name}.err").open("wb") as err:
            process = self._start([PROGRAM, "worker", self.address, str(journal)], stderr=err, **pipes)
        assert process.stdout is not None
        assert process.stdout.readline().startswith("ready")
        return Worker(process, journal)

    def wait_attached(self, count: int) -> None:
        def is_there() -> bool:
            state = self.state
            return state is not None and sum(worker["state"] == "attached" for worker in state["workers"]) == count

        wait_until(is_there, f"{count} workers are attached")

    @contextmanager
    def poster(self) -> Iterator[eventsh.Events]:
        with eventsh.Events(self.address, role="observer", broker="never", timeout=DEADLINE_S) as events:
            yield events

    def post(self, events: eventsh.Events, count: int = _POSTS) -> None:
        """Post, and wait until every live worker has it."""
        for _ in range(count):
            self.posted += 1
            events.post("app", "e", self.posted)
        events.flush(DEADLINE_S)


def _end(process: subprocess.Popen[Any]) -> None:
    if process.poll() is None:
        process.send_signal(signal.SIGCONT)
        process.kill()
    process.communicate()


def missed_by(worker: Worker) -> int:
    return sum(gap["missed"] for gap in worker.gaps)


@dataclass(slots=True)
class ClockReport:
    """What became of a campaign. Each worker handles a post or is told that it missed it."""

    seed: int
    brokers: int = 0
    posted: int = 0
    handled: dict[str, int] = field(default_factory=dict)
    told: dict[str, int] = field(default_factory=dict)
    twice: int = 0
    took_s: float = 0.0

    @property
    def lost(self) -> int:
        return sum(max(0, self.posted - self.handled[name] - self.told[name]) for name in self.handled)

    @property
    def told_too_much(self) -> int:
        return sum(max(0, self.handled[name] + self.told[name] - self.posted) for name in self.handled)

    @property
    def faults(self) -> int:
        return self.lost + self.twice

    def __str__(self) -> str:
        return (
            f"row 18, seed {self.seed}: {self.brokers} brokers killed and the clock set each time, {self.took_s:.0f} s\n"
            f"  posted {self.posted}, handled {self.handled}, told as gap {self.told} (too much {self.told_too_much}),"
            f" lost {self.lost}, twice {self.twice}"
        )


def set_clocks(kills: int, seed: int, directory: Path, timeout_s: float = 2.0) -> ClockReport:
    """Kill brokers, and set the clock under each and before the next; one worker stands still for some of them, so that
    it misses parts of their posts and all posts of some."""
    draw, began = random.Random(seed), time.monotonic()
    report = ClockReport(seed)
    with Host(directory, f"unix:{directory}/e.sock", timeout_s) as host:
        host.start_broker()
        workers = {name: host.start_worker(name) for name in ("steady", "away")}
        with host.poster() as events:
            while report.brokers < kills:
                host.wait_attached(2)
                host.post(events)
                os.kill(workers["away"].process.pid, signal.SIGSTOP)
                for _ in range(draw.randint(1, 3)):
                    host.post(events)
                    host.set_clock(draw.choice(SHIFTS_S))
                    host.post(events)
                    host.kill_broker()
                    host.set_clock(draw.choice(SHIFTS_S))
                    host.start_broker()
                    host.wait_attached(1)
                    report.brokers += 1
                os.kill(workers["away"].process.pid, signal.SIGCONT)
            host.wait_attached(2)
            events.post("app", "last", None)
            events.flush(DEADLINE_S)
            for worker in workers.values():
                wait_until(lambda worker=worker: worker.data_of("last"), "the last event is handled")  # type: ignore[misc]
    report.posted = host.posted
    for name, worker in workers.items():
        numbers = worker.data_of("e")
        report.handled[name], report.told[name] = len(set(numbers)), missed_by(worker)
        report.twice += len(numbers) - len(set(numbers))
    report.took_s = time.monotonic() - began
    return report
