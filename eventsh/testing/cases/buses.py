"""A broker and two buses over the transport, as the product uses it."""

from __future__ import annotations

from typing import Any

from eventsh.api import AsyncEvents
from eventsh.options import Options
from eventsh.runtime.broker import Broker
from eventsh.testing.bench import Bench, case
from eventsh.testing.recorder import DEADLINE_S, LARGE_BYTES

__all__ = ["BusCases"]


class BusCases:
    """Part of TransportConformance."""

    @case
    async def test_events_cross_it(self, bench: Bench) -> None:
        broker = Broker(bench.transport, bench.address, Options.from_values(linger=None, max_payload_len=LARGE_BYTES))
        await broker.start()
        address = broker.listening
        seen: list[list[Any]] = [[], []]
        try:
            async with (
                AsyncEvents(address, broker="never", max_payload_len=LARGE_BYTES) as first,
                AsyncEvents(address, broker="never", max_payload_len=LARGE_BYTES) as second,
            ):
                for events, handled in zip((first, second), seen, strict=True):
                    events.register(lambda data, event, source, pid, handled=handled: handled.append(data), "kit")
                    await events.wait_ready(DEADLINE_S)
                posted = [*range(2000), "x" * (LARGE_BYTES // 2)]
                for data in posted:
                    first.post("kit", "event", data)
                await first.flush(DEADLINE_S)
                receipt = await second.post_and_wait("kit", "last", "last", timeout=DEADLINE_S)
                assert all(worker.answered for worker in receipt.workers)
                assert seen == [[*posted, "last"]] * 2
                once = await second.post_and_wait("kit", "once", "once", unique="kit", timeout=DEADLINE_S)
                assert sum(len(worker.handlers) for worker in once.workers) == 1
        finally:
            await broker.close()
