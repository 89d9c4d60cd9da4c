"""Brokers that are killed while they have events that only they have: for a worker that stands still, or for one that is just
being restarted. The others go on, and have all of it confirmed."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from tests.faults.campaign import Plan, Report, await_broker, finish, kill, serve_pool, start_poster
from tests.faults.processes import Served, ask, wait_until

__all__ = ["kill_beside_the_absent", "kill_beside_the_stopped"]

Say = Callable[[str], None]

# What is confirmed without the one that is left behind, at the least.
_CONFIRMED = 300
_SLOT = 1


def kill_beside_the_stopped(plan: Plan, path: Path, say: Say) -> Report:
    """A worker stands still for longer than `timeout`, the others go on, the broker is killed, and the worker goes on."""
    started = time.monotonic()
    with ExitStack() as stack:
        pool = serve_pool(plan, path, stack)
        posters = [start_poster(plan, path, pool.address, number, stack) for number in range(1, plan.posters + 1)]
        for poster in posters:
            poster.tell("post")
        killed: set[int] = set()
        for _ in range(plan.kills):
            pid = _pid(pool.address)
            os.kill(pid, signal.SIGSTOP)
            try:
                wait_until(lambda: _state(pool.address) in ("stalled", "dropping"), "nobody waits for it", 60.0)
                killed.add(_kill_after_confirmations(pool))
                await_broker(pool.address, killed, plan.workers - 1)
            finally:
                os.kill(pid, signal.SIGCONT)
            wait_until(lambda: _state(pool.address) == "attached", "it is back")
            say(f"{len(killed)}/{plan.kills} kills after {time.monotonic() - started:.0f} s")
        return finish("2 (behind)", plan, path, pool.address, posters, [], [], started, one_epoch=False)


def kill_beside_the_absent(plan: Plan, path: Path, say: Say) -> Report:
    """A worker ends, the others go on, and the broker is killed before the next one is there."""
    started = time.monotonic()
    with ExitStack() as stack:
        pool = serve_pool(plan, path, stack)
        first, second = (start_poster(plan, path, pool.address, number, stack) for number in (1, 2))
        # All of it is handled and acknowledged, so that the process that comes next does not handle it once more.
        first.tell("post")
        _await_events(pool.address, _CONFIRMED)
        first.tell("stop")
        first.hear()
        wait_until(lambda: _is_idle(pool.address), "all is handled")
        pool.process.send_signal(signal.SIGSTOP)
        try:
            dead = kill(_pid(pool.address), _SLOT)
            wait_until(lambda: _state(pool.address) == "absent", "it is gone")
            second.tell("post")
            _kill_after_confirmations(pool)
        finally:
            pool.process.send_signal(signal.SIGCONT)
        wait_until(lambda: _state(pool.address) == "attached", "the next one is there")
        return finish("2 (absent)", plan, path, pool.address, [first, second], [], [dead], started, one_epoch=False)


def _kill_after_confirmations(pool: Served) -> int:
    """Kill the broker once it has confirmed more than a few events without the one that is left behind; its epoch."""
    state = ask(pool.address, 10.0)
    assert state is not None
    _await_events(pool.address, state["broker"]["events"] + _CONFIRMED)
    kill(state["broker"]["pid"], None)
    return int(state["broker"]["epoch"])


def _await_events(address: str, events: int) -> None:
    """Wait until so many have crossed the broker and are confirmed."""

    def look() -> bool:
        state = ask(address, 10.0)
        return state is not None and state["broker"]["events"] - state["broker"]["unconfirmed"] >= events

    wait_until(look, f"{events} events are confirmed")


def _worker(address: str) -> dict[str, object] | None:
    state = ask(address)
    rows = state["workers"] if state is not None else []
    return next((row for row in rows if row["worker_id"] == _SLOT), None)


def _state(address: str) -> object:
    return (_worker(address) or {}).get("state")


def _pid(address: str) -> int:
    row = _worker(address)
    assert row is not None
    assert isinstance(row["pid"], int)
    return row["pid"]


def _is_idle(address: str) -> bool:
    state = ask(address)
    return state is not None and not any(worker["queued"] for worker in state["workers"])
