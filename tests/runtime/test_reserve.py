"""Handlers that post while the queue of their process is full, and posters that wait for room in it."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from eventsh import AsyncEvents, Events, QueueOverflow
from eventsh.testing.broker import start_broker
from eventsh.testing.pool import ServedPool

DEADLINE_S = 60.0
REPLIES = 4000


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    broker = start_broker(f"unix:{tmp_path}/s", tmp_path / "log")
    yield broker.address
    broker.stop()


class Program:
    """Handlers that post a reply to each request, and the account of both."""

    def __init__(self, events: Events | AsyncEvents, *, is_async: bool, local: bool = False) -> None:
        self.replies = 0
        self.refused: list[QueueOverflow] = []
        self.missed = 0
        self._post = events.post_local if local else events.post
        events.register(self._answer_async if is_async else self._answer, "request", "r")
        events.register(self._count_reply, "reply", "r")
        events.register(self._count_gap, "eventsh", "gap")

    def _answer(self, data: Any, *_: Any) -> None:
        try:
            self._post("reply", "r", data)
        except QueueOverflow as error:
            self.refused.append(error)

    async def _answer_async(self, data: Any, *_: Any) -> None:
        self._answer(data)

    def _count_reply(self, *_: Any) -> None:
        self.replies += 1

    def _count_gap(self, data: Any, *_: Any) -> None:
        self.missed += data["missed"]

    @property
    def is_over(self) -> bool:
        return self.replies + len(self.refused) == REPLIES

    def check(self) -> None:
        assert (self.replies, len(self.refused), self.missed) == (REPLIES, 0, 0)


def wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


@contextlib.contextmanager
def threads(*works: Callable[[], None]) -> Iterator[None]:
    running = [threading.Thread(target=work, daemon=True) for work in works]
    for thread in running:
        thread.start()
    yield
    for thread in running:
        thread.join(DEADLINE_S)
        assert not thread.is_alive()


def post_all(events: Events, source: str, is_over: Callable[[int], bool]) -> None:
    number = 0
    while not is_over(number):
        try:
            events.post(source, "r", number)
            number += 1
        except QueueOverflow:
            events.drain(DEADLINE_S)


async def post_all_async(events: AsyncEvents, source: str, is_over: Callable[[int], bool]) -> None:
    number = 0
    while not is_over(number):
        try:
            events.post(source, "r", number)
            number += 1
        except QueueOverflow:
            await events.drain(DEADLINE_S)


@pytest.mark.parametrize("is_async", [False, True])
def test_handlers_of_events_get_4000_replies_through_while_a_thread_keeps_the_queue_full(address, is_async):
    events = Events(address, broker="never")
    program = Program(events, is_async=is_async)
    with events:
        events.wait_ready(DEADLINE_S)
        with threads(
            lambda: post_all(events, "noise", lambda _: program.is_over),
            lambda: post_all(events, "request", lambda number: number == REPLIES),
        ):
            wait_until(lambda: program.is_over)
    program.check()


@pytest.mark.parametrize("is_async", [False, True])
def test_handlers_of_async_events_get_4000_replies_through_while_a_task_keeps_the_queue_full(address, is_async):
    async def run() -> Program:
        events = AsyncEvents(address, broker="never")
        program = Program(events, is_async=is_async)
        async with events:
            await events.wait_ready(DEADLINE_S)
            async with asyncio.timeout(DEADLINE_S), asyncio.TaskGroup() as group:
                group.create_task(post_all_async(events, "noise", lambda _: program.is_over))
                group.create_task(post_all_async(events, "request", lambda number: number == REPLIES))
        return program

    asyncio.run(run()).check()


HANDLERS = """
import threading
import eventsh

over = threading.Event()

def keep_full():
    while not over.is_set():
        try:
            eventsh.post("noise", "n")
        except eventsh.QueueOverflow:
            eventsh.drain()

@eventsh.on("begin")
def begin(data, event, source, pid):
    threading.Thread(target=keep_full, daemon=True).start()

@eventsh.on("end")
def end(data, event, source, pid):
    over.set()

@eventsh.on("request")
{define} answer(data, event, source, pid):
    eventsh.post("reply", "r", data)
"""


@pytest.mark.parametrize("define", ["def", "async def"])
def test_handlers_of_a_served_worker_get_4000_replies_through_while_a_thread_keeps_the_queue_full(tmp_path, define):
    (tmp_path / "handlers.py").write_text(HANDLERS.format(define=define))
    pool = ServedPool(f"unix:{tmp_path}/s", [tmp_path / "handlers.py"], 1, tmp_path / "log")
    seen: Counter[str] = Counter()
    # A worker: the noise may be too much for an observer, which would miss replies too.
    other = Events(pool.address, broker="never")
    other.register(lambda data, event, source, pid: seen.update([source]), "reply")
    other.register(lambda data, event, source, pid: seen.update([event]), "eventsh", "gap")
    try:
        pool.wait_ready()
        with other:
            other.wait_ready(DEADLINE_S)
            other.post("begin", "b")
            post_all(other, "request", lambda number: number == REPLIES)
            # A reply that was refused is a handler that failed.
            wait_until(lambda: seen["reply"] >= REPLIES or pool.status()["workers"][0]["failed"] > 0)
            other.post("end", "e")
            assert seen == {"reply": REPLIES}
    finally:
        pool.stop()


def test_a_handler_whose_reserve_is_full_is_told_what_works_there():
    events = Events("inproc:nobody", broker="never", max_queue_len=10)
    outcome: list[int | QueueOverflow] = []

    def post_many(*_: Any) -> None:
        for number in range(100):
            try:
                events.post("reply", "r", number)
            except QueueOverflow as error:
                outcome.extend((number, error))
                break

    events.register(post_many, "begin")
    for _ in range(10):
        events.post("noise", "n", None)
    with pytest.raises(QueueOverflow, match="limit is 10: wait with drain"):
        events.post("noise", "n", None)
    events.configure()
    events.post_local("begin", "b")
    wait_until(lambda: bool(outcome))
    events.close(timeout=0)
    number, error = outcome
    assert number == 10
    assert str(error) == (
        "the post queue holds 20 events, its limit for handlers is 20 (twice max_queue_len): post less in a handler,"
        " await drain() in an async one of AsyncEvents, or raise max_queue_len"
    )


def test_handlers_have_a_reserve_in_the_queue_of_local_events_too(address):
    async def run() -> tuple[list[int], list[str]]:
        posted: list[int] = []
        errors: list[str] = []

        def post_until_full() -> None:
            count = 0
            try:
                while True:
                    events.post_local("noise", "n")
                    count += 1
            except QueueOverflow as error:
                posted.append(count)
                errors.append(str(error))

        over = asyncio.Event()

        async def begin(*_: Any) -> None:
            post_until_full()
            # A task of its own can wait, and has no reserve.
            task = asyncio.create_task(asyncio.to_thread(post_until_full))
            await task
            over.set()

        events = AsyncEvents(address, broker="never", max_queue_len=50)
        events.register(begin, "begin")
        async with events:
            await events.wait_ready(DEADLINE_S)
            events.post_local("begin", "b")
            post_until_full()
            async with asyncio.timeout(DEADLINE_S):
                await over.wait()
        return posted, errors

    posted, errors = asyncio.run(run())
    assert posted[0] == 49
    # The handler begins after some of them were handled.
    assert "limit is 50:" in errors[0]
    assert "for handlers is 100 (twice max_queue_len)" in errors[1]
    assert "limit is 50:" in errors[2]


# --- waiting for room ---


def test_tasks_that_drain_find_room_in_the_order_in_which_they_began_to_wait(address):
    async def run() -> list[int]:
        served: list[int] = []
        async with AsyncEvents(address, broker="never", max_queue_len=1000) as events:
            await events.wait_ready(DEADLINE_S)

            async def work(mine: int) -> None:
                while len(served) < 40:
                    await events.drain(DEADLINE_S)
                    with contextlib.suppress(QueueOverflow):
                        events.post("noise", "n", None)
                        served.append(mine)
                        while True:
                            events.post("noise", "n", None)

            async with asyncio.timeout(DEADLINE_S), asyncio.TaskGroup() as group:
                for mine in range(4):
                    group.create_task(work(mine))
        return served

    served = asyncio.run(run())
    # The first one fills the queue and waits before the others have begun to.
    assert served[1:] == [place % 4 for place in range(len(served) - 1)]


def test_a_waiter_that_gives_up_holds_up_nobody_behind_it(address):
    async def run() -> None:
        async with AsyncEvents(address, broker="never", max_queue_len=1000) as events:
            await events.wait_ready(DEADLINE_S)
            with contextlib.suppress(QueueOverflow):
                while True:
                    events.post("noise", "n", None)
            first = asyncio.create_task(events.drain())
            second = asyncio.create_task(events.drain(DEADLINE_S))
            await asyncio.sleep(0)
            first.cancel()
            await second
            # And one that does not post.
            await events.drain(DEADLINE_S)
            await events.drain(DEADLINE_S)

    asyncio.run(run())


def test_waiters_that_do_not_post_hold_up_nobody_behind_them(address):
    async def run() -> None:
        async with AsyncEvents(address, broker="never", max_queue_len=1000) as events:
            await events.wait_ready(DEADLINE_S)
            with contextlib.suppress(QueueOverflow):
                while True:
                    events.post("noise", "n", None)
            await asyncio.gather(*(events.drain(DEADLINE_S) for _ in range(10)))

    asyncio.run(run())
