"""A client that loses its broker: with broker="auto" one of those who are left starts another."""

from __future__ import annotations

import os
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from eventsh.api import Events
from eventsh.commands.status import status
from eventsh.errors import EventError, QueueOverflow

DEADLINE_S = 30.0


@pytest.fixture
def address() -> Iterator[str]:
    # Not tmp_path: a socket's path has to be short.
    with tempfile.TemporaryDirectory(prefix="evsh-", dir="/tmp", ignore_cleanup_errors=True) as directory:
        yield f"unix:{directory}/a.sock"


class Member:
    """A bus and what its handler was given of "app"."""

    def __init__(self, address: str, **options: Any) -> None:
        self.seen: list[Any] = []
        self._changed = threading.Condition()
        self.events = Events(address, **{"linger": 0.2, **options})
        self.events.register(self._record, "app")
        self.events.configure()

    def _record(self, data: Any, event: str, source: str, pid: int | None) -> None:
        with self._changed:
            self.seen.append(data)
            self._changed.notify_all()

    def wait_seen(self, count: int) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.seen) >= count, DEADLINE_S), len(self.seen)

    def post(self, data: Any) -> None:
        try:
            self.events.post("app", "e", data)
        except QueueOverflow:
            self.events.drain(DEADLINE_S)
            self.events.post("app", "e", data)


@pytest.fixture
def make_member(address: str) -> Iterator[Callable[..., Member]]:
    members: list[Member] = []

    def make(**options: Any) -> Member:
        members.append(Member(address, **options))
        return members[-1]

    yield make
    for member in members:
        member.events.close(timeout=1.0)


def broker_pid(address: str, *, other_than: int = 0) -> int:
    """The pid of the broker at `address`, once there is one that is not `other_than`."""
    deadline = time.monotonic() + DEADLINE_S
    while True:
        try:
            pid: int = status(address, timeout_s=DEADLINE_S)["broker"]["pid"]
            if pid != other_than:
                return pid
        except EventError:
            pass
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_processes_that_come_all_at_once_start_one_broker(address: str, make_member: Callable[..., Member]) -> None:
    members = [make_member() for _ in range(5)]
    for member in members:
        member.events.wait_ready(DEADLINE_S)
    workers = status(address, timeout_s=DEADLINE_S)["workers"]
    assert sorted(worker["worker_id"] for worker in workers) == list(range(5))
    assert sorted(member.events.worker_id or 0 for member in members) == list(range(5))


def test_the_death_of_brokers_loses_nothing_and_repeats_nothing(
    address: str, make_member: Callable[..., Member]
) -> None:
    # A broker that nobody has attached to yet must not end before its pid is used.
    members = [make_member(timeout=20.0, linger=3.0) for _ in range(3)]
    for member in members:
        member.events.wait_ready(DEADLINE_S)
    slots = [member.events.worker_id for member in members]
    kills, posts_between = 3, 1000
    broker = broker_pid(address)
    for kill in range(kills):
        # In the midst of it: some of them are confirmed, some under way, some not sent.
        for number in range(posts_between):
            members[kill].post([kill, number])
            if number == posts_between // 2:
                os.kill(broker, signal.SIGKILL)
        broker = broker_pid(address, other_than=broker)
        for member in members:
            member.events.wait_ready(DEADLINE_S)
            member.wait_seen((kill + 1) * posts_between)
    members[0].post("done")
    for member in members:
        member.wait_seen(kills * posts_between + 1)
        expected: list[Any] = [[kill, number] for kill in range(kills) for number in range(posts_between)]
        assert member.seen == [*expected, "done"]
    assert [member.events.worker_id for member in members] == slots


@pytest.mark.parametrize("posts", [0, 1], ids=["with nothing to say", "with a post"])
def test_a_client_that_is_closed_while_it_attaches_leaves_no_place_that_others_wait_for(
    posts: int, address: str, make_member: Callable[..., Member]
) -> None:
    # Longer than the deadline: who waits for it, waits in vain.
    stays = make_member(timeout=600.0)
    stays.events.wait_ready(DEADLINE_S)
    for round_number in range(20):
        brief = make_member(timeout=600.0)
        for _ in range(posts):
            brief.events.post("other", "e")
        # A little later each time, through all that attaching does.
        time.sleep(round_number * 0.0005)
        brief.events.close()
        stays.post(round_number)
        stays.events.flush(DEADLINE_S)
    assert [worker["worker_id"] for worker in status(address, timeout_s=DEADLINE_S)["workers"]] == [0]
    stays.wait_seen(20)
    assert stays.seen == list(range(20))


def test_a_broker_that_nobody_needs_ends_and_leaves_nothing_behind(
    address: str, make_member: Callable[..., Member]
) -> None:
    member = make_member()
    member.events.wait_ready(DEADLINE_S)
    member.events.close()
    directory = os.path.dirname(address.removeprefix("unix:"))
    deadline = time.monotonic() + DEADLINE_S
    while os.listdir(directory):
        assert time.monotonic() < deadline, os.listdir(directory)
        time.sleep(0.01)


def test_with_never_no_broker_is_started(address: str, make_member: Callable[..., Member]) -> None:
    member = make_member(broker="never")
    deadline = time.monotonic() + DEADLINE_S
    said = ""
    # On a busy machine it takes a while until it has tried.
    while "nobody listens" not in said:
        assert time.monotonic() < deadline, said
        with pytest.raises(EventError) as caught:
            member.events.wait_ready(0.5)
        said = str(caught.value)
    assert not os.listdir(os.path.dirname(address.removeprefix("unix:")))


def test_a_broker_for_which_there_is_no_thread_is_tried_again(
    make_member: Callable[..., Member], monkeypatch: pytest.MonkeyPatch
) -> None:
    failed = threading.Event()

    async def in_thread(function: Callable[..., Any], *arguments: Any) -> Any:
        if failed.is_set():
            return function(*arguments)
        failed.set()
        raise RuntimeError("can't start new thread")

    # The system's own limit would take the threads of the tests too.
    monkeypatch.setattr("eventsh.runtime.attach.in_thread", in_thread)
    member = make_member()
    member.events.wait_ready(DEADLINE_S)
    assert failed.is_set()
