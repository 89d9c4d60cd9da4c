"""Reloads and deaths of workers that ask for no slot: nothing is lost, and no slot is left behind."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from eventsh.commands.status import status
from tests.integrations.servers import DEADLINE_S, Server, Start, Witness, gunicorn, uvicorn, wait_until, witness

# The broker's: a slot that no process takes ends after it.
TIMEOUT_S = 2.0


@contextlib.contextmanager
def load(seen: Witness) -> Iterator[Callable[[int], None]]:
    """Post numbers until the end of the block. Yields a function that waits for as many more."""
    done = threading.Event()
    posted = 0

    def post() -> None:
        nonlocal posted
        while not done.wait(0.002):
            seen.events.post("app", "load", posted)
            posted += 1

    def wait_for(more: int) -> None:
        until = posted + more
        wait_until(lambda: posted >= until, lambda: posted)

    thread = threading.Thread(target=post)
    thread.start()
    try:
        yield wait_for
    finally:
        done.set()
        thread.join(DEADLINE_S)
    seen.events.flush(DEADLINE_S)
    wait_until(lambda: seen.seen.total() >= posted, lambda: (seen.seen.total(), posted))


def handled(server: Server, pids: set[int]) -> Counter[int]:
    """How often each number was handled by these processes."""
    return Counter(line.data for line in server.lines("load") if line.pid in pids)


def wait_all_handled(server: Server, seen: Witness, pids: set[int]) -> None:
    """Wait until these processes have handled, together, all that the witness has."""
    numbers = {number for _, _, number in seen.seen}
    wait_until(lambda: handled(server, pids).keys() >= numbers, lambda: numbers - handled(server, pids).keys())
    each = Counter((line.pid, line.data) for line in server.lines("load"))
    assert max(each.values()) == 1
    assert server.lines("gap") == []


def test_a_reload_of_the_only_worker_under_load_loses_no_post(start: Start, directory: Path):
    with witness(directory) as seen:
        server = start(gunicorn, "--workers", "1")
        generations = [server.wait_attached(1)]
        with load(seen) as wait_for:
            for _ in range(3):
                wait_for(50)
                server.process.send_signal(signal.SIGHUP)
                generations.append(server.wait_attached(1, without=set().union(*generations)))
            wait_for(50)
        wait_all_handled(server, seen, set().union(*generations))


@pytest.mark.parametrize(
    ("server", "arguments", "reloads"),
    [
        (gunicorn, ("--workers", "4"), 10),
        # Successors attach before the workers that they replace have ended.
        (gunicorn, ("--preload", "--workers", "4"), 4),
        (uvicorn, ("wrapped", "--workers", "2"), 4),
    ],
    ids=["gunicorn", "gunicorn-preload", "uvicorn"],
)
def test_reloads_leave_the_workers_that_there_are(
    request: pytest.FixtureRequest,
    start: Start,
    directory: Path,
    server: Callable[..., Server],
    arguments: tuple[str, ...],
    reloads: int,
):
    if request.config.getoption("--long"):
        reloads = 10
    with witness(directory, timeout=TIMEOUT_S) as seen:
        running = start(server, *arguments)
        count = int(arguments[-1])
        workers = running.wait_attached(count)
        with load(seen):
            for _ in range(reloads):
                running.process.send_signal(signal.SIGHUP)
                workers = running.wait_attached(count, without=workers)
        running.wait_only(count)
        rows = status(running.address, timeout_s=DEADLINE_S)["workers"]
        assert {row["pid"] for row in rows} == workers | {os.getpid()}
        assert [row["dropped"] for row in rows] == [0] * (count + 1)
        assert running.lines("gap") == []


def test_the_successor_of_a_killed_worker_gets_what_was_posted_meanwhile(start: Start, directory: Path):
    with witness(directory) as seen:
        server = start(gunicorn, "--workers", "2")
        workers = server.wait_attached(2)
        killed = min(workers)
        with load(seen) as wait_for:
            wait_for(50)
            os.kill(killed, signal.SIGKILL)
            (successor,) = server.wait_attached(2, without={killed}) - workers
            wait_for(50)
        wait_all_handled(server, seen, {killed, successor})
        wait_all_handled(server, seen, workers - {killed})
