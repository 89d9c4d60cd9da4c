"""Each event's handlers run in a context of their own."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable
from typing import Any

import pytest

import eventsh
from eventsh.core.delivery import Delivery
from eventsh.core.registry import Registry
from eventsh.runtime.dispatch import Dispatcher

TENANT: contextvars.ContextVar[Any] = contextvars.ContextVar("tenant")
OTHER: contextvars.ContextVar[Any] = contextvars.ContextVar("other")


def batch(*datas: Any, source: str = "s", replayed: bool = False) -> Delivery:
    return Delivery(9, len(datas), 1, [[source, "e", list(datas)]], is_replayed=replayed)


class Seen:
    """Handlers that note what they see, and then set it for the data that ask for it."""

    def __init__(self) -> None:
        self.values: list[tuple[Any, Any]] = []
        self.replayed: list[bool] = []

    def note(self, data: Any) -> None:
        self.values.append((data, TENANT.get(None)))
        self.replayed.append(eventsh.replayed())
        if data == "set" or isinstance(data, int):
            TENANT.set(data)

    def handle(self, data: Any, *_: Any) -> None:
        self.note(data)

    async def handle_async(self, data: Any, *_: Any) -> None:
        self.note(data)
        await asyncio.sleep(0)
        if isinstance(data, int):
            assert TENANT.get() == data

    def make(self, data: Any, *_: Any) -> Any:
        return self.handle_async(data)


def run(seen: Seen, *handlers: Callable[..., Any], deliveries: list[Delivery]) -> None:
    async def main() -> None:
        registry = Registry()
        for handler in handlers:
            registry.register(handler)
        failures: list[Any] = []
        dispatcher = Dispatcher(registry, timeout_s=60, on_failure=failures.append, on_complete=lambda _: None)
        for delivery in deliveries:
            dispatcher.dispatch(delivery)
        await dispatcher.drain()
        dispatcher.close()
        assert failures == []

    asyncio.run(main())


@pytest.mark.parametrize("kind", ["handle", "handle_async", "make"])
def test_what_a_handler_sets_no_other_event_sees(kind):
    seen = Seen()
    # In one run, in runs of one event, in other deliveries; and set only by one of many.
    runs = [["s" if number % 2 else "t", "e", [number]] for number in range(10, 20)]
    one = batch(*["x"] * 30, "set", *["x"] * 30)
    run(seen, getattr(seen, kind), deliveries=[batch(1, 2, 3), Delivery(9, 10, 1, runs), batch(4), one])
    assert len(seen.values) == 3 + 10 + 1 + 61
    assert {value for _, value in seen.values} == {None}


@pytest.mark.parametrize("kinds", [("handle", "handle_async"), ("handle", "handle")])
def test_several_handlers_of_an_event_leave_nothing_to_the_next_event(kinds):
    seen, other = Seen(), Seen()
    run(seen, getattr(seen, kinds[0]), getattr(other, kinds[1]), deliveries=[batch(1, 2, 3), batch(4)])
    firsts = [value for _, value in seen.values]
    assert firsts == [None] * 4
    # Handlers of the same event may share theirs, but never that of another one.
    assert all(value in (None, data) for data, value in other.values)


@pytest.mark.parametrize("kind", ["handle", "handle_async", "make"])
def test_handlers_do_not_see_the_context_of_the_caller(kind):
    seen = Seen()
    token = TENANT.set("the caller's")
    try:
        run(seen, getattr(seen, kind), deliveries=[batch("x")])
        assert TENANT.get() == "the caller's"
    finally:
        TENANT.reset(token)
    assert seen.values == [("x", None)]


@pytest.mark.parametrize("kind", ["handle", "handle_async", "make"])
def test_handlers_that_set_a_context_still_know_what_is_replayed(kind):
    seen = Seen()
    run(seen, getattr(seen, kind), deliveries=[batch(1, 2, replayed=True), batch(3, 4), batch(5, replayed=True)])
    assert seen.replayed == [True, True, False, False, True]


def test_a_failing_handler_leaves_its_context_to_nobody():
    values = []

    def fail(data: Any, *_: Any) -> None:
        values.append(TENANT.get(None))
        TENANT.set(data)
        raise ValueError(data)

    registry = Registry()
    registry.register(fail)
    dispatcher = Dispatcher(registry, timeout_s=60, on_failure=lambda _: None, on_complete=lambda _: None)
    dispatcher.dispatch(batch(1, 2, 3))
    registry.register(lambda *_: values.append(OTHER.get(None)))
    dispatcher.dispatch(batch(4, 5))
    dispatcher.close()
    assert values == [None] * 7


def test_a_task_that_an_async_handler_starts_has_the_context_of_its_event():
    values = []

    async def later(data: Any) -> None:
        await asyncio.sleep(0)
        values.append((data, TENANT.get(None)))

    async def handle(data: Any, *_: Any) -> None:
        TENANT.set(data)
        await asyncio.create_task(later(data))

    run(Seen(), handle, deliveries=[batch(1, 2), batch(3)])
    assert values == [(1, 1), (2, 2), (3, 3)]


def test_a_task_factory_that_takes_no_context_still_runs_async_handlers():
    seen = Seen()

    async def main() -> None:
        loop = asyncio.get_running_loop()
        loop.set_task_factory(lambda loop, work: asyncio.Task(work, loop=loop))
        registry = Registry()
        registry.register(seen.handle_async)
        dispatcher = Dispatcher(registry, timeout_s=60, on_failure=lambda _: None, on_complete=lambda _: None)
        dispatcher.dispatch(batch(1, 2))
        await dispatcher.drain()
        dispatcher.close()

    asyncio.run(main())
    assert seen.values == [(1, None), (2, None)]
