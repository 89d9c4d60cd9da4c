"""Posts in the midst of anything: exceptions out of signal handlers, re-entry, time limits set on a thread."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import logging
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from textwrap import dedent
from typing import Any

import pytest

from eventsh.api import AsyncEvents, Events
from eventsh.errors import EventError, QueueOverflow
from tests.faults.processes import ROOT
from tests.opcodes import call_interrupted

DEADLINE_S = 30.0


@pytest.fixture
def address() -> Iterator[str]:
    # Not tmp_path: a socket's path has to be short.
    with tempfile.TemporaryDirectory(prefix="evsh-", dir="/tmp", ignore_cleanup_errors=True) as directory:
        yield f"unix:{directory}/a.sock"


class Seen:
    """The data that a handler was called with."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self.data: list[Any] = []

    def __call__(self, data: Any, event: str, source: str, pid: int | None) -> None:
        with self._changed:
            self.data.append(data)
            self._changed.notify_all()

    def wait_for(self, data: Any) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: data in self.data, DEADLINE_S), self.data[-5:]


@pytest.fixture
def events(address: str) -> Iterator[Events]:
    bus = Events(address, linger=0.2)
    yield bus
    bus.close(timeout=1.0)


POSTS: dict[str, Callable[[Any, int], Any]] = {
    "post": lambda bus, number: bus.post("app", "e", number),
    # Names made anew, data that needs a look, long data: the ways beside the short one.
    "other names": lambda bus, number: bus.post("app", f"e{number}", number),
    "a null": lambda bus, number: bus.post("app", "e", [number, None]),
    "long data": lambda bus, number: bus.post("app", "e", [number, "x" * 5000]),
    "unique": lambda bus, number: bus.post("app", "e", number, unique=f"k{number}"),
    "local": lambda bus, number: bus.post_local("app", "e", number),
}


def check(seen: list[Any], returned: list[int], interrupted: list[int]) -> None:
    """Each that returned arrived once, each that was interrupted at most once, all in their order."""
    numbers = [each[0] if isinstance(each, list) else each for each in seen if each != "end"]
    assert len(set(numbers)) == len(numbers), "some arrived twice"
    assert numbers == sorted(numbers), "out of order"
    assert set(returned) <= set(numbers), "some are lost"
    assert set(numbers) <= {*returned, *interrupted}


@pytest.mark.parametrize("how", POSTS)
def test_a_post_that_is_interrupted_at_any_opcode_is_whole_or_nothing(events: Events, how: str) -> None:
    seen = Seen()
    events.register(seen, "app")
    events.configure().wait_ready(DEADLINE_S)
    returned: list[int] = []
    interrupted: list[int] = []
    numbers = itertools.count()
    for opcode in itertools.count():
        # Before and behind it others, which must not be touched. The first wakes the loop; flushed, the next one does.
        for post in (POSTS["post"], POSTS[how]):
            number = next(numbers)
            is_interrupted = call_interrupted(partial(post, events, number), opcode)
            (interrupted if is_interrupted else returned).append(number)
        if opcode % 2:
            events.flush(DEADLINE_S)
        if not is_interrupted:
            break
        number = next(numbers)
        if how == "local":
            events.post_local("app", "e", number)
        else:
            events.post("app", "e", number)
        returned.append(number)
    events.flush(DEADLINE_S)
    (events.post_local if how == "local" else events.post)("app", "end", "end")
    seen.wait_for("end")
    assert len(interrupted) > 30
    if how == "local":
        # A local event does not wait for those that travel.
        seen.data.sort(key=lambda each: (each == "end", each if each != "end" else 0))
    check(seen.data, returned, interrupted)


def test_an_event_that_was_interrupted_before_the_loop_was_woken_leaves_without_another_post(events: Events) -> None:
    seen = Seen()
    events.register(seen, "app")
    events.configure().wait_ready(DEADLINE_S)
    events.post("app", "e", "first")
    outbox = events._bus.outbox
    left_late = 0
    for opcode in itertools.count():
        events.flush(DEADLINE_S)
        if not call_interrupted(partial(events.post, "app", "e", opcode), opcode):
            break
        if outbox.queued:
            left_late += 1
            began = time.monotonic()
            while outbox.queued:
                assert time.monotonic() - began < DEADLINE_S
                time.sleep(0.005)
    assert left_late, "no opcode lies between the append and the wake-up"


@pytest.mark.parametrize("how", [how for how in POSTS if how != "local"])
def test_a_post_in_a_loop_that_is_interrupted_at_any_opcode_is_whole_or_nothing(address: str, how: str) -> None:
    """AsyncEvents sends full batches in the posting thread too."""
    seen = Seen()
    returned: list[int] = []
    interrupted: list[int] = []

    async def main() -> None:
        async with AsyncEvents(address, linger=0.2) as events:
            events.register(seen, "app")
            await events.wait_ready(DEADLINE_S)
            numbers = itertools.count()
            for opcode in itertools.count():
                number = next(numbers)
                is_interrupted = call_interrupted(partial(POSTS[how], events, number), opcode)
                (interrupted if is_interrupted else returned).append(number)
                if not is_interrupted:
                    break
                if opcode % 3 == 0:
                    await events.flush(DEADLINE_S)
            events.post("app", "end", "end")
            await events.flush(DEADLINE_S)
            deadline = time.monotonic() + DEADLINE_S
            while "end" not in seen.data:
                assert time.monotonic() < deadline
                await asyncio.sleep(0.01)

    asyncio.run(main())
    assert len(interrupted) > 30
    check(seen.data, returned, interrupted)


def run(program: str, *arguments: str, python: str = sys.executable) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [python, "-c", dedent(program), *arguments],
        env={**os.environ, "PYTHONPATH": ROOT},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_posts_of_a_finalizer_a_signal_handler_and_a_logging_handler_within_a_post_all_arrive(events: Events) -> None:
    seen = Seen()
    events.register(seen, "app")
    events.configure().wait_ready(DEADLINE_S)
    expected: list[Any] = []

    def post(data: Any) -> None:
        expected.append(data)
        events.post("app", "e", data)

    class Finalized:
        def __init__(self, number: int) -> None:
            self.number = number
            self.itself = self

        def __del__(self) -> None:
            post(["finalizer", self.number])

    class Posting(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            post(["log", record.getMessage()])

    logger = logging.getLogger("eventsh")
    handler = Posting()
    logger.addHandler(handler)
    before = signal.signal(signal.SIGALRM, lambda *_: post(["signal", len(expected)]))
    thresholds = gc.get_threshold()
    try:
        gc.set_threshold(20)
        signal.setitimer(signal.ITIMER_REAL, 0.001, 0.002)
        for number in range(3000):
            Finalized(number)
            post(number)
            if number % 1000 == 0:
                logger.warning("a line %d", number)
            if number % 500 == 499:
                events.flush(DEADLINE_S)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        gc.set_threshold(*thresholds)
        logger.removeHandler(handler)
    gc.collect()
    events.post("app", "e", "end")
    seen.wait_for("end")
    kinds = {each[0] for each in seen.data if isinstance(each, list)}
    assert kinds == {"finalizer", "signal", "log"}
    assert sorted(map(repr, seen.data)) == sorted(map(repr, [*expected, "end"]))
    assert [each for each in seen.data if isinstance(each, int)] == list(range(3000))


def test_a_program_that_posts_can_be_closed_and_ended_by_its_signal_handler(address: str) -> None:
    program = """
        import os, signal, sys, time
        import eventsh

        seen = []
        eventsh.register(lambda data, event, source, pid: seen.append(data), "app")
        eventsh.configure(sys.argv[1], linger=0.2)
        eventsh.wait_ready(30)

        def stop(*_):
            began = time.monotonic()
            eventsh.close()
            print(number - len(seen), time.monotonic() - began < 4)
            sys.exit(3)

        signal.signal(signal.SIGTERM, stop)
        number = 0
        threading = __import__("threading")
        threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGTERM)).start()
        while True:
            try:
                eventsh.post("app", "e", number)
                number += 1
            except eventsh.QueueOverflow:
                eventsh.drain(30)
    """
    done = run(program, address)
    assert done.returncode == 3, done.stderr
    # The post that was interrupted may have been appended before it could be counted.
    assert done.stdout in ("0 True\n", "-1 True\n")
    assert not done.stderr


def test_several_threads_pass_the_limit_of_the_queue_by_one_event_each_at_most(address: str) -> None:
    events = Events(address, broker="never", max_queue_len=1000)
    events.configure()
    try:
        start = threading.Barrier(4)

        def fill() -> None:
            start.wait()
            with contextlib.suppress(QueueOverflow):
                for number in itertools.count():
                    events.post("app", "e", number)

        threads = [threading.Thread(target=fill) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(DEADLINE_S)
        assert 1000 <= events._bus.outbox.queued <= 1004
    finally:
        events.close(timeout=0.1)


def test_the_queue_is_bounded_in_bytes_too(address: str) -> None:
    events = Events(address, broker="never", max_queue_bytes=4_000_000, max_payload_len=1_000_000)
    events.configure()
    try:
        with pytest.raises(QueueOverflow, match=r"bytes, its limit is 4000000: .* raise max_queue_bytes"):  # noqa: PT012 - which of them is the point
            for _ in range(100):
                events.post("app", "e", "x" * 100_000)
        assert 30 <= events._bus.outbox.queued <= 40
    finally:
        events.close(timeout=0.1)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="elsewhere such a fork is found at the next wait")
@pytest.mark.parametrize("wakes", ["a post", "a wait", "a post while the parent's loop is awake"])
def test_a_fork_that_python_does_not_see_attaches_anew(address: str, wakes: str) -> None:
    program = """
        import ctypes, os, sys, threading, time
        import eventsh
        from eventsh.runtime import bus

        seen = []
        eventsh.register(lambda data, event, source, pid: seen.append((data, pid)), "app")
        eventsh.configure(sys.argv[1], linger=1.0)
        eventsh.wait_ready(30)
        if sys.argv[2] == "a post while the parent's loop is awake":
            # As after a post that the loop had no turn for.
            bus.default_bus().outbox.is_awake[0] = 1
        pid = ctypes.PyDLL(None).fork()
        if pid == 0:
            status = 1
            try:
                if sys.argv[2] == "a wait":
                    eventsh.wait_ready(10)
                eventsh.post("app", "e", "child's")
                eventsh.flush(10)
                eventsh.post_and_wait("app", "end", timeout=10)
                mine = [data for data, poster in seen if poster == os.getpid()]
                status = 0 if mine == ["child's", None] else 2
                print(seen, flush=True)
                eventsh.close()
            finally:
                os._exit(status)
        deadline = time.monotonic() + 30
        while ("child's", pid) not in seen:
            assert time.monotonic() < deadline, seen
            time.sleep(0.01)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    """
    done = run(program, address, wakes)
    assert done.returncode == 0, done.stderr + done.stdout


@pytest.mark.parametrize("how", ["loop.stop()", "KeyboardInterrupt", "a handler that hangs"])
def test_every_wait_ends_by_its_timeout_whatever_happened_to_the_loop(
    events: Events, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    hang = threading.Event()

    async def stop(data: Any, event: str, source: str, pid: int | None) -> None:
        if how == "loop.stop()":
            asyncio.get_running_loop().stop()
        elif how == "KeyboardInterrupt":
            raise KeyboardInterrupt
        else:
            hang.wait(DEADLINE_S)

    # A KeyboardInterrupt out of a handler is the program's: it is raised again in the main thread.
    raised: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _: raised.append(number))
    seen = Seen()
    events.register(stop, "stop")
    events.register(seen, "app")
    events.configure().wait_ready(DEADLINE_S)
    try:
        events.post("stop", "e")
        for wait in (
            lambda: events.flush(1.0),
            lambda: events.post_and_wait("app", "e", 1, timeout=1.0),
            lambda: events.drain(1.0),
            lambda: events.wait_ready(1.0),
        ):
            began = time.monotonic()
            try:
                wait()
            except EventError as error:
                assert how == "a handler that hangs", error
                assert "1 s" in str(error)
            assert time.monotonic() - began < 5.0
    finally:
        hang.set()
        signal.signal(signal.SIGINT, before)
    assert len(raised) == (how == "KeyboardInterrupt")
    # It goes on.
    events.post("app", "e", "end")
    seen.wait_for("end")
    events.flush(DEADLINE_S)


def test_a_program_that_ends_right_after_configure_and_post_ends_at_once_and_without_a_traceback(address: str) -> None:
    began = time.monotonic()
    program = """
        import sys
        import eventsh
        eventsh.configure(sys.argv[1], linger=0.2)
        eventsh.post("app", "e", 1)
    """
    done = run(program, address)
    assert (done.returncode, done.stderr) == (0, "")
    assert time.monotonic() - began < 5.0
