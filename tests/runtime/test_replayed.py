from __future__ import annotations

import asyncio
from typing import Any

import eventsh
from eventsh.core.delivery import Delivery
from eventsh.core.registry import Registry
from eventsh.runtime.dispatch import Dispatcher


def delivery(number: int, *, is_replayed: bool) -> Delivery:
    return Delivery(number, 1, 1, [["s", "e", [number]]], is_replayed=is_replayed)


def test_handlers_can_tell_what_is_replayed_sync_ones_and_async_ones_that_overlap():
    seen: list[tuple[str, int, bool]] = []

    def sync(data: Any, *_: Any) -> None:
        seen.append(("sync", data, eventsh.replayed()))

    async def slow(data: Any, *_: Any) -> None:
        await asyncio.sleep(0)
        seen.append(("async", data, eventsh.replayed()))

    async def main() -> None:
        registry = Registry()
        registry.register(sync)
        registry.register(slow)
        dispatcher = Dispatcher(
            registry, timeout_s=60, on_failure=lambda failure: None, on_complete=lambda delivery: None
        )
        for number in range(6):
            dispatcher.dispatch(delivery(number, is_replayed=bool(number % 2)))
        assert not eventsh.replayed()
        await dispatcher.drain()
        dispatcher.close()

    asyncio.run(main())
    assert sorted(seen) == sorted((kind, number, bool(number % 2)) for kind in ("sync", "async") for number in range(6))


def test_a_handler_that_raises_leaves_no_mark_behind():
    def fail(*_: Any) -> None:
        raise ValueError

    registry = Registry()
    registry.register(fail)
    dispatcher = Dispatcher(registry, timeout_s=60, on_failure=lambda failure: None, on_complete=lambda delivery: None)
    dispatcher.dispatch(delivery(1, is_replayed=True))
    dispatcher.close()
    assert not eventsh.replayed()
