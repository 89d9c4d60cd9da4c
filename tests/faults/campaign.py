"""Campaigns of kills under load, drawn from a seed: what is killed, when, and how many at once."""

from __future__ import annotations

import math
import os
import random
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from tests.faults.account import Account, Kill, Stay, account, percentile, recoveries_s
from tests.faults.processes import DEADLINE_S, HANDLERS, Program, Served, ask, endpoint, is_alive, wait_until

__all__ = [
    "RUN_WELL_S",
    "Plan",
    "Report",
    "await_broker",
    "directory",
    "finish",
    "kill",
    "kill_brokers",
    "kill_workers",
    "serve_pool",
    "start_poster",
]

# A supervisor restarts what ran for a second at once, and makes others wait: see eventsh/runtime/backoff.py.
RUN_WELL_S = 1.1
# How often a kill takes several workers, all of them, or the next broker before everybody is back.
_PAIR_SHARE = 0.1
_ALL_SHARE = 0.02
_DOUBLE_SHARE = 0.1


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do. Everything that is random is drawn from `seed`."""

    kills: int
    seed: int
    workers: int = 4
    posters: int = 2
    rate: float = 400.0
    """Posts a second, of each poster."""
    slow: float = 0.5
    """How many of them have slow handlers."""
    timeout_s: float = 5.0
    broker: Literal["serve", "auto"] = "serve"
    pause_s: float = 0.6
    """At most so long after everybody is back until the next kill."""
    max_queue_len: int = 10240
    transport: str = "unix"
    doubles: bool = True
    """Whether kills come together at times. Supervisors make those wait that die twice in a second."""


@dataclass(slots=True)
class Report:
    """What became of a campaign."""

    row: str
    plan: Plan
    account: Account
    kills: list[Kill]
    recovered_s: list[float]
    took_s: float
    overflows: int = 0
    unconfirmed: list[str] = field(default_factory=list)

    @property
    def faults(self) -> dict[str, Any]:
        return {**self.account.faults, **({"unconfirmed": self.unconfirmed} if self.unconfirmed else {})}

    def __str__(self) -> str:
        found = self.account
        kills = f"{len(self.kills)} kills in " if self.kills else ""
        text = (
            f"row {self.row}, seed {self.plan.seed}: {kills}{self.took_s:.0f} s,"
            f" {found.places} places, {found.processes} processes\n"
            f"  posted {found.posted}, handled {found.handled} of {found.posted * found.places},"
            f" told as gap {found.told} (too much {found.told_too_much}), lost {found.lost}\n"
            f"  twice {found.twice}, again in a successor {found.again}, again without a death"
            f" {found.again_without_death}, out of order {found.out_of_order}, in another order {found.disagreed}\n"
            f"  unique keys {found.keys}, lost {found.keys_lost}, twice {found.keys_twice},"
            f" again after a death {found.keys_again}; slow handlers cut short {found.cut_short}\n"
            f"  posters without room {self.overflows} times"
        )
        lines = [text]
        if self.recovered_s:
            p50, p99, most = (percentile(self.recovered_s, share) for share in (0.5, 0.99, 1.0))
            count = len(self.recovered_s)
            lines.append(f"  back after p50 {p50:.3f} s, p99 {p99:.3f} s, at most {most:.3f} s ({count} times)")
        lines += [f"  NOT CONFIRMED: {text}" for text in self.unconfirmed]
        lines += [f"  NOTE: {text}" for text in found.notes]
        return "\n".join(lines)


Say = Callable[[str], None]


@contextmanager
def directory(keep: Path | None = None) -> Iterator[Path]:
    """A place for the ledgers, whose path is short enough for a socket; kept when something fails."""
    path = keep or Path(tempfile.mkdtemp(prefix="evf-", dir="/tmp"))
    path.mkdir(exist_ok=True)
    yield path
    if keep is None:
        shutil.rmtree(path)


def kill_workers(plan: Plan, path: Path, say: Say) -> Report:
    """Row 1: random workers of `eventsh serve`."""
    draw = random.Random(plan.seed)
    kills: list[Kill] = []
    started = time.monotonic()
    with ExitStack() as stack:
        pool = serve_pool(plan, path, stack)
        posters = [start_poster(plan, path, pool.address, number, stack) for number in range(1, plan.posters + 1)]
        for poster in posters:
            poster.tell("post")
        while len(kills) < plan.kills:
            time.sleep(draw.uniform(0.0, plan.pause_s))
            for slot, pid in _victims(plan, pool, draw, {kill.pid: kill.time_ns for kill in kills}):
                kills.append(kill(pid, slot))
            _tell_progress(kills, plan, started, say)
        return finish("1", plan, path, pool.address, posters, [], kills, started, one_epoch=True)


def _victims(plan: Plan, pool: Served, draw: random.Random, killed_ns: dict[int, int]) -> list[tuple[int, int]]:
    """Workers to kill now: ready for long enough that their supervisor restarts them at once. The broker may not have
    noticed yet who is dead already, and the numbers of the dead are given to others in the end."""
    dice = draw.random() if plan.doubles else 1.0
    wanted = plan.workers if dice < _ALL_SHARE else 2 if dice < _PAIR_SHARE else 1
    end = time.monotonic() + DEADLINE_S
    while True:
        state = ask(pool.address)
        latest, since = time.monotonic() - RUN_WELL_S, pool.ready()
        ready = [
            (worker["worker_id"], worker["pid"])
            for worker in (state["workers"] if state is not None else ())
            if worker["state"] == "attached"
            and killed_ns.get(worker["pid"], 0) / 1e9 < since.get(worker["pid"], math.inf) <= latest
        ]
        if len(ready) >= wanted:
            return draw.sample(sorted(ready), wanted)
        if time.monotonic() > end:
            raise TimeoutError(f"no {wanted} workers are up: {state}")
        time.sleep(0.02)


def kill_brokers(plan: Plan, path: Path, say: Say) -> Report:
    """Row 2: the broker, of `eventsh serve`, or of a pool in which the survivors start another."""
    draw = random.Random(plan.seed)
    kills: list[Kill] = []
    killed: set[int] = set()
    started = time.monotonic()
    pool: Served | None = None
    workers: list[Program] = []
    with ExitStack() as stack:
        if plan.broker == "serve":
            pool = serve_pool(plan, path, stack)
            address = pool.address
            posters = [start_poster(plan, path, address, number, stack) for number in range(1, plan.posters + 1)]
        else:
            address = endpoint(plan.transport, path)
            workers = [_auto_worker(plan, path, address, number, stack) for number in range(1, plan.workers + 1)]
            posters = workers
        for poster in posters:
            poster.tell("post")
        while len(kills) < plan.kills:
            broker = await_broker(address, killed, plan.workers)
            if pool is not None:
                _await_well(pool, broker["pid"])
            time.sleep(draw.uniform(0.0, plan.pause_s))
            kills.append(kill(broker["pid"], None))
            killed.add(broker["epoch"])
            if plan.doubles and len(kills) < plan.kills and draw.random() < _DOUBLE_SHARE:
                broker = await_broker(address, killed, 0)
                kills.append(kill(broker["pid"], None))
                killed.add(broker["epoch"])
            _tell_progress(kills, plan, started, say)
        await_broker(address, killed, plan.workers)
        name = f"2 ({plan.broker})"
        return finish(name, plan, path, address, posters, workers, kills, started, one_epoch=False)


def _await_well(pool: Served, pid: int) -> None:
    """Wait until a process has been ready for so long that its supervisor restarts it at once."""
    wait_until(lambda: time.monotonic() - pool.ready().get(pid, math.inf) >= RUN_WELL_S, f"process {pid} runs well")


def serve_pool(plan: Plan, path: Path, stack: ExitStack, handlers: str = HANDLERS) -> Served:
    # Keys are never posted after their time: that a key runs once more then would be as it should.
    flags = [f"--timeout={plan.timeout_s}s", "--unique-timeout=1h", f"--max-queue-len={plan.max_queue_len}"]
    pool = Served(path, endpoint(plan.transport, path), plan.workers, *flags, handlers=handlers)
    stack.callback(pool.stop)
    return pool


def start_poster(plan: Plan, path: Path, address: str, number: int, stack: ExitStack) -> Program:
    options = {"role": "observer", "broker": "never", "timeout": plan.timeout_s, "max_queue_len": plan.max_queue_len}
    program = Program(path, address, number, plan.rate, plan.slow, plan.seed, **options)
    stack.callback(program.end)
    assert program.hear() == "ready"
    return program


def _auto_worker(plan: Plan, path: Path, address: str, number: int, stack: ExitStack) -> Program:
    # Those that post, and those that only handle.
    poster, rate = (number, plan.rate) if number <= plan.posters else (0, 0.0)
    options = {"timeout": plan.timeout_s, "unique_timeout": 3600.0, "linger": 1.0, "max_queue_len": plan.max_queue_len}
    program = Program(path, address, poster, rate, plan.slow, plan.seed, **options)
    stack.callback(program.end)
    assert program.hear() == "ready"
    return program


def kill(pid: int, slot: int | None) -> Kill:
    time_ns = time.monotonic_ns()
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    return Kill(time_ns, pid, slot)


def await_broker(address: str, killed: set[int], workers: int) -> dict[str, Any]:
    """Wait until so many workers are attached to a broker that was not killed; what it says of itself.

    Brokers are told apart by their epochs: a process may get the number of one that was killed long ago.
    """
    state: dict[str, Any] | None = None

    def look() -> bool:
        nonlocal state
        state = ask(address)
        if state is None or state["broker"]["epoch"] in killed:
            return False
        return sum(bool(worker["state"] == "attached") for worker in state["workers"]) >= workers

    wait_until(look, f"{workers} workers are attached to another broker")
    assert state is not None
    facts: dict[str, Any] = state["broker"]
    return facts


def _tell_progress(kills: list[Kill], plan: Plan, started: float, say: Say) -> None:
    if len(kills) % 25 == 0 or len(kills) >= plan.kills:
        say(f"{len(kills)}/{plan.kills} kills after {time.monotonic() - started:.0f} s")


def finish(
    row: str,
    plan: Plan,
    path: Path,
    address: str,
    posters: list[Program],
    workers: list[Program],
    kills: list[Kill],
    started: float,
    *,
    one_epoch: bool,
    stays: Sequence[Stay] = (),
) -> Report:
    """Let everything come to rest, and account for it."""
    unconfirmed, overflows = [], 0
    for poster in posters:
        poster.tell("stop")
    for poster in posters:
        word, _, rest = poster.hear(150.0).partition(" ")
        if word == "flushed":
            overflows += int(rest or 0)
        else:
            unconfirmed.append(f"poster {poster.pid}: {word} {rest}")

    def rest_is_done() -> bool:
        state = ask(address)
        if state is None:
            return False
        attached = [worker for worker in state["workers"] if worker["state"] == "attached"]
        return len(attached) >= plan.workers and all(worker["queued"] == 0 for worker in state["workers"])

    try:
        wait_until(rest_is_done, "every queue is empty")
    except TimeoutError:
        unconfirmed.append(f"queues did not become empty: {ask(address)}")
    dead = [program.pid for program in workers if not is_alive(program.pid)]
    unconfirmed += [f"worker {pid} has ended" for pid in dead]
    took_s = time.monotonic() - started
    found = account(path, kills, one_epoch=one_epoch, stays=stays)
    return Report(row, plan, found, kills, recoveries_s(path, kills), took_s, overflows, unconfirmed)
