from __future__ import annotations

import asyncio
import functools
import gc
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import pytest

from eventsh.core.delivery import Delivery
from eventsh.core.registry import Registry
from eventsh.runtime.dispatch import Dispatcher, HandlerFailure
from eventsh.runtime.exits import raise_exit

PID = 4711


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Desk:
    """A dispatcher with all that it tells."""

    def __init__(
        self, *, timeout_s: float = 60.0, clock: Callable[[], float] = time.monotonic, raises_exits: bool = False
    ) -> None:
        self.registry = Registry()
        self.failures: list[HandlerFailure] = []
        self.completed: list[Delivery] = []
        self.seen: list[Any] = []
        self.exits: list[BaseException] = []
        self.dispatcher = Dispatcher(
            self.registry,
            timeout_s=timeout_s,
            on_failure=self.failures.append,
            on_complete=self.completed.append,
            on_exit=raise_exit if raises_exits else self.exits.append,
            clock=clock,
        )

    def dispatch(self, *datas: Any, source: str = "s", event: str = "e") -> bool:
        return self.dispatcher.dispatch(batch(*datas, source=source, event=event))

    def note(self, data: Any, event: str, source: str, pid: int | None) -> None:
        self.seen.append(data)


def batch(*datas: Any, source: str = "s", event: str = "e", last_seq: int = 9) -> Delivery:
    return Delivery(last_seq, len(datas), PID, [[source, event, list(datas)]])


@pytest.fixture
def desk() -> Iterator[Desk]:
    desk = Desk()
    yield desk
    desk.dispatcher.close()


@pytest.fixture
def slow_desk() -> Iterator[Desk]:
    """With a clock to set, and a watchdog that looks too rarely (once a second) to be in the way."""
    desk = Desk(timeout_s=100.0, clock=Clock())
    yield desk
    desk.dispatcher.close()


def warnings_in(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


def in_loop(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Run an async test in a loop of its own."""

    @functools.wraps(test)
    def run(*arguments: Any, **fixtures: Any) -> None:
        asyncio.run(test(*arguments, **fixtures))

    return run


async def settle(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0)


# --- sync handlers ---


def test_a_handler_gets_data_event_source_and_pid(desk):
    got = []
    desk.registry.register(lambda *arguments: got.append(arguments))
    assert desk.dispatcher.dispatch(Delivery(2, 2, PID, [["a", "b", [{"x": 1}, None]]])) is True
    assert desk.dispatcher.dispatch(Delivery(0, 1, None, [("c", "d", [3])])) is True
    assert got == [({"x": 1}, "b", "a", PID), (None, "b", "a", PID), (3, "d", "c", None)]


def test_runs_and_their_events_are_handled_in_order(desk):
    desk.registry.register(desk.note)
    desk.dispatcher.dispatch(Delivery(5, 5, PID, [["a", "x", [1, 2]], ["b", "x", [3]], ["a", "x", [4, 5]]]))
    assert desk.seen == [1, 2, 3, 4, 5]


def test_each_event_goes_through_all_levels_before_the_next_one(desk):
    for name, level in (("event", ("s", "e")), ("source", ("s",)), ("all", ())):
        desk.registry.register(lambda data, *_, name=name: desk.seen.append(f"{name} {data}"), *level)
    desk.dispatch(1, 2)
    assert desk.seen == ["all 1", "source 1", "event 1", "all 2", "source 2", "event 2"]


def test_handled_counts_events_also_those_that_nobody_wants(desk):
    desk.registry.register(desk.note, "s")
    desk.registry.register(lambda *_: None, "s")
    desk.dispatch(1, 2, 3)
    assert desk.dispatch(4, source="nobody's") is True
    assert desk.dispatcher.handled == 4
    assert desk.seen == [1, 2, 3]


def test_a_delivery_without_events_is_done_at_once(desk):
    assert desk.dispatcher.dispatch(Delivery(3, 0, PID, [])) is True
    assert desk.completed == []


def test_calls_are_counted_for_each_handler(desk):
    desk.registry.register(desk.note)
    desk.registry.register(desk.note, "s", "e")
    desk.dispatch(1, 2, 3)
    desk.dispatch(4, event="other")
    assert [handler.calls for handler in desk.registry.handlers()] == [4, 3]


def test_a_dead_weak_handler_is_passed_over(desk):
    class Owner:
        def handle(self, data: Any, *_: Any) -> None:
            desk.seen.append(data)

    owner = Owner()
    desk.registry.register(owner.handle, weak=True)
    desk.dispatch(1)
    del owner
    gc.collect()
    assert desk.dispatch(2) is True
    assert desk.seen == [1]


# --- H7: changes while running ---


@pytest.mark.parametrize("neighbours", [0, 1])
def test_h7_a_handler_that_unregisters_itself_gets_no_more_of_the_same_run(desk, neighbours):
    def once(data: Any, *_: Any) -> None:
        desk.seen.append(f"once {data}")
        desk.registry.unregister(once)

    desk.registry.register(once)
    [handler] = desk.registry.handlers()
    if neighbours:
        desk.registry.register(desk.note)
    desk.dispatch(1, 2, 3)
    assert desk.seen == (["once 1", 1, 2, 3] if neighbours else ["once 1"])
    assert handler.calls == 1


def test_h7_a_handler_that_is_registered_by_another_gets_the_next_event_of_the_run(desk):
    def invite(data: Any, *_: Any) -> None:
        if data == 2:
            desk.registry.register(desk.note)

    desk.registry.register(invite)
    desk.dispatch(1, 2, 3, 4)
    assert desk.seen == [3, 4]
    assert [handler.calls for handler in desk.registry.handlers()] == [4, 2]


def test_h7_unregistering_a_neighbour_skips_nobody_for_the_event_that_is_handled(desk):
    def remove(data: Any, *_: Any) -> None:
        desk.registry.unregister(desk.note)

    desk.registry.register(remove)
    desk.registry.register(desk.note)
    desk.registry.register(lambda data, *_: desk.seen.append(f"last {data}"))
    desk.dispatch(1, 2)
    assert desk.seen == [1, "last 1", "last 2"]


# --- failures ---


def inner(data: Any) -> None:
    raise ValueError("it broke")


def outer(data: Any, *_: Any) -> None:
    inner(data)


def test_h6_a_handler_that_raises_stops_nothing_and_is_told_with_every_frame(desk, caplog):
    desk.registry.register(outer)
    desk.registry.register(desk.note)
    assert desk.dispatch("secret payload", 2) is True
    assert desk.seen == ["secret payload", 2]
    assert (desk.dispatcher.failed, desk.dispatcher.handled) == (2, 2)
    failing, fine = desk.registry.handlers()
    assert (failing.calls, failing.errors, fine.errors) == (2, 2, 0)
    failure = desk.failures[0]
    assert (failure.handler, failure.source, failure.event) == ("outer", "s", "e")
    assert failure.location == f"{__file__}:{outer.__code__.co_firstlineno}"
    assert (failure.error_type, failure.error_text) == ("ValueError", "it broke")
    for text in (failure.traceback, caplog.text):
        assert "Traceback (most recent call last)" in text
        assert "in outer" in text
        assert "in inner" in text
        assert "ValueError: it broke" in text
        assert "secret payload" not in text
    record = caplog.records[0]
    assert (record.name, record.levelname) == ("eventsh", "ERROR")
    for fact in ("outer", failure.location, "'s'", "'e'"):
        assert fact in record.getMessage()


EXITS = [KeyboardInterrupt(), SystemExit(3)]


@pytest.mark.parametrize("alone", [True, False])
@pytest.mark.parametrize(
    "error",
    [
        *EXITS,
        asyncio.CancelledError(),
        GeneratorExit(),
        RecursionError("deep"),
        StopIteration(1),
        StopAsyncIteration(),
        BaseExceptionGroup("several", EXITS),
    ],
)
def test_whatever_a_handler_raises_does_not_end_the_dispatch(desk, error, alone):
    def fail(data: Any, *_: Any) -> None:
        raise error

    desk.registry.register(fail)
    if not alone:
        desk.registry.register(desk.note)
    assert desk.dispatch(1, 2) is True
    # Runs of one event are handled on a path of their own.
    assert desk.dispatcher.dispatch(Delivery(4, 2, PID, [["s", "e", [3]], ["t", "e", [4]]])) is True
    assert [failure.error_type for failure in desk.failures] == [type(error).__name__] * 4
    assert desk.seen == ([] if alone else [1, 2, 3, 4])
    assert desk.exits == ([error] * 4 if error in EXITS else [])


@pytest.mark.parametrize("alone", [True, False])
@pytest.mark.parametrize("error", EXITS)
@pytest.mark.parametrize("runs", [[["s", "e", [1, 2]]], [["s", "e", [1]], ["s", "e", [2]]]])
def test_an_exit_is_reported_and_raised_once_the_event_is_complete(alone, error, runs):
    desk = Desk(raises_exits=True)

    def end(*_: Any) -> None:
        raise error

    desk.registry.register(end)
    if not alone:
        desk.registry.register(desk.note)
    delivery = Delivery(2, 2, PID, runs)
    with pytest.raises(type(error)):
        desk.dispatcher.dispatch(delivery)
    # The event is complete, and the dispatch can be resumed.
    assert desk.seen == ([] if alone else [1])
    assert delivery.at < len(runs)
    with pytest.raises(type(error)):
        desk.dispatcher.dispatch(delivery)
    # So is the delivery, at its last event.
    assert desk.seen == ([] if alone else [1, 2])
    assert delivery.is_over
    assert [failure.error_type for failure in desk.failures] == [type(error).__name__] * 2
    assert desk.dispatcher.dispatch(delivery) is True
    desk.dispatcher.close()


def test_an_error_that_can_not_be_written_is_still_told(desk):
    class Mute(Exception):
        def __str__(self) -> str:
            raise RuntimeError

    def fail(*_: Any) -> None:
        raise Mute

    desk.registry.register(fail)
    desk.dispatch(1)
    assert desk.failures[0].error_type.endswith("Mute")


def test_a_failure_that_can_not_be_passed_on_stops_nothing(caplog):
    registry, seen = Registry(), []

    def refuse(failure: HandlerFailure) -> None:
        raise OSError("full")

    dispatcher = Dispatcher(registry, timeout_s=60, on_failure=refuse, on_complete=lambda _: None)
    registry.register(outer)
    registry.register(lambda data, *_: seen.append(data))
    assert dispatcher.dispatch(batch(1, 2)) is True
    dispatcher.close()
    assert seen == [1, 2]
    assert "could not be passed on" in caplog.text


def test_names_from_events_are_escaped_in_the_log(desk, caplog):
    desk.registry.register(outer)
    desk.dispatch(1, source="\x1b[31m\n", event="\u202e")
    message = caplog.records[0].getMessage()
    assert message.isprintable()


# --- async handlers ---


@in_loop
async def test_an_async_delivery_is_completed_once_when_its_last_handler_returns(desk):
    gate = asyncio.Event()

    async def wait(data: Any, *_: Any) -> None:
        await gate.wait()
        desk.seen.append(data)

    desk.registry.register(wait)
    delivery = batch(1, 2, 3)
    assert desk.dispatcher.dispatch(delivery) is False
    await settle(lambda: desk.dispatcher.pending == 3)
    assert (desk.completed, desk.dispatcher.handled) == ([], 0)
    gate.set()
    await desk.dispatcher.drain()
    assert desk.seen == [1, 2, 3]
    assert desk.completed == [delivery]
    assert (desk.dispatcher.handled, desk.dispatcher.pending) == (3, 0)
    assert desk.registry.handlers()[0].calls == 3


@in_loop
async def test_one_handler_gets_one_event_at_a_time_in_order_and_holds_up_no_other(desk):
    gate = asyncio.Event()
    running = 0
    quick_seen = []

    async def slow(data: Any, *_: Any) -> None:
        nonlocal running
        running += 1
        assert running == 1
        await gate.wait()
        await asyncio.sleep(0)
        running -= 1
        desk.seen.append(data)

    async def quick(data: Any, *_: Any) -> None:
        quick_seen.append(data)

    desk.registry.register(slow, "s", "e")
    desk.registry.register(quick)
    desk.dispatch(1, 2)
    other = batch(3, event="other")
    assert desk.dispatcher.dispatch(other) is False
    await settle(lambda: quick_seen == [1, 2, 3])
    # The later delivery does not wait for the earlier one.
    assert desk.completed == [other]
    assert desk.seen == []
    gate.set()
    await desk.dispatcher.drain()
    assert desk.seen == [1, 2]
    assert desk.failures == []
    assert len(desk.completed) == 2


@in_loop
async def test_sync_handlers_run_inline_and_async_ones_start_in_the_declared_order(desk):
    def note(name: str) -> Callable[..., None]:
        return lambda data, *_: desk.seen.append(f"{name} {data}")

    async def note_async(name: str, data: Any, *_: Any) -> None:
        desk.seen.append(f"{name} {data}")

    desk.registry.register(functools.partial(note_async, "async 1"))
    desk.registry.register(note("sync 1"))
    desk.registry.register(functools.partial(note_async, "async 2"))
    desk.registry.register(note("sync 2"))
    desk.dispatch("x")
    assert desk.seen == ["sync 1 x", "sync 2 x"]
    await desk.dispatcher.drain()
    assert desk.seen[2:] == ["async 1 x", "async 2 x"]


@in_loop
async def test_no_task_is_left_when_the_lanes_are_empty(desk):
    async def handle(*_: Any) -> None:
        await asyncio.sleep(0)

    desk.registry.register(handle)
    for _ in range(3):
        desk.dispatch(1, 2)
        await desk.dispatcher.drain()
        assert asyncio.all_tasks() == {asyncio.current_task()}
    assert len(desk.completed) == 3


@in_loop
async def test_an_async_handler_that_fails_is_told_and_gets_its_next_event(desk, caplog):
    async def fail(data: Any, *_: Any) -> None:
        await asyncio.sleep(0)
        if data == 1:
            inner(data)
        if data == 2:
            sys.exit(3)
        if data == 3:
            raise asyncio.CancelledError
        desk.seen.append(data)

    desk.registry.register(fail)
    delivery = batch(1, 2, 3, 4)
    desk.dispatcher.dispatch(delivery)
    await desk.dispatcher.drain()
    assert desk.seen == [4]
    assert [failure.error_type for failure in desk.failures] == ["ValueError", "SystemExit", "CancelledError"]
    assert "in inner" in desk.failures[0].traceback
    assert "in inner" in caplog.text
    assert desk.completed == [delivery]
    assert desk.registry.handlers()[0].errors == desk.dispatcher.failed == 3


@in_loop
async def test_a_lane_whose_task_is_cancelled_by_others_goes_on_with_the_next_event(desk):
    started = []

    async def handle(data: Any, *_: Any) -> None:
        task = asyncio.current_task()
        assert task is not None
        started.append(task)
        if data == 1:
            await asyncio.Event().wait()
        desk.seen.append(data)

    desk.registry.register(handle)
    delivery = batch(1, 2, 3)
    desk.dispatcher.dispatch(delivery)
    await settle(lambda: bool(started))
    started[0].cancel()
    await desk.dispatcher.drain()
    assert desk.seen == [2, 3]
    assert [failure.error_type for failure in desk.failures] == ["CancelledError"]
    assert desk.completed == [delivery]


@in_loop
async def test_a_lane_whose_task_is_cancelled_before_it_begins_loses_nothing(desk):
    async def handle(data: Any, *_: Any) -> None:
        desk.seen.append(data)

    desk.registry.register(handle)
    before = asyncio.all_tasks()
    desk.dispatch(1, 2)
    for task in asyncio.all_tasks() - before:
        task.cancel()
    await desk.dispatcher.drain()
    assert desk.seen == [1, 2]
    assert len(desk.completed) == 1


@in_loop
async def test_an_async_handler_that_unregisters_itself_gets_no_queued_event(desk):
    async def once(data: Any, *_: Any) -> None:
        desk.seen.append(data)
        desk.registry.unregister(once)

    desk.registry.register(once)
    [handler] = desk.registry.handlers()
    delivery = batch(1, 2, 3)
    desk.dispatcher.dispatch(delivery)
    await desk.dispatcher.drain()
    assert desk.seen == [1]
    assert handler.calls == 1
    assert desk.completed == [delivery]


@in_loop
async def test_a_weak_async_handler_that_dies_in_the_queue_completes_its_delivery(desk):
    class Owner:
        async def handle(self, data: Any, *_: Any) -> None:
            desk.seen.append(data)

    owner = Owner()
    desk.registry.register(owner.handle, weak=True)
    delivery = batch(1)
    desk.dispatcher.dispatch(delivery)
    del owner
    gc.collect()
    await desk.dispatcher.drain()
    assert (desk.seen, desk.failures, desk.completed) == ([], [], [delivery])


@pytest.mark.parametrize("alone", [True, False])
@in_loop
async def test_a_coroutine_that_a_sync_handler_returns_is_awaited_in_order(desk, alone):
    async def work(data: Any) -> None:
        await asyncio.sleep(0)
        desk.seen.append(data)

    desk.registry.register(lambda data, *_: work(data))
    if not alone:
        desk.registry.register(lambda *_: None)
    delivery = batch(1, 2, 3)
    assert desk.dispatcher.dispatch(delivery) is False
    await desk.dispatcher.drain()
    assert desk.seen == [1, 2, 3]
    assert desk.completed == [delivery]
    assert desk.registry.handlers()[0].calls == 3


@in_loop
async def test_a_future_that_a_sync_handler_returns_is_its_own_affair(desk):
    future = asyncio.get_running_loop().create_future()
    desk.registry.register(lambda *_: future)
    assert desk.dispatch(1) is True


@in_loop
async def test_a_handler_that_never_waits_lets_others_have_their_turn():
    clock = Clock()
    desk = Desk(clock=clock)

    async def work(data: Any, *_: Any) -> None:
        clock.now += 0.005
        desk.seen.append(data)

    desk.registry.register(work)
    desk.dispatch(*range(100))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert 0 < len(desk.seen) < 10
    await desk.dispatcher.drain()
    assert desk.seen == list(range(100))
    desk.dispatcher.close()


@pytest.mark.skipif(sys.version_info < (3, 12), reason="loops start tasks eagerly from 3.12 on")
@in_loop
async def test_a_loop_that_starts_tasks_eagerly_completes_each_delivery_once(desk):
    async def handle(data: Any, *_: Any) -> None:
        desk.seen.append(data)

    asyncio.get_running_loop().set_task_factory(getattr(asyncio, "eager_task_factory"))  # noqa: B009 - unknown to 3.11's types
    desk.registry.register(handle)
    finished = [desk.dispatch(1, 2), desk.dispatch(3)]
    await desk.dispatcher.drain()
    assert desk.seen == [1, 2, 3]
    assert desk.dispatcher.handled == 3
    assert finished.count(True) + len(desk.completed) == 2


# --- closing ---


@in_loop
async def test_close_cancels_what_runs_and_forgets_what_waits_without_calling_it_a_failure(desk, caplog):
    cancelled = []

    async def hang(data: Any, *_: Any) -> None:
        desk.seen.append(data)
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.append(data)

    desk.registry.register(hang)
    desk.registry.register(lambda data, *_: hang(data))
    desk.dispatch(1, 2)
    await settle(lambda: desk.seen == [1, 1])
    desk.dispatcher.close()
    desk.dispatcher.close()
    await desk.dispatcher.drain()
    gc.collect()
    assert cancelled == [1, 1]
    assert (desk.seen, desk.failures, desk.completed) == ([1, 1], [], [])
    assert desk.dispatcher.pending == 0
    assert caplog.records == []
    assert asyncio.all_tasks() == {asyncio.current_task()}


@in_loop
async def test_after_close_nothing_is_called(desk):
    desk.registry.register(desk.note)
    desk.dispatcher.close()
    assert desk.dispatch(1) is False
    assert desk.seen == []


@in_loop
async def test_close_by_a_handler_lets_that_handler_finish(desk):
    async def stop(data: Any, *_: Any) -> None:
        desk.dispatcher.close()
        await desk.dispatcher.drain()
        await asyncio.sleep(0)
        desk.seen.append(data)

    desk.registry.register(stop)
    delivery = batch(1, 2)
    desk.dispatcher.dispatch(delivery)
    await settle(lambda: desk.seen == [1])
    await desk.dispatcher.drain()
    # What was not handled is not called complete.
    assert desk.completed == []
    assert desk.seen == [1]


@in_loop
async def test_close_by_a_sync_handler_leaves_the_delivery_incomplete_if_async_ones_are_behind_it(desk):
    async def late(data: Any, *_: Any) -> None:
        desk.seen.append(data)

    desk.registry.register(lambda *_: desk.dispatcher.close())
    desk.registry.register(late)
    assert desk.dispatch(1) is False
    await asyncio.sleep(0)
    assert (desk.seen, desk.completed) == ([], [])


def test_close_works_without_a_loop_and_after_its_end(desk):
    async def hang(*_: Any) -> None:
        await asyncio.Event().wait()

    async def main() -> None:
        desk.registry.register(hang)
        desk.dispatch(1)
        await asyncio.sleep(0)

    asyncio.run(main())
    desk.dispatcher.close()
    Desk().dispatcher.close()


def test_close_works_when_the_loop_was_closed_with_a_handler_in_it(desk):
    async def hang(*_: Any) -> None:
        await asyncio.Event().wait()

    async def start() -> None:
        desk.registry.register(hang)
        desk.dispatch(1)
        await asyncio.sleep(0)

    loop = asyncio.new_event_loop()
    loop.run_until_complete(start())
    loop.close()
    desk.dispatcher.close()
    assert (desk.failures, desk.completed) == ([], [])


# --- slow handlers ---


class Told(logging.Handler):
    """Lets a handler hang for just as long as nobody has warned of it.

    Keeps the warnings itself: when `event` is set, they may not have come to other log handlers yet.
    """

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.event = threading.Event()
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())
        self.event.set()


@pytest.fixture
def told() -> Iterator[Told]:
    handler = Told()
    logging.getLogger("eventsh").addHandler(handler)
    yield handler
    logging.getLogger("eventsh").removeHandler(handler)


@pytest.fixture
def hasty_desk() -> Iterator[Desk]:
    desk = Desk(timeout_s=0.05)
    yield desk
    desk.dispatcher.close()
    # It may still be logging, and the next test must not see that.
    watchdog = desk.dispatcher._watchdog
    assert watchdog is not None
    watchdog._thread.join(10)
    assert not watchdog._thread.is_alive()


def test_a_sync_handler_is_warned_of_while_it_hangs_and_only_once(hasty_desk, told):
    def hang(data: Any, *_: Any) -> None:
        assert told.event.wait(20)

    hasty_desk.registry.register(hang)
    assert hasty_desk.dispatch("secret payload") is True
    assert hasty_desk.failures == []
    [message] = told.messages
    [handler] = hasty_desk.registry.handlers()
    for fact in (handler.name, handler.location, "'s'", "'e'", " s ", "timeout"):
        assert fact in message
    assert "secret" not in message


@in_loop
async def test_an_async_handler_is_warned_of_while_it_hangs_and_only_once(hasty_desk, told):
    async def hang(*_: Any) -> None:
        async with asyncio.timeout(20):
            while not told.event.is_set():
                await asyncio.sleep(0.001)

    hasty_desk.registry.register(hang)
    hasty_desk.dispatch(1)
    await hasty_desk.dispatcher.drain()
    assert hasty_desk.failures == []
    [message] = told.messages
    assert hasty_desk.registry.handlers()[0].location in message


@in_loop
async def test_an_async_handler_that_blocks_the_loop_is_warned_of_while_it_does(hasty_desk, told):
    async def block(*_: Any) -> None:
        assert told.event.wait(20)

    hasty_desk.registry.register(block)
    hasty_desk.dispatch(1)
    await hasty_desk.dispatcher.drain()
    assert hasty_desk.failures == []
    assert len(told.messages) == 1


def test_each_slow_call_is_warned_of(hasty_desk, told):
    def hang(*_: Any) -> None:
        assert told.event.wait(20)
        told.event.clear()

    hasty_desk.registry.register(hang)
    hasty_desk.dispatch(1, 2)
    assert hasty_desk.failures == []
    assert len(told.messages) == 2


def test_many_fast_calls_are_not_taken_for_one_that_hangs(slow_desk, caplog):
    desk = slow_desk

    def quick(*_: Any) -> None:
        desk.dispatcher._clock.now += 40
        desk.dispatcher._look()

    desk.registry.register(quick)
    for _ in range(5):
        desk.dispatch(1, 2)
    assert warnings_in(caplog) == []


def test_a_call_that_is_seen_for_the_timeout_is_told_at_that_time(slow_desk, caplog):
    desk = slow_desk
    told_after = []

    def hang(*_: Any) -> None:
        for _look in range(5):
            desk.dispatcher._look()
            told_after.append(len(warnings_in(caplog)))
            desk.dispatcher._clock.now += 50

    desk.registry.register(hang)
    desk.dispatch(1)
    assert told_after == [0, 0, 1, 1, 1]
    assert len(warnings_in(caplog)) == 1


def test_one_slow_call_that_was_not_seen_is_warned_of_afterwards(slow_desk, caplog):
    desk = slow_desk

    def slow(*_: Any) -> None:
        desk.dispatcher._clock.now += 101

    desk.registry.register(slow)
    desk.dispatch(1)
    [message] = warnings_in(caplog)
    assert "slow" in message
    assert "101 s" in message
    assert "'e'" in message


def test_a_slow_handler_that_unregistered_itself_is_named_too(slow_desk, caplog):
    desk = slow_desk

    def slow_once(*_: Any) -> None:
        desk.registry.unregister(slow_once)
        desk.dispatcher._clock.now += 101

    desk.registry.register(slow_once)
    desk.dispatch(1)
    [message] = warnings_in(caplog)
    assert "slow_once" in message


def test_a_slow_delivery_names_its_handlers(slow_desk, caplog):
    desk = slow_desk

    def slow(*_: Any) -> None:
        desk.dispatcher._clock.now += 40

    desk.registry.register(slow)
    desk.registry.register(desk.note, "s")
    desk.registry.register(outer, "other")
    desk.dispatch(1, 2, 3)
    [message] = warnings_in(caplog)
    assert "3 events" in message
    assert "slow (" in message
    assert "Desk.note (" in message
    assert "outer" not in message


def test_a_slow_delivery_with_many_handlers_is_still_one_line(slow_desk, caplog):
    desk = slow_desk

    def slow(*_: Any) -> None:
        desk.dispatcher._clock.now += 40

    for _ in range(8):
        desk.registry.register(functools.partial(slow, 1))
    desk.dispatch(1)
    [message] = warnings_in(caplog)
    assert message.count("slow (") == 5
    assert message.endswith("and 3 more")


@in_loop
async def test_an_async_call_that_was_not_seen_is_warned_of_when_it_ends(slow_desk, caplog):
    desk = slow_desk

    async def slow(data: Any, *_: Any) -> None:
        desk.dispatcher._clock.now += data

    desk.registry.register(slow)
    desk.dispatch(60, 101, 60)
    await desk.dispatcher.drain()
    [message] = warnings_in(caplog)
    assert "101 s" in message


def test_a_timeout_that_is_changed_holds_at_once(slow_desk, caplog):
    desk = slow_desk

    def slow(*_: Any) -> None:
        desk.dispatcher._clock.now += 101

    desk.registry.register(slow)
    desk.dispatcher.timeout_s = 200.0
    desk.dispatch(1)
    assert warnings_in(caplog) == []
    desk.dispatcher.timeout_s = 50.0
    desk.dispatch(1)
    assert len(warnings_in(caplog)) == 1


def watchdogs() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name == "eventsh-watchdog"}


def test_the_watchdog_lives_from_the_first_dispatch_to_close():
    # Buses that other tests share may have theirs in this process.
    others = watchdogs()
    desk = Desk()
    # Those of others may end meanwhile.
    assert not watchdogs() - others
    desk.dispatch(1)
    desk.dispatch(2)
    (mine,) = watchdogs() - others
    desk.dispatcher.close()
    mine.join(10)
    assert not mine.is_alive()


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_child_can_close_the_old_dispatcher_and_use_a_new_one():
    parent = Desk(timeout_s=0.05)
    parent.registry.register(parent.note)
    parent.dispatch(1)
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            parent.dispatcher.close()
            child = Desk(timeout_s=0.05)
            child.registry.register(child.note)
            child.dispatch(1)
            if child.seen == [1] and watchdogs():
                child.dispatcher.close()
                status = 0
        finally:
            os._exit(status)
    deadline = time.monotonic() + 20
    ended = (0, 0)
    while not ended[0]:
        if time.monotonic() > deadline:
            os.kill(pid, signal.SIGKILL)
        time.sleep(0.005)
        ended = os.waitpid(pid, os.WNOHANG)
    parent.dispatcher.close()
    assert ended == (pid, 0)
