"""Batches that can't be read, between real processes: the log, the handlers, the status and their poster have it."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from orjson import Fragment

from eventsh.api import Events
from eventsh.commands.status import status
from eventsh.errors import NotConnected
from eventsh.runtime.blocking import BlockingClient
from eventsh.runtime.endpoint import find_endpoint
from eventsh.testing.broker import BrokerHandle, start_broker
from tests.cli.pool import COMMAND, environment

DEADLINE_S = 30.0


def wait_until(condition: Callable[[], object]) -> None:
    end = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_posts_in_a_form_that_the_broker_does_not_know_are_logged_and_are_a_gap_in_their_place(caplog):
    seen: list[Any] = []

    def handle(data: Any, event: str, source: str, pid: int | None) -> None:
        if event in ("e", "gap"):
            seen.append(data if event == "e" else data["missed"])

    # Not tmp_path: a socket's path has to be short.
    with tempfile.TemporaryDirectory(prefix="evsh-", dir="/tmp", ignore_cleanup_errors=True) as directory:
        address = f"unix:{directory}/a.sock"
        events = Events(address, linger=0.2)
        events.register(handle)
        events.post("app", "e", "before")
        # As a bus would that was attached to a broker of a later version.
        events._bus.outbox.post_body(b"a later form", 2, pid=os.getpid(), flags=64)
        events.post("app", "e", "behind")
        with events:
            events.flush(DEADLINE_S)
            wait_until(lambda: len(seen) == 3)
            assert seen == ["before", 2, "behind"]
            wait_until(lambda: status(address, timeout_s=DEADLINE_S)["workers"][0]["unread"] == 2)
    warnings = [record.getMessage() for record in caplog.records]
    assert any("2 posts are in a form that this broker does not know" in text for text in warnings)
    assert any("missed 2 events: a batch said to hold 2 events holds 0" in text for text in warnings)


Seen = list[tuple[str, Any]]

# In the place of the data of a batch: [["app","e",[ HERE ]]].
BAD = {
    "no JSON": b"nothing",
    "fewer events": b"",
    "more events": b"1,2",
    "no UTF-8": b'"\xff"',
    "deep": b"[" * 1100 + b"]" * 1100,
    "no runs": b"1]],[1,[",
    "an escaped source of eventsh's own": b'1]],["\\u0065ventsh","gap",[',
}


@contextmanager
def running_pool(scheme: str, **options: Any) -> Iterator[tuple[BrokerHandle, list[Seen], Path]]:
    """A broker process and two workers of this process, with what their handlers have seen."""
    with ExitStack() as stack:
        # Not tmp_path: a socket's path has to be short.
        directory = Path(
            stack.enter_context(tempfile.TemporaryDirectory(prefix="evsh-", dir="/tmp", ignore_cleanup_errors=True))
        )
        broker = start_broker(f"{scheme}:{directory}/a.sock", directory / "log", **options)
        stack.callback(broker.stop)
        logs: list[Seen] = []
        for _ in range(2):
            seen: Seen = []
            logs.append(seen)
            events = Events(broker.address, broker="never")
            events.register(lambda data, event, source, pid, seen=seen: seen.append((event, data)), "app")
            events.register(lambda data, event, source, pid, seen=seen: seen.append((event, data)), "eventsh", "gap")
            stack.enter_context(events)
            events.wait_ready(DEADLINE_S)
        yield broker, logs, directory


def place_of(seen: Seen) -> list[Any]:
    """What a worker saw: the data of each event, and the number of events of each gap."""
    return [data["missed"] if event == "gap" else data for event, data in seen]


def has(seen: Seen, one: tuple[str, Any]) -> bool:
    return one in seen


def connect(broker: BrokerHandle) -> BlockingClient:
    return BlockingClient(*find_endpoint(broker.address), timeout_s=DEADLINE_S)


def read_until_refused(poster: BlockingClient) -> None:
    poster.flush()
    end = time.monotonic() + DEADLINE_S
    while time.monotonic() < end:
        poster.idle(0.1)


@pytest.mark.parametrize("scheme", ["unix", "shm"])
def test_a_batch_that_nobody_can_read_is_a_gap_in_its_place_and_its_poster_is_disconnected(scheme):
    with running_pool(scheme) as (broker, logs, directory):
        with (directory / "tail").open("wb") as out:
            tail = subprocess.Popen(
                [*COMMAND, "tail", "--json"], stdout=out, stderr=subprocess.DEVNULL, env=environment(broker.address)
            )
        wait_until(lambda: status(broker.address, timeout_s=DEADLINE_S)["broker"]["observers"] == 1)
        expected: list[Any] = []
        for data in BAD.values():
            with connect(broker) as poster:
                poster.post("app", "e", len(expected))
                poster.confirm()
                poster.post_body(b'[["app","e",[' + data + b"]]]", 1, pid=os.getpid())
                with pytest.raises(NotConnected, match=r"refused: bad batch, number 2: .* can't read it: "):
                    read_until_refused(poster)
            expected += [len(expected), 1]
        with connect(broker) as poster:
            poster.post("app", "e", "last")
            poster.confirm()
        expected.append("last")
        for seen in logs:
            wait_until(partial(has, seen, ("e", "last")))
            assert place_of(seen) == expected
        wait_until(
            lambda: [row["unread"] for row in status(broker.address, timeout_s=DEADLINE_S)["workers"]] == [len(BAD)] * 2
        )
        wait_until(lambda: b'"last"' in (directory / "tail").read_bytes())
        tail.terminate()
        tail.wait(DEADLINE_S)
        lines = [json.loads(line) for line in (directory / "tail").read_text().splitlines()]
        seen_by_tail = [(line["event"], line["data"]) for line in lines if line["event"] in ("e", "gap")]
        assert place_of(seen_by_tail) == expected
        complaints = [line for line in broker.complaints().splitlines() if "bad batch" in line]
    assert len(complaints) == len(BAD)
    assert all(f"a client with pid {os.getpid()} posted a bad batch, number 2" in line for line in complaints)


@pytest.mark.parametrize("unique", [None, "key"])
def test_who_waits_for_the_handlers_of_an_event_that_can_t_be_read_does_not_wait_for_the_timeout(unique):
    with running_pool("unix") as (broker, logs, _):
        began = time.monotonic()
        with connect(broker) as poster:
            try:
                receipt = poster.post_and_wait("app", "e", Fragment(b"nothing"), unique=unique)
            except NotConnected as error:
                assert "bad batch, number 1" in str(error)
            else:
                assert [run.name for run in receipt.failures][:1] == ["(not read)"]
        assert time.monotonic() - began < DEADLINE_S / 2
        wait_until(lambda: sum(map(len, logs)) == (1 if unique else 2))
        with connect(broker) as poster:
            poster.post_and_confirm("app", "e", "last")
        wait_until(lambda: all(seen and seen[-1] == ("e", "last") for seen in logs))
        # No other worker gets it when the first one goes.
        assert sum(row["uniques"] for row in status(broker.address, timeout_s=DEADLINE_S)["workers"]) == bool(unique)


def test_a_worker_that_posts_what_nobody_can_read_comes_back_and_its_other_events_arrive():
    with running_pool("unix") as (broker, logs, _), Events(broker.address, broker="never") as events:
        events.wait_ready(DEADLINE_S)
        for number in range(300):
            events.post("app", "e", Fragment(b"[") if number % 100 == 50 else number)
            if number % 10 == 0:
                events.flush(DEADLINE_S)
        events.post("app", "e", "last")
        events.flush(DEADLINE_S)
        for seen in logs:
            wait_until(partial(has, seen, ("e", "last")))
            place = place_of(seen)
            numbers = [data for event, data in seen if event == "e"][:-1]
            missed = sum(data["missed"] for event, data in seen if event == "gap")
            assert numbers == sorted(set(numbers))
            # The good events of a batch are lost with the bad one: all of them are reported.
            assert (len(numbers) + missed, place[-1]) == (300, "last")
        wait_until(lambda: len({row["unread"] for row in status(broker.address, timeout_s=DEADLINE_S)["workers"]}) == 1)
        wait_until(lambda: events.configured())
