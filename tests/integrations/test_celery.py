"""Celery's pools with `attach_workers`: who takes part, and that no post of a task is lost at the end of its process."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from eventsh.errors import ConfigureError
from tests.integrations.servers import Start, celery, redis, redis_url, require, wait_until, witness

POSTS = 12_000
TASKS = 6

Send = Callable[..., Any]


@pytest.fixture
def send(start: Start, directory: Path) -> Iterator[Send]:
    """Put a task into the queue."""
    require("celery")
    start(redis)
    from celery import Celery

    app = Celery("sender", broker=redis_url(directory, "redis+socket"))
    yield lambda name, *arguments, **options: app.send_task(name, arguments, **options)
    app.close()


def send_all(send: Send) -> None:
    for task in range(TASKS):
        send("post_many", task * POSTS // TASKS, POSTS // TASKS)


@pytest.mark.parametrize(
    ("arguments", "is_prefork"),
    [
        (("--concurrency", "3", "--max-tasks-per-child", "1"), True),
        (("--autoscale", "3,1"), True),
        (("--pool", "solo"), False),
        (("--pool", "threads", "--concurrency", "2"), False),
    ],
    ids=["max-tasks-per-child", "autoscale", "solo", "threads"],
)
def test_every_post_of_every_task_arrives(
    start: Start, directory: Path, send: Send, arguments: tuple[str, ...], is_prefork: bool
):
    with witness(directory, timeout=4.0) as seen:
        server = start(celery, *arguments)
        send_all(send)
        seen.wait_all("e", range(POSTS), server)
        assert (server.process.pid in seen.posters) == (not is_prefork)
        assert (server.process.pid in server.attached()) == (not is_prefork)
        assert server.stop() == 0
        # Processes that ended in order hold nobody up, and their places are gone, but where a successor was due.
        seen.events.post("app", "after")
        seen.events.flush(5)
        if "--max-tasks-per-child" not in arguments:
            server.wait_only(0)


def test_a_process_lives_until_its_posts_are_delivered(start: Start, directory: Path, send: Send):
    with witness(directory) as seen:
        with seen.broker_stopped():
            server = start(celery, "--concurrency", "1", "--max-tasks-per-child", "1")
            send("post_many", 0, POSTS // TASKS)
            wait_until(lambda: bool(server.lines("posted")), server.log.read_text)
            child = Path(f"/proc/{server.lines('posted')[0].pid}")
            end = time.monotonic() + 3
            while time.monotonic() < end:
                assert child.exists()
                time.sleep(0.05)
        seen.wait_all("e", range(POSTS // TASKS), server)
        wait_until(lambda: not child.exists(), server.log.read_text)


@pytest.mark.parametrize("end", ["terminated", "killed"])
def test_posts_of_a_task_survive_the_end_of_its_process(start: Start, directory: Path, send: Send, end: str):
    with witness(directory) as seen:
        server = start(celery, "--concurrency", "1")
        send("post_many_and_end", 0, POSTS // TASKS, end)
        seen.wait_all("e", range(POSTS // TASKS), server)


def test_every_child_of_a_configured_master_handles_events_and_the_master_none(
    start: Start, directory: Path, send: Send
):
    server = start(celery, "--concurrency", "2", CONFIGURE_AT_IMPORT="1")
    children = server.wait_attached(2)
    assert server.process.pid not in children
    send("post_to_workers")
    server.wait_handled("to-workers", children)


@pytest.mark.parametrize("wrong", [{"tiemout": 1}, {"address": "nowhere:/x"}], ids=str)
def test_a_wrong_configuration_is_refused_at_once(wrong: dict[str, object]):
    require("celery")
    from eventsh.integrations.celery import attach_workers

    with pytest.raises(ConfigureError):
        attach_workers(**wrong)  # type: ignore[arg-type]
