"""What every integration calls around the life of a worker process."""

from __future__ import annotations

import asyncio
import logging
import tempfile
from collections.abc import Iterator

import pytest

from eventsh.api import Events
from eventsh.integrations.lifecycle import close_worker

DEADLINE_S = 30.0


@pytest.fixture
def buses() -> Iterator[list[Events]]:
    # Not tmp_path: a socket's path has to be short.
    with tempfile.TemporaryDirectory(prefix="evsh-", dir="/tmp", ignore_cleanup_errors=True) as directory:
        buses = [Events(f"unix://{directory}/{name}", broker="never", timeout=1) for name in "abcd"]
        for events in buses:
            events.configure()
        yield buses
        for events in buses:
            events.close(timeout=0.1)


def test_a_bus_that_can_not_be_closed_does_not_keep_the_others_open(
    buses: list[Events], caplog: pytest.LogCaptureFixture
) -> None:
    first, *others = buses

    async def close_in_handler() -> None:
        # It waits for the loop that it runs in: an EventError.
        close_worker(leave=True)

    loop = first._bus.loop
    assert loop is not None
    asyncio.run_coroutine_threadsafe(close_in_handler(), loop).result(DEADLINE_S)
    assert first.configured()
    assert not any(events.configured() for events in others)
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert [text for text in warnings if "not closed" in text and str(first._bus.address) in text] == warnings
    assert len(warnings) == 1
