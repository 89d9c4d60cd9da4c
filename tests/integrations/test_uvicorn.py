"""uvicorn --workers, with the lifespan for Starlette and with the middleware."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

import pytest

from tests.integrations.servers import Server, uvicorn

Start = Callable[..., Server]


@pytest.mark.parametrize("app", ["starlette_like", "wrapped"])
def test_a_request_posts_every_worker_handles_and_a_successor_takes_part(start: Start, app: str):
    server = start(uvicorn, app, "--workers", "2")
    workers = server.wait_attached(2)
    assert server.process.pid not in workers
    poster = server.post("e", data="1")
    server.wait_handled("e", workers)
    assert {(line.source, line.data, line.poster) for line in server.lines("e")} == {("app", "1", poster)}
    for _ in range(4):
        server.post("once", unique="k")
    server.post("last")
    server.wait_handled("last", workers)
    assert len(server.lines("once")) == 1
    killed = min(workers)
    os.kill(killed, signal.SIGKILL)
    after = server.wait_attached(2, without={killed})
    server.post("after")
    server.wait_handled("after", after)
    server.stop()
    # Those that were told to end have been closed in order.
    assert {line.pid for line in server.lines("stopping")} == after
    assert server.lines("gap") == []


def test_a_reload_replaces_every_worker(start: Start):
    server = start(uvicorn, "wrapped", "--workers", "2")
    before = server.wait_attached(2)
    server.process.send_signal(signal.SIGHUP)
    after = server.wait_attached(2, without=before)
    server.post("e")
    server.wait_handled("e", after)
    assert {line.pid for line in server.lines("stopping")} == before
    assert server.lines("gap") == []
