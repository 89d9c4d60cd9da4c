"""Row 11: the handlers are reloaded, and workers added and sent away, under load and at times in the midst of a reload."""

from __future__ import annotations

import random
import signal
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from tests.faults.account import FOR_EVER, Stay
from tests.faults.campaign import Plan, Report, finish, serve_pool, start_poster
from tests.faults.processes import Served, ask, wait_until

__all__ = ["ReloadReport", "reload_workers"]

# So many workers more than at the start there are at most.
_MORE = 2
_GOOD = "import tests.faults.handlers\n"
_BAD = "import tests.faults.handlers\nraise RuntimeError('bad on purpose')\n"
_BAD_SHARE = 0.1
_RELOADED, _GIVEN_UP = "all workers are reloaded", "the reload was given up"


@dataclass(slots=True)
class ReloadReport:
    """A report, and what was done."""

    report: Report
    done: Counter[str]
    faults: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        found = self.report.account
        done = ", ".join(f"{what} {count}" for what, count in sorted(self.done.items()))
        stays = (
            f"{found.stays} stays of added workers handled {found.handled_in_stays} events, lost {found.lost_in_stays}"
        )
        return "\n".join([str(self.report), f"  {done}", f"  {stays}", *(f"  FAULT: {fault}" for fault in self.faults)])


class _Changes:
    """A pool under change: what was asked of it, and what it has become."""

    def __init__(self, pool: Served, handlers: Path, workers: int) -> None:
        self.pool = pool
        self.done: Counter[str] = Counter()
        self.faults: list[str] = []
        self.stays: list[Stay] = []
        self.count = workers
        self._handlers = handlers
        self._least, self._most = workers, workers + _MORE

    def reload(self, *, is_bad: bool, step: int) -> None:
        """Reload all, and change the number of workers meanwhile by `step`."""
        self._handlers.write_text(_BAD if is_bad else _GOOD)
        word = _GIVEN_UP if is_bad else _RELOADED
        log, before = self.pool.log, self.pids()
        self.pool.process.send_signal(signal.SIGHUP)
        if step:
            self.step(step)
        wait_until(lambda: self.pool.log.count(word) > log.count(word), word)
        self.done["reloads refused" if is_bad else "reloads"] += 1
        if is_bad and not step and self.pids() != before:
            self.faults.append(f"a bad handlers file changed the workers from {before} to {self.pids()}")
        if not is_bad and set(before.values()) & set(self.pids().values()):
            self.faults.append(f"a reload left old workers: {before}, then {self.pids()}")
        self._handlers.write_text(_GOOD)

    def step(self, step: int) -> None:
        """Have one worker more, or one less, within the limits of the campaign."""
        wanted = min(max(self.count + step, self._least), self._most)
        if wanted > self.count:
            self.pool.process.send_signal(signal.SIGTTIN)
            self.done["workers added"] += 1
        elif wanted < self.count:
            self.stays.append(Stay(wanted, time.monotonic_ns()))
            self.pool.process.send_signal(signal.SIGTTOU)
            self.done["workers sent away"] += 1
        self.count = wanted

    def settle(self) -> None:
        """Wait until everybody who should be there is, and nobody else."""
        wait_until(lambda: len(self.pids()) == self.count, f"{self.count} workers are attached")

    def pids(self) -> dict[int, int]:
        """The attached workers; of nobody while one is between two processes."""
        state = ask(self.pool.address)
        workers = state["workers"] if state is not None else []
        if any(worker["state"] != "attached" for worker in workers):
            return {}
        return {worker["worker_id"]: worker["pid"] for worker in workers}


def reload_workers(plan: Plan, path: Path, say: Callable[[str], None]) -> ReloadReport:
    """Reload `plan.kills` times."""
    draw = random.Random(plan.seed)
    started = time.monotonic()
    handlers = path / "handlers.py"
    handlers.write_text(_GOOD)
    with ExitStack() as stack:
        pool = serve_pool(plan, path, stack, handlers=str(handlers))
        posters = [start_poster(plan, path, pool.address, number, stack) for number in range(1, plan.posters + 1)]
        for poster in posters:
            poster.tell("post")
        changes = _Changes(pool, handlers, plan.workers)
        while (reloads := changes.done["reloads"]) < plan.kills:
            time.sleep(draw.uniform(0.0, plan.pause_s))
            if draw.random() < 0.5:
                changes.step(draw.choice((1, -1)))
                if draw.random() < 0.5:
                    changes.settle()
            changes.reload(is_bad=draw.random() < _BAD_SHARE, step=draw.choice((0, 0, 1, -1)))
            changes.settle()
            if changes.done["reloads"] > reloads and changes.done["reloads"] % 10 == 0:
                say(f"{changes.done['reloads']}/{plan.kills} reloads after {time.monotonic() - started:.0f} s")
        # Those that are still there had no end to their stay.
        stays = [*changes.stays, *(Stay(slot, FOR_EVER) for slot in range(plan.workers, changes.count))]
        report = finish("11", plan, path, pool.address, posters, [], [], started, one_epoch=True, stays=stays)
    return ReloadReport(report, changes.done, changes.faults)
