"""What a program is told that posts on a bus which can't attach."""

from __future__ import annotations

import asyncio
import logging
import subprocess
import sys
import threading
import time
from collections.abc import Callable

import pytest

from eventsh.api import AsyncEvents, Events
from eventsh.errors import ConfigureError
from tests.faults.processes import ROOT

DEADLINE_S = 30.0


def wait_for(caplog: pytest.LogCaptureFixture, count: int) -> list[str]:
    """The warnings about posts that wait, once there are so many."""
    deadline = time.monotonic() + DEADLINE_S
    while True:
        found = [text for _, level, text in caplog.record_tuples if level == logging.WARNING and "posts wait" in text]
        if len(found) >= count:
            return found
        assert time.monotonic() < deadline, caplog.text
        time.sleep(0.01)


def test_posts_in_a_loop_where_no_lifespan_runs_are_warned_of_without_another_post_and_again(caplog):
    events = AsyncEvents(timeout=0.1)
    # The option takes effect with the configuration that never comes.
    events._bus.options = events._bus.options.replace(timeout=0.1)

    async def main() -> None:
        events.post("app", "e", 1)
        events.post("app", "e", 2)
        began = time.monotonic()
        first = await asyncio.to_thread(wait_for, caplog, 1)
        assert time.monotonic() - began >= 0.1
        assert first[0].startswith(
            "2 posts wait: their bus was not configured within 0.1 s; configure() it in its loop"
        )
        await asyncio.to_thread(wait_for, caplog, 3)

    asyncio.run(main())


def test_posts_without_a_loop_are_warned_of_at_a_later_post(caplog):
    events = Events()
    events._bus.options = events._bus.options.replace(timeout=0.05)
    deadline = time.monotonic() + DEADLINE_S
    while "posts wait" not in caplog.text:
        events.post("app", "e", 1)
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert "call eventsh.configure()" in caplog.text


def test_a_bus_that_is_configured_in_time_is_not_warned_of(caplog, tmp_path):
    async def main() -> None:
        events = AsyncEvents("inproc:in-time", timeout=0.2)
        events._bus.options = events._bus.options.replace(timeout=0.2)
        events.post("app", "e", 1)
        async with events:
            await events.flush(DEADLINE_S)
            # Beyond the time of the warning.
            await asyncio.sleep(0.3)

    asyncio.run(main())
    assert "posts wait" not in caplog.text


@pytest.mark.parametrize("make", [Events, AsyncEvents])
def test_greenlets_in_place_of_threads_are_refused_at_once(make: Callable[[], Events | AsyncEvents]) -> None:
    program = f"""
import asyncio, sys, threading, time
import eventsh

def spawn(function, arguments=(), *more, **options):
    raise AssertionError("never called")

for name in ("_start_new_thread", "_start_joinable_thread"):
    if hasattr(threading, name):
        setattr(threading, name, spawn)
sys.modules["gevent"] = sys

async def main():
    bus = eventsh.{make.__name__}("unix:/nowhere/e.sock")
    began = time.monotonic()
    try:
        bus.configure()
    except eventsh.ConfigureError as error:
        print(error)
    assert time.monotonic() - began < 1

asyncio.run(main())
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={"PYTHONPATH": ROOT},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "monkey-patched by gevent" in done.stdout, done.stderr
    assert "gthread" in done.stdout
    assert "Traceback" not in done.stderr


def test_another_loop_than_asyncios_is_named(monkeypatch) -> None:
    with pytest.raises(ConfigureError, match="needs a running asyncio loop: configure"):
        AsyncEvents("inproc:no-loop").configure()


def test_other_threads_may_post_on_a_bus_of_a_loop() -> None:
    seen: list[int] = []

    async def main() -> None:
        async with AsyncEvents("inproc:threads") as events:
            events.register(lambda data, *_: seen.append(data), "app")
            await events.wait_ready(DEADLINE_S)

            def post(first: int) -> None:
                for number in range(first, first + 2000):
                    events.post("app", "e", number)

            threads = [threading.Thread(target=post, args=(first,)) for first in (0, 10_000)]
            for thread in threads:
                thread.start()
            deadline = time.monotonic() + DEADLINE_S
            while len(seen) < 4000:
                assert time.monotonic() < deadline, len(seen)
                await asyncio.sleep(0.01)
            for thread in threads:
                thread.join()

    asyncio.run(main())
    assert sorted(seen) == [*range(2000), *range(10_000, 12_000)]
    for first in (0, 10_000):
        mine = [number for number in seen if number // 10_000 == first // 10_000]
        assert mine == sorted(mine)
