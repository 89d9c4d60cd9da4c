"""`eventsh handlers` and what real workers answer."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from typing import Any

import pytest

from tests.cli.pool import Done, Pool, wait_until

HANDLERS = """
import eventsh

@eventsh.on("calls", "bad")
def bad(data, event, source, pid):
    raise ValueError("no")

@eventsh.on("calls")
async def later(data, event, source, pid):
    pass

class Cache:
    def purge(self, data, event, source, pid):
        pass

cache = Cache()
eventsh.register_weak(cache.purge, "cache", "purge")

@eventsh.on("eventsh", "worker_joined")
def joined(data, event, source, pid):
    if eventsh.default_events().worker_id == 1 and not hasattr(joined, "done"):
        joined.done = True
        eventsh.register(lambda *event: None, "odd", "\\x1b[2J")
"""


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pool]:
    directory = tmp_path_factory.mktemp("handlers")
    (directory / "calls.py").write_text(HANDLERS.replace("eventsh.default_events()", "eventsh.configure()"))
    pool = Pool(directory, "--handlers", str(directory / "calls.py"), workers=2)
    wait_until(lambda: any(len(worker["handlers"]) == 6 for worker in told(pool)), "the odd worker is odd")
    yield pool
    assert pool.stop() == 0


def told(pool: Pool, *stuck: int) -> list[dict[str, Any]]:
    """What all workers say but those that are stuck. One that is only slow is not waited for either: it is asked again."""
    workers: list[dict[str, Any]] = []

    def have_answered() -> bool:
        done = pool.run("handlers", "--json")
        assert (done.status, done.err) == (0, "")
        workers[:] = json.loads(done.out)
        return all(worker["error"] is None for worker in workers if worker["worker_id"] not in stuck)

    wait_until(have_answered, "the workers answer")
    return workers


def find(worker: dict[str, Any], name: str) -> dict[str, Any]:
    handler: dict[str, Any]
    (handler,) = [handler for handler in worker["handlers"] if handler["name"] == name]
    return handler


def test_it_tells_what_each_worker_has_registered_and_what_became_of_the_calls(pool):
    for _ in range(2):
        assert pool.run("post", "calls", "bad", "--wait").status == 6
    workers = told(pool)
    assert [(worker["worker_id"], worker["error"]) for worker in workers] == [(0, None), (1, None)]
    for worker in workers:
        bad = find(worker, "bad")
        assert bad.pop("p99_s") > 0
        assert bad == {
            "source": "calls",
            "event": "bad",
            "name": "bad",
            "location": f"{pool.directory}/calls.py:4",
            "script": None,
            "weak": False,
            "async": False,
            "calls": 2,
            "errors": 2,
            "differs": False,
        }
        later, purge = find(worker, "later"), find(worker, "Cache.purge")
        assert (later["event"], later["async"], later["calls"], later["errors"]) == (None, True, 2, 0)
        assert (purge["weak"], purge["calls"], purge["p99_s"]) == (True, 0, None)


def test_a_handler_that_only_one_worker_has_is_marked(pool):
    marked = [
        (worker["worker_id"], handler["source"])
        for worker in told(pool)
        for handler in worker["handlers"]
        if handler["differs"]
    ]
    assert marked == [(1, "odd")]


def test_it_shows_a_table_of_each_worker_to_people(pool):
    done = pool.run("handlers")
    assert (done.status, done.err) == (0, "")
    lines = done.out.splitlines()
    assert sum(line.startswith("worker ") for line in lines) == 2
    assert lines[1].split() == ["source", "event", "calls", "errors", "p99", "ms", "kind", "handler"]
    odd = next(line for line in lines if " odd " in line)
    assert odd.split()[:3] == ["*", "odd", "\\x1b[2J"]
    assert next(line for line in lines if "Cache.purge" in line).split()[5:7] == ["sync", "weak"]
    assert lines[-1].startswith("* not every worker has this handler")


def test_a_worker_that_is_stuck_is_listed_without_an_answer(pool):
    first = told(pool)[0]
    os.kill(first["pid"], signal.SIGSTOP)
    try:
        workers = told(pool, first["worker_id"])
    finally:
        os.kill(first["pid"], signal.SIGCONT)
    assert [(worker["error"], len(worker["handlers"])) for worker in workers] == [("no answer", 0), (None, 6)]
    assert not any(handler["differs"] for worker in workers for handler in worker["handlers"])


def test_a_broker_without_workers_says_what_to_do(tmp_path):
    pool = Pool(tmp_path, workers=0, prints=True)
    try:
        done = pool.run("handlers")
        assert done.out.startswith("no workers: start some with ")
        assert pool.run("handlers", "--json") == Done(0, "[]\n", "")
    finally:
        pool.stop()
