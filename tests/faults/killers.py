"""Row 16: events whose handlers kill their process, in a pool that `serve` runs and in processes of a program's own."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any, Protocol

from eventsh.commands.dead import dead
from eventsh.runtime.blocking import BlockingClient
from eventsh.runtime.endpoint import find_endpoint
from tests.faults.processes import DEADLINE_S, ROOT, Served, ask, environment, wait_until

__all__ = ["CASES", "Case", "KillerReport", "OwnWorkers", "ServedWorkers", "kill_by_events"]

HANDLERS = str(Path(__file__).with_name("killing_handlers.py"))
_BATCH = 100
_PLACE = 57


@dataclass(frozen=True, slots=True)
class Case:
    """One event that kills: how, after which time, unique or to all, alone or in the midst of a batch."""

    how: str
    after_s: float
    is_unique: bool
    is_alone: bool

    def __str__(self) -> str:
        kind = "unique" if self.is_unique else "broadcast"
        return f"{self.how} after {self.after_s:g} s, {kind}, {'alone' if self.is_alone else f'in a batch of {_BATCH}'}"

    def limit(self, workers: int) -> int:
        """How many processes it may cost."""
        alone = 3 if self.is_unique else workers + 2
        return alone if self.is_alone else alone + workers


CASES = tuple(
    Case(*values) for values in product(("SIGKILL", "SIGSEGV", "exit 3"), (0.0, 0.5), (True, False), (True, False))
)


class Workers(Protocol):
    """A pool that replaces its processes."""

    address: str
    directory: Path

    @property
    def ends(self) -> frozenset[str] | None:
        """How its processes end, as the broker is to know it; None: as each case says."""

    def keep(self) -> str | None:
        """Replace what has ended; return why the pool is no more, if it is not."""

    def stop(self) -> None: ...


class ServedWorkers:
    """The workers of `eventsh serve`."""

    ends = None

    def __init__(self, directory: Path, workers: int) -> None:
        self.directory = directory
        self.address = f"unix:{directory}/run/e.sock"
        self._served = Served(directory, self.address, workers, "--timeout", "60", handlers=HANDLERS)

    def keep(self) -> str | None:
        status = self._served.process.poll()
        return None if status is None else f"serve has ended ({status}): {self._served.log[-500:]}"

    def stop(self) -> None:
        self._served.stop()


class OwnWorkers:
    """Processes that attach by themselves, with the broker that the first of them starts."""

    ends = frozenset({"gone"})

    def __init__(self, directory: Path, workers: int) -> None:
        self.directory = directory
        self.address = f"unix:{directory}/run/e.sock"
        self._processes = [self._start(number) for number in range(workers)]

    def _start(self, number: int) -> subprocess.Popen[bytes]:
        with (self.directory / "workers.err").open("ab") as err:
            command = [sys.executable, "-m", "tests.faults.killing_handlers", self.address, str(number)]
            return subprocess.Popen(command, stderr=err, env=environment(self.directory), cwd=ROOT)

    def keep(self) -> str | None:
        for number, process in enumerate(self._processes):
            if process.poll() is not None:
                self._processes[number] = self._start(number)
        return None

    def stop(self) -> None:
        for process in self._processes:
            process.terminate()
            process.wait()


@dataclass(slots=True)
class KillerReport:
    """How many processes each event cost, and what was wrong."""

    pool: str
    workers: int
    deaths: dict[Case, int] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        lines = [f"row 16, {self.pool}, {self.workers} workers: {len(self.deaths)} events, {len(self.faults)} faults"]
        lines += [
            f"  {case}: {deaths} processes (at most {case.limit(self.workers)})" for case, deaths in self.deaths.items()
        ]
        return "\n".join(lines + [f"  FAULT: {fault}" for fault in self.faults])


def kill_by_events(pool: Workers, workers: int, cases: tuple[Case, ...], say: Callable[[str], None]) -> KillerReport:
    """Post the event of each case in turn, and look at what became of it and of all else."""
    report = KillerReport(type(pool).__name__, workers)
    try:
        _wait(pool, lambda: _is_whole(pool, workers), "all workers are attached")
        for number, case in enumerate(cases, 1):
            say(str(case))
            _post(pool.address, number, case)
            _wait_for_letter(pool, workers, number)
            _look(pool, number, case, report)
    except (AssertionError, TimeoutError) as error:
        report.faults.append(str(error))
    finally:
        pool.stop()
    return report


def _wait(pool: Workers, condition: Callable[[], bool], what: str) -> None:
    def is_so() -> bool:
        gone = pool.keep()
        assert gone is None, gone
        return condition()

    wait_until(is_so, what, DEADLINE_S)


def _wait_for_letter(pool: Workers, workers: int, number: int) -> None:
    _wait(
        pool,
        lambda: len(_letters(pool)) == number and _is_whole(pool, workers),
        f"{number} dead letters, and all workers are back",
    )


def _is_whole(pool: Workers, workers: int) -> bool:
    """Whether all workers are attached, and everything is handled."""
    state = ask(pool.address)
    rows = [] if state is None else state["workers"]
    # A worker that has just been killed may look attached: what it had is not handled then.
    return len(rows) == workers and all(row["state"] == "attached" and not row["queued"] for row in rows)


def _letters(pool: Workers) -> list[dict[str, Any]]:
    letters: list[dict[str, Any]] = dead(pool.address, "list", None, timeout_s=10.0)["dead"]
    return letters


def _post(address: str, number: int, case: Case) -> None:
    transport, found = find_endpoint(address)
    with BlockingClient(transport, found, timeout_s=DEADLINE_S) as client:
        for place in (_PLACE,) if case.is_alone else range(_BATCH):
            data: dict[str, Any] = {"case": number, "number": place}
            if place == _PLACE:
                data |= {"how": case.how, "after_s": case.after_s}
            key = f"key {number}" if place == _PLACE and case.is_unique else None
            client.post("kill", "e", data, unique=key)
        client.flush()


def _calls(pool: Workers) -> list[list[Any]]:
    path = pool.directory / "calls"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def _look(pool: Workers, number: int, case: Case, report: KillerReport) -> None:
    report.faults += [f"{case}: {fault}" for fault in _faults(pool, number, case, report)]


def _faults(pool: Workers, number: int, case: Case, report: KillerReport) -> Iterator[str]:
    calls, workers = _calls(pool), report.workers
    deaths = report.deaths[case] = sum(what == "dies" and of == number for what, of, *_ in calls)
    if not 3 <= deaths <= case.limit(workers):
        yield f"{deaths} processes died"
    letter = _letters(pool)[-1]
    ends = {death["ended"] for death in letter["deaths"]}
    if ends != (pool.ends or {case.how}):
        yield f"the processes ended by {ends}"
    if letter["unique"] != (f"key {number}" if case.is_unique else None):
        yield f"the letter is of key {letter['unique']}"
    if not case.is_alone:
        done = [(place, pid, worker) for what, of, place, pid, worker in calls if what == "done" and of == number]
        if len(set(done)) != len(done):
            yield f"a process handled an event twice: {Counter(done).most_common(3)}"
        for worker in range(workers):
            if {place for place, _, of in done if of == worker} != set(range(_BATCH)) - {_PLACE}:
                yield f"worker {worker} did not handle all of the batch"
    broadcasts = sum(not earlier.is_unique for earlier in report.deaths)
    for worker in range(workers):
        missed = sum(missed for what, reason, missed, _, of in calls if what == "gap" and of == worker)
        if missed != broadcasts:
            yield f"worker {worker} was told of {missed} missed events, not of {broadcasts}"
