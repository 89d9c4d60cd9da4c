"""A program with a plain pool of processes, which says in JSON what it saw. Arguments: how to start them, the address,
and another one."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.pool import Pool
from typing import Any

import eventsh
from tests.integrations.journal import read, record


def begin(address: str) -> None:
    """What each worker does first."""
    eventsh.register(record, "app")
    eventsh.configure(address, timeout=30.0, linger=0.5)
    eventsh.wait_ready(30)


def post(event: str, unique: str | None = None, flush: bool = True) -> int:
    eventsh.post("app", event, unique=unique)
    if flush:
        eventsh.flush(30)
    return os.getpid()


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def handled(event: str) -> list[int]:
    return sorted(line.pid for line in read(os.environ["JOURNAL"]) if line.event == event)


def wait(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end, read(os.environ["JOURNAL"])
        time.sleep(0.02)


def main(method: str, address: str, other: str) -> None:
    context = multiprocessing.get_context(method)
    with context.Pool(3, begin, (address,)) as pool:
        facts = use(pool)
    # The tasks of these do not wait until what they posted is confirmed: the end of their process does. They have their own
    # address: a successor of a process that was killed gets the events one by one, and may end before the last.
    pool = context.Pool(1, begin, (other,))
    pool.apply(post, ("from a pool", None, False))
    pool.close()
    pool.join()
    with ProcessPoolExecutor(1, context, begin, (other,)) as executor:
        executor.submit(post, "from an executor", None, False).result(30)
    ends = [bool(handled(event)) for event in ("from a pool", "from an executor")]
    print(json.dumps({**facts, "at their end": ends}))


def use(pool: Pool) -> dict[str, Any]:
    workers = {process.pid for process in multiprocessing.active_children()}
    rounds = 0

    def all_handle() -> bool:
        # Only they know which of them are ready, so one post comes after the other.
        nonlocal rounds
        rounds += 1
        pool.apply(post, (f"round {rounds}",))
        return len(handled(f"round {rounds}")) == 3

    wait(all_handle)
    first = handled(f"round {rounds}")
    for _ in range(4):
        pool.apply(post, ("once", "k"))
    wait(lambda: bool(handled("once")))
    # Asked before one dies: what it has handled a moment before, and could not say, another one does again.
    once = handled("once")
    # By itself: a pool whose worker is killed while that waits for a task waits for ever, for it held the queue's lock.
    pool.apply_async(die)
    wait(lambda: not set(first) <= {process.pid for process in multiprocessing.active_children()})
    wait(all_handle)
    second = handled(f"round {rounds}")
    return {"are_workers": set(first) == workers, "first": first, "once": once, "second": second}


if __name__ == "__main__":
    main(*sys.argv[1:])
