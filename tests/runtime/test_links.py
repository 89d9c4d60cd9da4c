"""Connections over TCP that are cut, or go silent: nothing is lost or handled twice, and a silent one is found."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from eventsh.address import parse_address
from eventsh.api import AsyncEvents
from eventsh.errors import QueueOverflow
from eventsh.options import Options
from eventsh.runtime.broker import Broker
from eventsh.runtime.endpoint import find_endpoint
from tests.proxy import Proxy

DEADLINE_S = 30.0
CUTS = 12


@asynccontextmanager
async def serving(**options: Any) -> AsyncIterator[tuple[Broker, Proxy]]:
    """A broker in this loop, and a proxy before it."""
    found = Options.from_values(linger=None, **options)
    broker = Broker(*find_endpoint("tcp://127.0.0.1:0", found), found)
    await broker.start()
    proxy = Proxy(parse_address(broker.listening).port or 0)
    try:
        yield broker, proxy
    finally:
        await asyncio.to_thread(proxy.__exit__)
        await broker.close()


async def until(condition: Any) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while not condition():
            await asyncio.sleep(0.002)


def test_a_peer_that_falls_silent_is_found_within_three_heartbeats_by_both_sides(caplog):
    # Long enough that a busy machine does not make a difference.
    heartbeat_s = 0.5

    async def main() -> None:
        async with (
            serving(heartbeat=heartbeat_s) as (broker, proxy),
            AsyncEvents(proxy.address, broker="never", heartbeat=heartbeat_s) as events,
        ):
            await events.wait_ready(DEADLINE_S)
            # It lives on heartbeats alone for a while.
            await asyncio.sleep(3.5 * heartbeat_s)
            client = events._bus.working_client()
            attachment = client.attachment
            assert attachment is not None
            assert proxy.connections == 1
            (link,) = broker.router.connections
            proxy.swallow()
            started = time.monotonic()
            await until(lambda: link not in broker.router.connections and attachment.lost.done())
            # A busy machine may be late; the rule itself is tested with a clock of its own.
            assert time.monotonic() - started < 3 * heartbeat_s + 5

    asyncio.run(main())
    assert "worker 0 was silent for three heartbeats of 0.5 s" in caplog.text
    assert "the broker gives no sign of life" in caplog.text


def test_a_client_is_back_after_a_silence_and_has_lost_nothing():
    async def main() -> None:
        async with serving(heartbeat=0.3) as (_, proxy):
            seen: list[int] = []
            events = AsyncEvents(proxy.address, broker="never", heartbeat=0.3)
            events.register(lambda data, *_: seen.append(data), "test")
            async with events:
                await events.wait_ready(DEADLINE_S)
                events.post("test", "event", 0)
                await events.flush(DEADLINE_S)
                proxy.swallow()
                for number in range(1, 100):
                    events.post("test", "event", number)
                await until(lambda: not events._bus.working_client().is_attached)
                proxy.carry_on()
                await events.flush(DEADLINE_S)
                await until(lambda: len(seen) >= 100)
                assert seen == list(range(100))

    asyncio.run(main())


@pytest.mark.timeout(600)
def test_connections_that_are_cut_again_and_again_lose_nothing_and_double_nothing():
    draw = random.Random(7)

    async def main() -> None:
        async with serving(unique_timeout=600) as (_, proxy):
            buses = [AsyncEvents(proxy.address, broker="never") for _ in range(3)]
            seen: list[list[tuple[int, int]]] = [[] for _ in buses]
            once: list[int] = []
            for bus, ledger in zip(buses, seen, strict=True):
                bus.register(lambda data, *_, ledger=ledger: ledger.append(tuple(data)), "test", "all")
                bus.register(lambda data, *_: once.append(data), "test", "once")
                bus.configure()
                await bus.wait_ready(DEADLINE_S)
            posted = [0] * len(buses)
            uniques = 0
            cutting = True

            async def post(number: int) -> None:
                nonlocal uniques
                while cutting:
                    for _ in range(draw.randrange(1, 40)):
                        try:
                            buses[number].post("test", "all", [number, posted[number]])
                            posted[number] += 1
                            if draw.random() < 0.1:
                                buses[number].post("test", "once", uniques, unique=str(uniques))
                                uniques += 1
                        except QueueOverflow:
                            break
                    await asyncio.sleep(0.001)

            posting = [asyncio.create_task(post(number)) for number in range(len(buses))]
            for _ in range(CUTS):
                await until(lambda: all(bus._bus.working_client().is_attached for bus in buses))
                await asyncio.sleep(draw.uniform(0, 0.03))
                await asyncio.to_thread(proxy.cut)
            cutting = False
            await asyncio.gather(*posting)
            for bus in buses:
                await bus.flush(DEADLINE_S)
            await until(lambda: all(len(ledger) >= sum(posted) for ledger in seen) and len(once) >= uniques)
            # A cut that meets one that is not back yet makes no further connection.
            assert proxy.connections > CUTS
            for ledger in seen:
                assert ledger == seen[0]
                for number, count in enumerate(posted):
                    assert [n for of, n in ledger if of == number] == list(range(count))
            assert sorted(once) == list(range(uniques))
            for bus in buses:
                await bus.close()

    asyncio.run(main())
