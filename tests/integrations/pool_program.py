"""A program with a plain pool of processes, which says in JSON what it saw. Arguments: how to start them, the address."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor

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


def handled(event: str) -> list[int]:
    return sorted(line.pid for line in read(os.environ["JOURNAL"]) if line.event == event)


def wait(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end, read(os.environ["JOURNAL"])
        time.sleep(0.02)


def wait_handled(event: str, count: int) -> list[int]:
    wait(lambda: len(handled(event)) == count)
    return handled(event)


def main(method: str, address: str) -> None:
    pool = multiprocessing.get_context(method).Pool(3, begin, (address,))
    workers = [process.pid for process in multiprocessing.active_children()]
    # Which of them are ready only they know: one post comes after another until all handle it.
    rounds = 0

    def all_handle() -> bool:
        nonlocal rounds
        rounds += 1
        pool.apply(post, (f"round {rounds}",))
        return len(handled(f"round {rounds}")) == 3

    wait(all_handle)
    first = handled(f"round {rounds}")
    for _ in range(4):
        pool.apply(post, ("once", "k"))
    os.kill(first[0], signal.SIGKILL)
    wait(lambda: first[0] not in [process.pid for process in multiprocessing.active_children()])
    wait(all_handle)
    second = handled(f"round {rounds}")
    # Not waited for by the task: the end of the workers does.
    poster = pool.apply(post, ("at the end", None, False))
    pool.close()
    pool.join()
    facts = {
        "workers": sorted(workers),
        "first": first,
        "once": handled("once"),
        "second": second,
        "end": [poster, handled("at the end")],
    }
    with ProcessPoolExecutor(1, multiprocessing.get_context(method), begin, (address,)) as executor:
        executor.submit(post, "executor", None, False).result(30)
    facts["executor"] = handled("executor")
    print(json.dumps(facts))


if __name__ == "__main__":
    main(*sys.argv[1:])
