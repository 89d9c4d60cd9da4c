"""Connections that come and go leave nothing behind: descriptors, tasks, threads, objects, memory."""

from __future__ import annotations

import asyncio
import gc
import threading
import tracemalloc
from typing import TYPE_CHECKING, ClassVar
from weakref import WeakSet

from eventsh.testing.bench import Bench, case, open_descriptors
from eventsh.testing.recorder import LARGE_BYTES, Pair, Recorder, event_frame, turns

if TYPE_CHECKING:
    from eventsh.transport import Connection

__all__ = ["LeakCases"]

# Some are kept alive for a moment by the loop and by this test's own variables, however many there were.
STILL_IN_USE = 4


class LeakCases:
    """Part of TransportConformance."""

    connects: ClassVar[int] = 200
    """How many connections come and go in the test of leaks."""

    @case
    async def test_connections_that_come_and_go_leave_nothing_behind(self, bench: Bench) -> None:
        alive: WeakSet[Connection] = WeakSet()
        async with bench.listening() as (_, accepted):

            async def come_and_go(number: int) -> None:
                recorder = Recorder()
                client = await bench.connect(recorder)
                await bench.until_count(accepted, 1)
                server = accepted[0].connection
                assert server is not None
                alive.update((client, server))
                client.send([event_frame(number)])
                await accepted[0].until_frames(1)
                # By either side, in either way.
                ends = (client.close, client.abort, server.close, server.abort)
                ends[number % 4]()
                for one in (recorder, accepted[0]):
                    await one.until(lambda one: one.lost)
                accepted.clear()

            for number in range(20):
                # What is made once, and kept, is made now.
                await come_and_go(number)
            before = await _standing()
            for number in range(self.connects):
                await come_and_go(number)
            assert await _standing() == before, "descriptors, tasks, threads: now and before"
            assert len(alive) <= STILL_IN_USE

    @case
    async def test_frames_that_were_taken_leave_no_memory_behind(self, bench: Bench) -> None:
        async with bench.connected() as pair:
            pair.raise_limits()
            await _exchange(pair, 20)
            tracemalloc.start()
            try:
                await _exchange(pair, 20)
                gc.collect()
                before = tracemalloc.get_traced_memory()[0]
                await _exchange(pair, 60)
                gc.collect()
                grown = tracemalloc.get_traced_memory()[0] - before
            finally:
                tracemalloc.stop()
            assert grown < LARGE_BYTES, f"{grown:,} bytes more are held than before 60 MiB were exchanged"


async def _exchange(pair: Pair, count: int) -> None:
    for number in range(count):
        pair.client.send([event_frame(number, LARGE_BYTES // 2)])
        pair.server.send([event_frame(number, LARGE_BYTES // 2)])
        for recorder in (pair.to_server, pair.to_client):
            assert await recorder.until_frames(1) == [number]
            recorder.frames.clear()


async def _standing() -> tuple[int, int, int]:
    """The numbers of descriptors, tasks and threads, once what is ending has ended."""
    await turns()
    gc.collect()
    return open_descriptors(), len(asyncio.all_tasks()), threading.active_count()
