"""Whatever a handler raises and whatever its report raises, every delivery completes: over real buses and a real broker."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from eventsh import AsyncEvents, Events
from eventsh.testing.broker import BrokerHandle, start_broker

DEADLINE_S = 30.0


class _Meta(type):
    def __getattribute__(cls, name: str) -> Any:
        raise ZeroDivisionError(name)


def _raising(name: str, error: type[BaseException] = ZeroDivisionError) -> Any:
    """An attribute or method of this name that raises."""

    def fail(self: object, *_: object) -> Any:
        raise error(name)

    return (
        fail if name not in ("__class__", "__traceback__", "__cause__", "__context__", "__notes__") else property(fail)
    )


def weird(name: str, error: type[BaseException] = ZeroDivisionError) -> type[Exception]:
    return type(f"Weird{name}", (Exception,), {name: _raising(name, error)})


ERRORS: dict[str, Callable[[], BaseException]] = {
    "generator exit": GeneratorExit,
    "cancelled": asyncio.CancelledError,
    "stop iteration": StopIteration,
    "stop async iteration": StopAsyncIteration,
    "recursion": RecursionError,
    "memory": MemoryError,
    "a base exception": lambda: BaseException("base"),
    "a group": lambda: BaseExceptionGroup("several", [KeyboardInterrupt(), ValueError("v")]),
    "a class of its own": lambda: _Meta("Odd", (Exception,), {})(),
    **{
        f"its {name}": weird(name)
        for name in (
            *("__class__", "__traceback__", "__cause__", "__context__", "__notes__", "__str__", "__repr__", "__bool__"),
            *("__eq__", "__hash__", "__len__", "__getattribute__", "with_traceback", "add_note"),
        )
    },
    "its text, by an exit": weird("__str__", SystemExit),
    "its text, by a generator's exit": weird("__str__", GeneratorExit),
    "its text, endlessly": lambda: type("Endless", (Exception,), {"__str__": lambda self: str(self)})("endless"),
}


class Filter(logging.Filter):
    """A mistake in the program's logging."""

    def __init__(self, error: type[BaseException]) -> None:
        super().__init__()
        self.error = error

    def filter(self, record: logging.LogRecord) -> bool:
        raise self.error("filter")


@contextlib.contextmanager
def broken_log(error: type[BaseException]) -> Iterator[None]:
    broken = Filter(error)
    logging.getLogger("eventsh").addFilter(broken)
    try:
        yield
    finally:
        logging.getLogger("eventsh").removeFilter(broken)


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[BrokerHandle]:
    broker = start_broker(f"unix:{tmp_path}/s", tmp_path / "log", unique_timeout=0.1)
    yield broker
    broker.stop()


class Program:
    """A bus with a handler that raises what the event asks for, sync and async ones around it, and the account of them."""

    def __init__(self, events: Events | AsyncEvents, *, is_async: bool) -> None:
        self.events = events
        self.seen: dict[str, list[str]] = {"before": [], "after": [], "alone": [], "bad": []}
        events.register(self._note("before"), "s")
        events.register(self._fail_async if is_async else self._fail, "s", "bad")
        events.register(self._note("after"), "s", "bad")
        events.register(self._fail_async if is_async else self._fail, "alone", "bad")
        events.register(self._note("alone"), "alone", "good")

    def _note(self, name: str) -> Callable[..., None]:
        return lambda data, *_: self.seen[name].append(data)

    def _fail(self, data: Any, *_: Any) -> None:
        self.seen["bad"].append(data)
        raise ERRORS[data]()

    async def _fail_async(self, data: Any, *_: Any) -> None:
        await asyncio.sleep(0)
        self._fail(data)

    def post(self) -> None:
        for source in ("s", "alone"):
            for name in ERRORS:
                self.events.post(source, "bad", name)
                self.events.post(source, "good", name)
                # In one run with the next.
                self.events.post(source, "good", name)
                self.events.post(source, "bad", name)
                self.events.post(source, "bad", name)
                self.events.post(source, "bad", name, unique=f"{source} {name}")
                self.events.post_local(source, "bad", name)

    @property
    def failed(self) -> int:
        handlers = self.events._bus.client._handlers  # type: ignore[union-attr]
        assert handlers is not None
        return handlers.failed

    @property
    def is_over(self) -> bool:
        count = len(ERRORS)
        return len(self.seen["bad"]) >= 10 * count and self.events._bus.client.is_idle  # type: ignore[union-attr]

    def check(self, broker: BrokerHandle) -> None:
        count = len(ERRORS)
        seen = {name: len(events) for name, events in self.seen.items()}
        assert seen == {"before": 7 * count, "after": 5 * count, "alone": 2 * count, "bad": 10 * count}
        assert self.failed == 10 * count
        # Everything was acknowledged, and counted.
        end = time.monotonic() + DEADLINE_S
        while True:
            [worker] = broker.status()["workers"]
            if (worker["queued"], worker["failed"]) == (0, 10 * count):
                break
            assert time.monotonic() < end, worker
            time.sleep(0.02)


class Observer:
    """Counts the handler errors that observers are told of."""

    def __init__(self, address: str) -> None:
        self.told = 0
        self.events = Events(address, broker="never", role="observer")
        self.events.register(self._count, "eventsh", "handler_error")

    def _count(self, *_: Any) -> None:
        self.told += 1


@pytest.mark.parametrize("log", [None, ValueError, GeneratorExit])
@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize("face", ["Events", "AsyncEvents"])
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_every_delivery_completes(broker, face, is_async, log):
    observer = Observer(broker.address)
    with observer.events, contextlib.nullcontext() if log is None else broken_log(log):
        observer.events.wait_ready(DEADLINE_S)
        if face == "Events":
            with Events(broker.address, broker="never") as events:
                program = Program(events, is_async=is_async)
                events.wait_ready(DEADLINE_S)
                program.post()
                end = time.monotonic() + DEADLINE_S
                while not program.is_over:
                    assert time.monotonic() < end, {name: len(seen) for name, seen in program.seen.items()}
                    time.sleep(0.01)
                program.check(broker)
        else:

            async def run() -> None:
                async with asyncio.timeout(DEADLINE_S), AsyncEvents(broker.address, broker="never") as events:
                    program = Program(events, is_async=is_async)
                    await events.wait_ready()
                    program.post()
                    while not program.is_over:
                        await asyncio.sleep(0.01)
                    await asyncio.to_thread(program.check, broker)

            asyncio.run(run())
        end = time.monotonic() + DEADLINE_S
        while not observer.told:
            assert time.monotonic() < end
            time.sleep(0.01)


@pytest.mark.parametrize("is_async", [False, True])
def test_the_watchdog_outlives_a_logging_that_raises(broker, capfd, is_async):
    slow: list[str] = []

    def hang(data: Any, *_: Any) -> None:
        slow.append(data)
        time.sleep(0.5)

    async def hang_async(data: Any, *_: Any) -> None:
        slow.append(data)
        await asyncio.sleep(0.5)

    with Events(broker.address, broker="never", timeout=0.1) as events:
        events.register(hang_async if is_async else hang, "s")
        events.wait_ready(DEADLINE_S)
        with broken_log(ValueError):
            events.post("s", "e", "first")
            events.post("s", "e", "second")
            end = time.monotonic() + DEADLINE_S
            told = ""
            while told.count("over the timeout of 0.1 s") < 2:
                assert time.monotonic() < end, told
                told += capfd.readouterr().err
                time.sleep(0.02)
            assert "eventsh could not log this: ValueError: filter" in told
    assert slow == ["first", "second"]


def test_a_handler_that_fails_as_the_close_cancels_it_is_reported(broker):
    async def run() -> tuple[int, int]:
        begun = asyncio.Event()

        async def handle(data: Any, *_: Any) -> None:
            try:
                begun.set()
                await asyncio.sleep(DEADLINE_S)
            finally:
                if data == "fails":
                    raise ValueError(data)

        failed: list[int] = []
        for data in ("fails", "is cancelled"):
            begun.clear()
            events = AsyncEvents(broker.address, broker="never")
            events.register(handle, "s")
            events.configure()
            await events.wait_ready(DEADLINE_S)
            handlers = events._bus.client._handlers  # type: ignore[union-attr]
            assert handlers is not None
            events.post_local("s", "e", data)
            await begun.wait()
            await events.close(timeout=0.1)
            await handlers.drain()
            failed.append(handlers.failed)
        return failed[0], failed[1]

    assert asyncio.run(run()) == (1, 0)
