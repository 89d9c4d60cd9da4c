"""uvicorn: who takes part, which posts of a shutdown arrive, and servers that run no lifespan."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests.integrations.servers import DEADLINE_S, Start, uvicorn, wait_until, witness

AT_SHUTDOWN = 6_000


@pytest.mark.parametrize("app", ["starlette", "wrapped"])
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


@pytest.mark.parametrize("app", ["starlette", "middleware", "middleware_thread"])
def test_every_post_of_a_shutdown_arrives(start: Start, directory: Path, app: str):
    with witness(directory) as seen:
        with seen.broker_stopped():
            server = start(uvicorn, app, AT_SHUTDOWN=str(AT_SHUTDOWN))
            server.wait_answering()
            server.process.send_signal(signal.SIGTERM)
            wait_until(lambda: bool(server.lines("posted")), server.log.read_text)
        seen.wait_all("e", range(AT_SHUTDOWN), server)
        # uvicorn ends by the signal that it was sent, so no atexit runs.
        assert server.process.wait(DEADLINE_S) == -signal.SIGTERM


@pytest.mark.parametrize("app", ["wrapped", "wrapped_thread"])
def test_every_post_of_the_last_request_of_an_application_without_lifespan_arrives(
    start: Start, directory: Path, app: str
):
    with witness(directory) as seen:
        server = start(uvicorn, app)
        server.wait_answering()
        server.get(f"/post-many?count={AT_SHUTDOWN}")
        server.stop()
        seen.wait_all("e", range(AT_SHUTDOWN), server)


@pytest.mark.parametrize(
    ("app", "path", "arguments"),
    [
        ("mounted", "/sub/post", ()),
        ("wrapped", "/post", ("--lifespan", "off")),
        ("wrapped_thread", "/post", ("--lifespan", "off")),
    ],
    ids=["mounted", "lifespan-off", "lifespan-off-thread"],
)
def test_an_application_whose_lifespan_never_ran_is_attached_at_its_first_request(
    start: Start, app: str, path: str, arguments: tuple[str, ...]
):
    server = start(uvicorn, app, *arguments)
    worker = server.wait_answering() if arguments else server.process.pid
    wait_until(lambda: "Uvicorn running" in server.log.read_text(), server.log.read_text)
    for event in ("first", "second"):
        server.get(f"{path}?event={event}")
        server.wait_handled(event, {worker})
    assert server.log.read_text().count("ran no lifespan") == 1
    assert server.attached() == {worker}
