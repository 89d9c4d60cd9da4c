"""hypercorn on each of its loops, and granian: who takes part, and that no post of a shutdown is lost."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.integrations.servers import DEADLINE_S, Start, granian, hypercorn, witness

AT_SHUTDOWN = 6_000

SERVERS: list[Any] = [
    pytest.param(hypercorn, "middleware", (), id="hypercorn-asyncio"),
    pytest.param(hypercorn, "starlette", ("--worker-class", "uvloop"), id="hypercorn-uvloop"),
    # An AsyncEvents needs asyncio; the thread of an Events has a loop of its own.
    pytest.param(hypercorn, "middleware_thread", ("--worker-class", "trio"), id="hypercorn-trio"),
    pytest.param(granian, "middleware", (), id="granian"),
]


@pytest.mark.parametrize(("server_of", "app", "arguments"), SERVERS)
def test_every_worker_handles_an_event_and_every_post_of_a_shutdown_arrives(
    start: Start, directory: Path, server_of: Any, app: str, arguments: tuple[str, ...]
):
    with witness(directory) as seen:
        server = start(server_of, app, "--workers", "2", *arguments, AT_SHUTDOWN=str(AT_SHUTDOWN))
        workers = server.wait_attached(2)
        server.post("to-all")
        server.wait_handled("to-all", workers)
        seen.seen.clear()
        server.stop()
        # Each of the two posts them.
        seen.wait_all("e", range(AT_SHUTDOWN), server, times=2)
        assert {line.pid for line in server.lines("stopping")} == workers
        seen.events.post("app", "after")
        seen.events.flush(5)


def test_an_async_bus_under_trio_fails_the_startup_with_a_message_that_says_what_to_do(start: Start):
    server = start(hypercorn, "wrapped", "--worker-class", "trio")
    server.process.wait(DEADLINE_S)
    log = server.log.read_text()
    assert (
        "Lifespan failure in startup. 'AsyncEvents needs a running asyncio loop, and trio has none: use Events" in log
    )
    # Not one error out of another, of which the first would be the one to be read.
    assert "During handling" not in log
