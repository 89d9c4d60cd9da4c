"""Row 21: the broker and workers of a pool are killed at the same instant under unique events, whose posters live on.

Each event has a key of its own. It is lost if no handler of it ever returned. It may run again only if the process that ran
it was killed, and only if it began or returned shortly before that.
"""

from __future__ import annotations

import random
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from eventsh.api import Events
from eventsh.errors import QueueOverflow
from tests.faults.campaign import RUN_WELL_S, Plan, await_broker, kill, serve_pool
from tests.faults.ledger import Kind, read_lives
from tests.faults.processes import DEADLINE_S, Served, ask, wait_until

__all__ = ["UniqueReport", "kill_broker_and_workers"]

HANDLERS = str(Path(__file__).with_name("unique_handlers.py"))
# What a handler takes, in seconds, and how often.
_TAKES_S = (0.0, 0.002, 0.02, 0.3)
_WEIGHTS = (50, 40, 9, 1)
# A report that a handler returned is with its poster after this, also on a loaded machine.
_KNOWN_S = 2.0
_PERIOD_S = 0.01


@dataclass(slots=True)
class UniqueReport:
    """What became of the unique events."""

    plan: Plan
    kills: int = 0
    workers_killed: int = 0
    posted: int = 0
    confirmed_unhandled: int = 0
    """Events that were confirmed and not handled when broker and workers were killed, summed over the kills."""
    runs: int = 0
    again: int = 0
    """Events that ran again after the process that ran them was killed: allowed."""
    took_s: float = 0.0
    faults: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))

    def __str__(self) -> str:
        counts = ", ".join(f"{name} {len(which)}" for name, which in self.faults.items()) or "none"
        lines = [
            (
                f"row 21, seed {self.plan.seed}: {self.kills} kills of the broker with {self.workers_killed} workers in"
                f" {self.took_s:.0f} s"
            ),
            (
                f"  posted {self.posted}, of which {self.confirmed_unhandled} were confirmed and not handled at a kill;"
                f" {self.runs} runs, {self.again} again after a death; faults: {counts}"
            ),
        ]
        return "\n".join(lines + [f"  {name}: {which[:5]}" for name, which in self.faults.items()])


class _Poster:
    """A living process's posts: each has a number, a key of its own, and a time that its handler takes."""

    def __init__(self, address: str, number: int, plan: Plan) -> None:
        self.number = number
        self.posted = 0
        self._random = random.Random(plan.seed * 1000 + number)
        self._rate = plan.rate
        self.events = Events(address, role="observer", broker="never", timeout=plan.timeout_s)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        self.events.configure()
        self.events.wait_ready(DEADLINE_S)
        self._thread.start()

    def _run(self) -> None:
        started = time.monotonic()
        while not self._stopped.wait(_PERIOD_S):
            due = int((time.monotonic() - started) * self._rate)
            while self.posted < due and not self._stopped.is_set():
                (takes_s,) = self._random.choices(_TAKES_S, _WEIGHTS)
                number = self.posted + 1
                try:
                    self.events.post("load", "unique", [self.number, number, takes_s], f"{self.number}/{number}")
                except QueueOverflow:
                    break
                self.posted = number

    @property
    def confirmed_unhandled(self) -> int:
        outbox = self.events._bus.outbox
        return max(0, outbox.kept - outbox.unconfirmed)

    def stop(self) -> None:
        """End the posting, and wait until every handler has returned as far as this process knows."""
        self._stopped.set()
        self._thread.join(DEADLINE_S)
        self.events.flush(DEADLINE_S)
        wait_until(lambda: not self.events._bus.outbox.kept, "nothing is kept any more")

    def close(self) -> None:
        self._stopped.set()
        self.events.close()


def kill_broker_and_workers(plan: Plan, path: Path, say: Callable[[str], None]) -> UniqueReport:
    draw, report, started = random.Random(plan.seed), UniqueReport(plan), time.monotonic()
    killed: dict[int, int] = {}
    epochs: set[int] = set()
    with ExitStack() as stack:
        pool = serve_pool(plan, path, stack, HANDLERS)
        posters = [_Poster(pool.address, number, plan) for number in range(1, plan.posters + 1)]
        for poster in posters:
            stack.callback(poster.close)
            poster.start()
        while report.kills < plan.kills:
            broker, pids = _await_well(pool, plan, epochs)
            for poster in posters:
                # While it is away, it can't learn that a handler has returned.
                poster.events.wait_ready(DEADLINE_S)
            time.sleep(draw.uniform(0.0, plan.pause_s))
            victims = draw.sample(pids, draw.randint(1, len(pids)))
            everybody = draw.sample([broker, *victims], len(victims) + 1)
            report.confirmed_unhandled += sum(poster.confirmed_unhandled for poster in posters)
            for pid in everybody:
                killed[pid] = kill(pid, None).time_ns
            report.kills += 1
            report.workers_killed += len(victims)
            if report.kills % 10 == 0:
                say(f"{report.kills}/{plan.kills} kills after {time.monotonic() - started:.0f} s")
        await_broker(pool.address, epochs, plan.workers)
        for poster in posters:
            poster.stop()
        wait_until(lambda: _is_idle(pool.address), "every queue is empty")
    report.took_s = time.monotonic() - started
    _account(path, {poster.number: poster.posted for poster in posters}, killed, report)
    return report


def _await_well(pool: Served, plan: Plan, epochs: set[int]) -> tuple[int, list[int]]:
    """Wait until a new broker and all workers have run for so long that their supervisor restarts them at once; their pids."""
    facts = await_broker(pool.address, epochs, plan.workers)
    state = ask(pool.address)
    assert state is not None
    pids = [worker["pid"] for worker in state["workers"]]
    epochs.add(facts["epoch"])

    def run_well() -> bool:
        since, now = pool.ready(), time.monotonic()
        return all(pid in since and now - since[pid] >= RUN_WELL_S for pid in (facts["pid"], *pids))

    wait_until(run_well, f"{facts['pid']} and {pids} run well")
    return facts["pid"], pids


def _is_idle(address: str) -> bool:
    state = ask(address)
    return state is not None and not any(worker["queued"] for worker in state["workers"])


def _account(path: Path, posted: dict[int, int], killed: dict[int, int], report: UniqueReport) -> None:
    """Find what was lost, and what ran again without a reason."""
    # Of each event: when a run began, its process, and when it returned.
    runs: dict[tuple[int, int], list[list[int]]] = defaultdict(list)
    for life in read_lives(path):
        own: dict[tuple[int, int], list[int]] = {}
        for record in life.records():
            name = (record.poster, record.number)
            if record.kind == Kind.UNIQUE:
                if name in own:
                    report.faults["twice in one process"].append(f"{name} in {life.pid}")
                own[name] = [record.time_ns, life.pid, 0]
                runs[name].append(own[name])
            elif record.kind == Kind.UNIQUE_ENDED:
                own[name][2] = record.time_ns
    report.posted = sum(posted.values())
    report.runs = sum(map(len, runs.values()))
    for poster, count in posted.items():
        for number in range(1, count + 1):
            of_event = sorted(runs.get((poster, number), []))
            if not any(ended_ns for _, _, ended_ns in of_event):
                report.faults["lost"].append(f"{poster}/{number}: {of_event}")
            report.again += max(0, len(of_event) - 1)
            # The last run needs no reason, the others do: their process was killed at once, or as good as.
            for _, pid, ended_ns in of_event[:-1]:
                if pid not in killed:
                    report.faults["again beside a living worker"].append(f"{poster}/{number}: {of_event}")
                elif ended_ns and killed[pid] - ended_ns > _KNOWN_S * 1e9:
                    report.faults["again although known"].append(f"{poster}/{number}: {of_event}")
