"""`eventsh post --wait` and the answers of real workers."""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Iterator
from typing import Any

import pytest

from tests.cli.pool import DEADLINE_S, Pool, wait_until

HANDLERS = """
import asyncio, os, time
import eventsh

@eventsh.on("calls", "good")
def good(data, event, source, pid):
    time.sleep(0.01)

@eventsh.on("calls", "good", "bad")
async def later(data, event, source, pid):
    await asyncio.sleep(0.05)

@eventsh.on("calls", "bad")
def bad(data, event, source, pid):
    raise ValueError("no\\x1b[2J good")

@eventsh.on("calls", "worse")
async def worse(data, event, source, pid):
    raise KeyError(os.getpid())

@eventsh.on("calls", "hang")
async def hang(data, event, source, pid):
    open(os.path.join(os.path.dirname(__file__), "hung"), "w").close()
    while not os.path.exists(os.path.join(os.path.dirname(__file__), data)):
        await asyncio.sleep(0.01)
"""


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pool]:
    directory = tmp_path_factory.mktemp("wait")
    (directory / "calls.py").write_text(HANDLERS)
    pool = Pool(directory, "--handlers", str(directory / "calls.py"), "--unique-timeout", "10m", workers=2)
    yield pool
    assert pool.stop() == 0


def told(pool: Pool, *arguments: str, status: int = 0) -> dict[str, Any]:
    done = pool.run("post", *arguments, "--wait", "--json")
    assert (done.status, done.err) == (status, "")
    receipt: dict[str, Any] = json.loads(done.out)
    return receipt


def test_it_tells_of_each_worker_which_handlers_ran_and_for_how_long(pool):
    receipt = told(pool, "calls", "good")
    assert (receipt["number"], receipt["unique"]) == (1, None)
    assert [worker["worker_id"] for worker in receipt["workers"]] == [0, 1]
    assert {worker["pid"] for worker in receipt["workers"]} == {worker["pid"] for worker in pool.status()["workers"]}
    for worker in receipt["workers"]:
        assert worker["received"]
        assert worker["answered"]
        runs = {run["name"]: run for run in worker["handlers"]}
        assert set(runs) == {"good", "later"}
        assert 0.009 <= runs["good"]["seconds"] < 5
        assert 0.045 <= runs["later"]["seconds"] < 5
        assert runs["good"]["location"] == f"{pool.directory}/calls.py:5"
        assert (runs["good"]["source"], runs["good"]["event"], runs["good"]["error"]) == ("calls", "good", None)


def test_it_shows_the_same_to_people(pool):
    done = pool.run("post", "calls", "good", "--wait")
    assert (done.status, done.err) == (0, "")
    lines = done.out.splitlines()
    assert len(lines) == 6
    assert re.fullmatch(r"worker 0 \(pid \d+\): received, 2 handlers", lines[0])
    assert re.fullmatch(r" +[\d,.]+ ms  good \(/.*/calls\.py:5\)", lines[1])
    assert re.fullmatch(r" +[\d,.]+ ms  later \(/.*/calls\.py:9\)", lines[2])


@pytest.mark.parametrize("event", ["bad", "worse"])
def test_a_handler_that_raises_is_told_and_the_status_says_so(pool, event):
    receipt = told(pool, "calls", event, status=6)
    for worker in receipt["workers"]:
        errors = {run["name"]: run["error"] for run in worker["handlers"]}
        if event == "bad":
            assert errors == {"bad": "ValueError: no\x1b[2J good", "later": None}
        else:
            assert errors == {"worse": f"KeyError: {worker['pid']}"}


def test_what_a_handler_says_of_itself_can_not_reach_the_terminal(pool):
    done = pool.run("post", "calls", "bad", "--wait")
    assert done.status == 6
    assert done.out.count("failed: ValueError: no\\x1b[2J good") == 2


def test_an_event_without_a_handler_is_answered_too(pool):
    done = pool.run("post", "nobody", "cares", "--wait")
    assert (done.status, done.err) == (0, "")
    assert done.out.count("received, no handler") == 2


def test_a_unique_event_is_told_by_its_one_worker_and_a_repeat_by_none(pool):
    receipt = told(pool, "calls", "good", "--unique", "once")
    assert receipt["unique"] == "given"
    assert [len(worker["handlers"]) for worker in receipt["workers"]] == [2]
    receipt = told(pool, "calls", "good", "--unique", "once")
    assert (receipt["unique"], receipt["workers"]) == ("repeat", [])
    done = pool.run("post", "calls", "good", "--unique", "once", "--wait")
    assert (done.status, done.out) == (0, "1 repeat ignored, as the unique key is taken\n")


def test_handlers_that_take_longer_than_the_timeout_are_told_as_not_answered(pool):
    # In this time the workers have to say that they have it.
    done = pool.run("post", "calls", "hang", '"go on"', "--wait", "--timeout", "3")
    (pool.directory / "go on").touch()
    assert (done.status, done.err) == (4, "")
    assert done.out.count("received; its handlers have not returned in time") == 2


@pytest.mark.parametrize("option", [["--count", "2"], ["--stdin"]])
def test_it_is_for_one_event(pool, option):
    done = pool.run("post", "calls", "good", "--wait", *option)
    assert (done.status, done.out) == (2, "")
    assert "--wait is for one event" in done.err


def test_handlers_that_return_after_the_brokers_death_are_told_by_way_of_the_next_one(tmp_path):
    (tmp_path / "calls.py").write_text(HANDLERS)
    pool = Pool(tmp_path, "--handlers", str(tmp_path / "calls.py"), workers=1)
    waiting = None
    try:
        broker = pool.status()["broker"]["pid"]
        waiting = pool.start("post", "calls", "hang", '"go on"', "--wait", "--timeout", str(DEADLINE_S))
        wait_until((tmp_path / "hung").exists, "the handler is at work")
        os.kill(broker, signal.SIGKILL)
        wait_until(lambda: pool.is_served_anew(broker), "another broker serves")
        (tmp_path / "go on").touch()
        out, _ = waiting.communicate(timeout=DEADLINE_S)
        assert waiting.returncode == 0, (out, pool.err)
        assert b"worker 0" in out
        assert b"  hang (" in out
    finally:
        pool.stop()
        if waiting is not None:
            waiting.kill()
            waiting.communicate()
