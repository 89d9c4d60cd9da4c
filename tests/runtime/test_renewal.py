"""What a bus keeps, and what it logs, when its client is closed, given up or left behind."""

from __future__ import annotations

import asyncio
import itertools
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from textwrap import dedent

import pytest

from eventsh.api import AsyncEvents, Events
from eventsh.errors import EventError, QueueOverflow
from tests.faults.processes import ROOT

DEADLINE_S = 30.0


@pytest.fixture
def address() -> Iterator[str]:
    # Not tmp_path: a socket's path has to be short.
    with tempfile.TemporaryDirectory(prefix="evsh-", dir="/tmp", ignore_cleanup_errors=True) as directory:
        yield f"unix:{directory}/a.sock"


def test_local_events_of_another_thread_outlive_closing_and_configuring(address):
    events = Events(address, linger=0.5)
    seen: list[int] = []
    events.register(lambda data, *_: seen.append(data), "app")
    events.configure().wait_ready(DEADLINE_S)
    over = threading.Event()
    posted: list[int] = []

    def post() -> None:
        for number in itertools.count():
            if over.is_set():
                return
            try:
                events.post_local("app", "e", number)
            except QueueOverflow:
                time.sleep(0.001)
                continue
            posted.append(number)
            # A bus whose queue is never empty can't be closed in order.
            time.sleep(0.0005)

    thread = threading.Thread(target=post)
    thread.start()
    try:
        for _ in range(10):
            events.close()
            events.configure()
    finally:
        over.set()
        thread.join()
    deadline = time.monotonic() + DEADLINE_S
    while len(seen) < len(posted):
        assert time.monotonic() < deadline, len(posted) - len(seen)
        time.sleep(0.01)
    events.close()
    assert sorted(seen) == posted


def test_a_bus_that_is_given_up_logs_its_unconfirmed_posts_and_leaves_the_next_configuration_alone(address, caplog):
    hang = threading.Event()
    seen: list[int] = []

    def handle(data: int | None, *_: object) -> None:
        if data is None:
            hang.wait(DEADLINE_S)
        else:
            seen.append(data)

    events = Events(address, linger=0.5)
    events.register(handle, "app")
    events.configure().wait_ready(DEADLINE_S)
    try:
        events.post_local("app", "hang")
        for number in range(300):
            events.post("app", "e", number)
        events.close(timeout=0.2)
        assert events._bus.outbox.unconfirmed == 0
        kept = events._bus.outbox.queued
        assert f"closed with {300 - kept} posts that were not confirmed" in caplog.text or kept == 300
        events.configure()
        for number in range(1000, 1200):
            events.post("app", "e", number)
        events.flush(DEADLINE_S)
        deadline = time.monotonic() + DEADLINE_S
        while 1199 not in seen:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert [number for number in seen if number >= 1000] == list(range(1000, 1200))
        assert len(set(seen)) == len(seen)
    finally:
        hang.set()
        events.close()
    assert "ended the connection" not in caplog.text
    assert "given up with" not in caplog.text


def test_drain_waits_for_bytes_as_for_events(address):
    events = Events(address, linger=0.5, max_queue_bytes=2_000_000, max_payload_len=1_000_000)
    events.configure().wait_ready(DEADLINE_S)
    try:
        overflows = 0
        for _ in range(200):
            try:
                events.post("app", "e", "x" * 100_000)
            except QueueOverflow:
                overflows += 1
                events.drain(DEADLINE_S)
                assert events._bus.outbox.queued_bytes <= 1_000_000
                events.post("app", "e", "x" * 100_000)
        assert 1 <= overflows <= 20
        events.flush(DEADLINE_S)
    finally:
        events.close()


def test_a_bus_of_another_running_loop_is_not_closed_silently(address):
    events = AsyncEvents(address, linger=0.5)

    async def serve(attached: threading.Event, over: threading.Event) -> None:
        async with events:
            await events.wait_ready(DEADLINE_S)
            attached.set()
            await asyncio.to_thread(over.wait, DEADLINE_S)

    attached, over = threading.Event(), threading.Event()
    thread = threading.Thread(target=lambda: asyncio.run(serve(attached, over)))
    thread.start()
    assert attached.wait(DEADLINE_S)
    with pytest.raises(EventError, match="at work in another loop: close"):
        asyncio.run(events.close())
    over.set()
    thread.join()
    assert not events.configured()


def test_a_bus_whose_loop_was_left_attaches_in_the_next_one_and_logs_what_it_lost(address, caplog):
    events = AsyncEvents(address, broker="never")
    seen: list[int] = []
    events.register(lambda data, *_: seen.append(data), "app")

    async def first() -> None:
        events.configure()
        events.post("app", "e", 1)

    loop = asyncio.new_event_loop()
    loop.run_until_complete(first())
    threads = threading.active_count()

    async def second() -> None:
        events.configure(f"{address}2", broker="auto", linger=0.5)
        events.post("app", "e", 2)
        await events.flush(DEADLINE_S)
        deadline = time.monotonic() + DEADLINE_S
        while seen != [1, 2]:
            assert time.monotonic() < deadline, seen
            await asyncio.sleep(0.01)
        await events.close()

    asyncio.run(second())
    loop.close()
    assert threading.active_count() <= threads


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="elsewhere such a fork is found at the next wait")
def test_the_first_local_event_after_a_fork_that_python_does_not_see_is_handled(address):
    program = """
        import ctypes, os, sys, threading, time
        import eventsh

        seen = []
        eventsh.register(lambda data, event, source, pid: seen.append(data), "app")
        eventsh.configure(sys.argv[1], linger=0.5)
        eventsh.wait_ready(30)
        pid = ctypes.PyDLL(None).fork()
        if pid == 0:
            status = 1
            try:
                eventsh.post_local("app", "e", 1)
                deadline = time.monotonic() + 20
                while seen != [1]:
                    assert time.monotonic() < deadline, seen
                    time.sleep(0.01)
                status = 0
            finally:
                os._exit(status)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        assert seen == []
    """
    done = subprocess.run(
        [sys.executable, "-c", dedent(program), address],
        env={"PYTHONPATH": ROOT},
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert done.returncode == 0, done.stderr
