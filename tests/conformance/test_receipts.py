"""What `post_and_wait` gives, on every transport and through both faces."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest

from eventsh.errors import EventError, NotConnected, PayloadTooLarge, UsageError
from eventsh.receipt import Receipt
from tests.conformance.harness import DEADLINE_S, BrokerHandle, Bus

MakeBus = Callable[..., Bus]


def wait_for(bus: Bus, *post: Any, timeout: float = DEADLINE_S, unique: str | None = None) -> Receipt:
    receipt = bus._do("post_and_wait", *post, timeout=timeout, unique=unique)
    assert isinstance(receipt, Receipt)
    return receipt


def quick(data: Any, event: str, source: str, pid: int | None) -> None:
    pass


def failing(data: Any, event: str, source: str, pid: int | None) -> None:
    raise ValueError("no")


async def slow(data: Any, event: str, source: str, pid: int | None) -> None:
    await asyncio.sleep(data)


async def failing_late(data: Any, event: str, source: str, pid: int | None) -> None:
    await asyncio.sleep(0)
    raise KeyError(data)


def test_it_tells_of_every_handler_sync_or_async_that_ran(bus: Bus, source: str) -> None:
    for handler in (quick, slow, failing, failing_late, lambda *event: slow(*event)):
        bus.register(handler, source, "e")
    receipt = wait_for(bus, source, "e", 0.05)
    assert receipt.is_complete
    (worker,) = receipt.workers
    runs = {run.name.rpartition(".")[2]: run for run in worker.handlers}
    assert list(runs)[:2] == ["quick", "failing"]
    assert {name: run.error for name, run in runs.items()} == {
        "quick": None,
        "slow": None,
        "failing": "ValueError: no",
        "failing_late": "KeyError: 0.05",
        "<lambda>": None,
    }
    assert runs["slow"].seconds >= 0.045
    assert runs["<lambda>"].seconds >= 0.045
    assert runs["quick"].location == f"{__file__}:{quick.__code__.co_firstlineno}"
    assert {run.name for run in receipt.failures} == {"failing", "failing_late"}


def test_it_counts_calls_and_errors_as_any_event(bus: Bus, source: str) -> None:
    for handler in (quick, failing, failing_late):
        bus.register(handler, source, "e")
    wait_for(bus, source, "e")
    counts = {handler.name: (handler.calls, handler.errors) for handler in bus.events._bus.registry.handlers()}
    assert counts == {"quick": (1, 0), "failing": (1, 1), "failing_late": (1, 1)}


def test_it_comes_behind_what_was_posted_before(bus: Bus, source: str) -> None:
    seen: list[Any] = []
    bus.register(lambda data, event, source, pid: seen.append(data), source)
    for number in range(100):
        bus.post(source, "e", number)
    assert wait_for(bus, source, "e", 100).number == 101
    assert seen == list(range(101))


def test_a_handler_that_does_not_return_in_time_is_no_answer(bus: Bus, source: str) -> None:
    let_go = threading.Event()

    async def held(data: Any, event: str, source: str, pid: int | None) -> None:
        while not let_go.is_set():
            await asyncio.sleep(0.005)

    bus.register(held, source, "e")
    receipt = None
    # That the event was received has to be known in time: on a busy machine that may take some.
    for timeout in (0.1, 1.0, DEADLINE_S / 2):
        with suppress(NotConnected):
            receipt = wait_for(bus, source, "e", timeout=timeout)
            break
    assert receipt is not None
    (worker,) = receipt.workers
    assert (worker.received, worker.answered, worker.handlers, worker.pid) == (True, False, (), None)
    assert not receipt.is_complete
    # The answer that comes late is nobody's, and disturbs nobody.
    let_go.set()
    assert wait_for(bus, source, "e").is_complete


def test_a_program_without_handlers_does_not_wait_for_itself(
    make_bus: MakeBus, quiet_broker: BrokerHandle, source: str
) -> None:
    # It would wait for its first handler longer than for the receipt.
    bus = make_bus(quiet_broker.address, timeout=600.0).configure()
    bus.wait_ready()
    receipt = wait_for(bus, source, "e")
    assert receipt.is_complete
    assert [worker.handlers for worker in receipt.workers] == [()]


def test_a_repeat_of_a_unique_event_is_told(bus: Bus, source: str) -> None:
    bus.register(quick, source)
    first = wait_for(bus, source, "e", unique=source)
    assert (first.unique, [run.name for run in first.workers[0].handlers]) == ("given", ["quick"])
    again = wait_for(bus, source, "e", unique=source)
    assert (again.unique, again.workers) == ("repeat", ())


def test_a_unique_event_that_nobody_can_take_raises(make_bus: Any, quiet_broker: Any, source: str) -> None:
    bus = make_bus(quiet_broker.address).configure(take_unique=False)
    bus.wait_ready()
    with pytest.raises(EventError, match="nothing was posted"):
        wait_for(bus, source, "e", unique=source)


def test_what_can_not_be_posted_raises_as_it_does_in_post(bus: Bus, source: str) -> None:
    with pytest.raises(UsageError):
        wait_for(bus, source, "e", {1})
    with pytest.raises(UsageError):
        wait_for(bus, "", "e")
    with pytest.raises(PayloadTooLarge):
        wait_for(bus, source, "e", "x" * (3 * 1024 * 1024))
    bus.post(source, "e")
    bus.flush()


def test_it_raises_before_it_is_configured_and_when_there_is_no_broker(make_bus: Any, source: str) -> None:
    bus = make_bus()
    with pytest.raises(EventError, match="not configured"):
        wait_for(bus, source, "e")
    bus.configure()
    with pytest.raises(NotConnected):
        wait_for(bus, source, "e", timeout=0.1)
    assert bus.events._bus.outbox.waits == {}
