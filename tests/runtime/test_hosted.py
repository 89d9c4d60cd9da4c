"""The loop in a thread of its own: what ends it, and what does not."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest

from eventsh.runtime import hosted
from eventsh.runtime.hosted import LoopThread

DEADLINE_S = 30.0
ROOT = str(Path(__file__).parents[2])


@pytest.fixture
def thread(monkeypatch: pytest.MonkeyPatch) -> Iterator[LoopThread]:
    monkeypatch.setattr(hosted, "new_event_loop", asyncio.new_event_loop)
    thread = LoopThread("test")
    yield thread
    thread.stop(wait=False)


@pytest.fixture
def address() -> Iterator[str]:
    # Not tmp_path: a socket's path has to be short.
    with tempfile.TemporaryDirectory(prefix="evsh-", dir="/tmp", ignore_cleanup_errors=True) as directory:
        yield f"unix://{directory}/broker"


def wait_until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def run(program: str, *arguments: str) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", dedent(program), *arguments],
        env={**os.environ, "PYTHONPATH": ROOT},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]


def test_a_daemonizer_that_closes_all_descriptors_ends_the_thread(address: str) -> None:
    # uvloop aborts the process there.
    program = """
        import asyncio, logging, os, sys, time
        import eventsh
        from eventsh.runtime import bus, hosted

        records = []

        class Keep(logging.Handler):
            def emit(self, record):
                records.append(record)

        logging.getLogger("eventsh").addHandler(Keep())
        hosted.new_event_loop = asyncio.new_event_loop
        events = eventsh.Events(sys.argv[1], timeout=5)
        events.configure().wait_ready(30)
        thread = events._bus.thread
        # In the loop: one that waits in the kernel does not notice before a timer ends the wait.
        thread.loop.call_soon_threadsafe(os.closerange, 3, 1024)
        deadline = time.monotonic() + 30
        while thread.is_alive:
            assert time.monotonic() < deadline, len(records)
            time.sleep(0.01)
        # Descriptors of the program's own, with the numbers of the closed ones: they must stay open.
        own = [os.open(os.devnull, os.O_RDONLY) for _ in range(20)]
        assert min(own) == 3, own
        began = time.monotonic()
        try:
            events.flush(20)
        except eventsh.NotConnected as error:
            assert "configure() again" in str(error), error
        else:
            raise AssertionError("a flush without a loop")
        assert time.monotonic() - began < 10
        texts = [record.getMessage() for record in records]
        assert len(texts) < 10, len(texts)
        assert sum("can't run" in text for text in texts) == 1, texts

        events.close()
        for descriptor in own:
            os.fstat(descriptor)
        seen = []
        events.register(lambda data, event, source, pid: seen.append(data), "app")
        events.configure().wait_ready(30)
        events.post_and_wait("app", "e", 1)
        assert seen == [1]
        events.close()
    """
    run(program, address)


def test_a_loop_that_can_not_run_closes_no_descriptor_that_has_its_number_now() -> None:
    program = """
        import asyncio, gc, os, time
        from eventsh.runtime import hosted

        hosted.new_event_loop = asyncio.new_event_loop
        thread = hosted.LoopThread("test")
        thread.loop.call_soon_threadsafe(os.closerange, 3, 1024)
        deadline = time.monotonic() + 30
        while thread.is_alive:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        own = [os.open(os.devnull, os.O_RDONLY) for _ in range(20)]
        thread.stop()
        del thread
        gc.collect()
        for descriptor in own:
            os.fstat(descriptor)
    """
    run(program)


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_handlers_that_interrupt_the_loop_at_once_and_often_do_not_end_it(
    thread: LoopThread, error: type[BaseException], caplog: pytest.LogCaptureFixture
) -> None:
    def interrupt() -> None:
        raise error

    async def answer() -> int:
        return 7

    for _ in range(20):
        thread.loop.call_soon_threadsafe(interrupt)
    assert thread.run(answer, DEADLINE_S) == 7
    assert sum("was interrupted" in record.getMessage() for record in caplog.records) == 20
    assert thread.is_alive


def test_failures_that_are_not_in_a_row_do_not_end_the_loop(thread: LoopThread) -> None:
    run_once: Any = thread.loop._run_once  # type: ignore[attr-defined]
    runs = 0

    def fail_every_second_time() -> None:
        nonlocal runs
        runs += 1
        if runs >= 40:
            run_once()
        elif runs % 2:
            raise OSError("once")
        else:
            thread.loop.stop()

    async def answer() -> int:
        return 7

    thread.loop._run_once = fail_every_second_time  # type: ignore[attr-defined]
    thread.loop.call_soon_threadsafe(lambda: None)
    wait_until(lambda: runs >= 40 or not thread.is_alive)
    assert thread.run(answer, DEADLINE_S) == 7
