"""hypercorn on each of its loops, and granian: who takes part, and that no post of a shutdown is lost."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.integrations.servers import DEADLINE_S, Start, granian, hypercorn, wait_until, witness

AT_SHUTDOWN = 6_000

SERVERS: list[Any] = [
    pytest.param(hypercorn, "middleware", (), id="hypercorn-asyncio"),
    pytest.param(hypercorn, "starlette", ("--worker-class", "uvloop"), id="hypercorn-uvloop"),
    # An AsyncEvents needs asyncio; the thread of an Events has a loop of its own.
    pytest.param(hypercorn, "middleware_thread", ("--worker-class", "trio"), id="hypercorn-trio"),
    pytest.param(granian, "middleware", (), id="granian"),
]


@pytest.mark.parametrize(("server_of", "app", "arguments"), SERVERS)
def test_every_worker_handles_an_event(start: Start, server_of: Any, app: str, arguments: tuple[str, ...]):
    server = start(server_of, app, "--workers", "2", *arguments)
    workers = server.wait_attached(2)
    server.post("e")
    server.wait_handled("e", workers)


@pytest.mark.parametrize(("server_of", "app", "arguments"), SERVERS)
def test_every_post_of_a_shutdown_arrives_also_after_a_signal(
    start: Start, directory: Path, server_of: Any, app: str, arguments: tuple[str, ...]
):
    with witness(directory) as seen:
        with seen.broker_stopped():
            server = start(server_of, app, "--workers", "1", *arguments, AT_SHUTDOWN=str(AT_SHUTDOWN))
            worker = server.wait_answering()
            server.process.send_signal(signal.SIGTERM)
            wait_until(lambda: bool(server.lines("posted")), server.log.read_text)
            # As hypercorn does when another worker has ended already.
            wait_until(lambda: catches(worker, signal.SIGTERM), server.log.read_text)
            os.kill(worker, signal.SIGTERM)
        seen.wait_all("e", range(AT_SHUTDOWN), server)
        server.process.wait(DEADLINE_S)
        assert {line.pid for line in server.lines("stopping")} == {worker}


def catches(pid: int, number: int) -> bool:
    """Whether a process has a handler for a signal."""
    mask = re.search(r"^SigCgt:\t(\w+)$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    assert mask is not None
    return bool(int(mask[1], 16) >> (number - 1) & 1)


def test_an_async_bus_under_trio_fails_the_startup_with_a_message_that_says_what_to_do(start: Start):
    server = start(hypercorn, "wrapped", "--worker-class", "trio")
    server.process.wait(DEADLINE_S)
    log = server.log.read_text()
    assert (
        "Lifespan failure in startup. 'AsyncEvents needs a running asyncio loop, and trio has none: use Events" in log
    )
    # Not one error out of another, of which the first would be the one to be read.
    assert "During handling" not in log
