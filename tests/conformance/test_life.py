"""Cases F1 to F8: how processes begin and end, and what faults must not do."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from eventsh.api import event_list
from eventsh.core.queue import Entry, Queue
from eventsh.errors import EventError, TransportError
from eventsh.transport import Buffer
from tests.conformance.harness import (
    TRANSPORTS,
    BrokerHandle,
    Bus,
    Ledger,
    Pool,
    Seen,
    Worker,
    crosses_processes,
    wait_until,
)

MakeBroker = Callable[..., BrokerHandle]
MakeBus = Callable[..., Bus]
MakeWorker = Callable[..., Worker]

# Where the broker is a process, and can be killed.
CROSSING = [name for name in TRANSPORTS if crosses_processes(TRANSPORTS[name](Path("/tmp"), 0))]
# The original sends 100 events in 50 ms, and no more.
ORIGINALS_RATE = 2000
F8_EVENTS = 10_000


def test_f1_started_comes_first_and_stopping_last(
    make_broker: MakeBroker, make_worker: MakeWorker, source: str
) -> None:
    # On a slow machine the second worker's process takes long, and its place has to be kept until then.
    make_broker(slots=2, timeout=60.0)
    poster = make_worker(worker_id=0)
    poster.post(source, "waits for the other one")
    poster.flush()
    other = make_worker(worker_id=1)
    poster.post(source, "done")
    other.wait(source, "done")
    for worker in (poster, other):
        seen = [one for one in worker.close() if one.source in ("eventsh", source)]
        facts = {"worker_id": worker.worker_id}
        assert seen[0] == Seen("eventsh", "started", {**facts, "pid": worker.pid}, None)
        assert seen[-1] == Seen("eventsh", "stopping", facts, None)
        assert [one.event for one in seen].count("started") == 1
        assert [one.event for one in seen if one.source == source] == ["waits for the other one", "done"]


def test_f1_started_comes_before_local_events_that_were_posted_before_configure(
    make_bus: MakeBus, quiet_broker: BrokerHandle, source: str
) -> None:
    bus, ledger = make_bus(quiet_broker.address), Ledger()
    bus.register(ledger.record)
    bus.post_local(source, "early")
    bus.configure()
    ledger.wait(source, "early")
    assert [seen.event for seen in ledger.everything()[:2]] == ["started", "early"]


@pytest.mark.parametrize("transport", CROSSING, scope="session")
def test_f2_handlers_that_hold_a_lock_when_the_broker_is_killed_finish_and_get_the_next_events(
    address: str, make_worker: MakeWorker, tmp_path: Path, source: str
) -> None:
    lock = tmp_path / "lock"
    lock.touch()
    options = {"broker": "auto", "linger": 1.0}
    # The workers' own loops will stand still.
    poster = make_worker(role="observer", **options)
    workers = [make_worker(**options) for _ in range(4)]
    for worker in workers:
        worker.hold_lock(source, "work", str(lock))
    broker = poster.status()["broker"]["pid"]
    poster.post(source, "work")
    # One of them has the lock, the others wait for it.
    wait_until(lambda: any(count(worker, source, "locked") for worker in workers), lambda: "no worker has the lock")
    os.kill(broker, signal.SIGKILL)
    poster.post(source, "next")
    wait_until(lambda: is_another(poster, broker), lambda: "no other broker has come")
    for worker in workers:
        worker.let_go()
    for worker in workers:
        worker.wait(source, "next")
        assert worker.call("count", source) == {"work": 1, "locked": 1, "unlocked": 1, "next": 1}
        events = [one.event for one in worker.seen(source)]
        assert events.index("next") > events.index("unlocked") == events.index("locked") + 1


def is_another(worker: Worker, broker: int) -> bool:
    try:
        return bool(worker.status()["broker"]["pid"] != broker)
    except RuntimeError:
        # The connection broke while it was asked.
        return False


def queued(bus: Bus) -> int:
    """How many events the broker keeps for it."""
    workers = {worker["worker_id"]: worker for worker in bus.status()["workers"]}
    return int(workers[bus.events.worker_id]["queued"])


def count(worker: Worker, source: str, event: str) -> int:
    return int(worker.call("count", source).get(event, 0))


class FailingOnce:
    """A connection that breaks at the next send, with the frames lost."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        self.failures = 0

    def send(self, frames: Sequence[Buffer]) -> None:
        self.failures += 1
        self._connection.abort()

    def send_now(self, frames: Sequence[Buffer]) -> None:
        self.send(frames)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)


def test_f3_what_a_failed_send_lost_is_delivered_after_the_reconnect(bus: Bus, source: str) -> None:
    ledger = Ledger()
    bus.register(ledger.record, source)
    for number in range(3):
        bus.post(source, "e", number)
    bus.flush()
    # Nothing is owed to the broker: the next send is that of the next post.
    wait_until(lambda: not queued(bus), bus.status)
    failing: list[FailingOnce] = []

    def sabotage() -> None:
        client = bus.events._bus.client
        assert client is not None
        assert client.attachment is not None
        failing.append(FailingOnce(client.attachment.connection))
        client.attachment.connection = failing[0]  # type: ignore[assignment]

    bus.in_loop(sabotage)
    for number in range(3, 6):
        assert bus.post(source, "e", number)
    bus.flush()
    ledger.wait(source, "e", 6)
    bus.post(source, "done")
    ledger.wait(source, "done")
    assert failing[0].failures
    assert [seen.data for seen in ledger.of(source)] == [*range(6), None]


@pytest.mark.parametrize("worker_id", [1, None], ids=["asked for", "any"])
def test_f4_a_worker_that_attaches_late_gets_what_was_posted_since_its_slot_exists(
    worker_id: int | None, make_broker: MakeBroker, make_worker: MakeWorker, source: str
) -> None:
    make_broker(slots=2, timeout=60.0)
    early = make_worker(worker_id=0)
    early.post_many(source, "e", 0, 100)
    early.flush()
    time.sleep(0.5)
    late = make_worker(worker_id=worker_id)
    assert late.worker_id == 1
    early.post(source, "done")
    assert [one.data for one in late.wait(source, "done")] == [*range(100), None]
    assert [one.data for one in early.wait(source, "done")] == [*range(100), None]


def test_f4_a_worker_that_comes_back_gets_what_was_posted_meanwhile(
    make_broker: MakeBroker, make_worker: MakeWorker, source: str
) -> None:
    make_broker(timeout=60.0)
    poster, gone = make_worker(worker_id=0), make_worker(worker_id=1)
    poster.post(source, "before")
    gone.wait(source, "before")
    gone.close(leave=False)
    poster.post(source, "meanwhile")
    poster.flush()
    back = make_worker(worker_id=1)
    poster.post(source, "done")
    assert [one.event for one in back.wait(source, "done")] == ["meanwhile", "done"]


def test_f5_a_second_broker_refuses_and_does_not_disturb_the_first(
    make_broker: MakeBroker, make_worker: MakeWorker, source: str
) -> None:
    first = make_broker()
    worker = make_worker()
    with pytest.raises(TransportError, match="already"):
        make_broker()
    # Whoever attaches now finds the first one.
    other = make_worker()
    Pool(first, [worker, other]).settle(source)


def test_f5_what_a_killed_broker_left_behind_is_taken_over(
    make_broker: MakeBroker, make_worker: MakeWorker, source: str
) -> None:
    make_broker().kill()
    worker = make_worker(wait=False)
    broker = make_broker()
    worker.ready()
    Pool(broker, [worker]).settle(source)


def test_f6_an_event_list_gives_known_names_and_refuses_others() -> None:
    names = event_list("cache", "purge", "refresh")
    assert names.purge == names["purge"] == "purge"
    for wrong in (lambda: names.purgee, lambda: names["purgee"]):
        with pytest.raises(EventError, match=r"'cache' has no event 'purgee'.* purge, refresh"):
            wrong()


def test_f7_what_is_put_back_in_front_of_a_queue_comes_first_and_counts() -> None:
    # All of the queue's cases are in tests/core/test_queue.py.
    queue = Queue(4)
    entries = [Entry(number, 1, bytearray()) for number in range(1, 5)]
    for entry in entries[:3]:
        queue.append(entry)
    taken = [queue.popleft(), queue.popleft()]
    assert taken == entries[:2]
    queue.append(entries[3])
    assert queue.events == 2
    queue.put_back(taken)
    assert queue.is_full
    assert [queue.popleft() for _ in range(4)] == entries


def test_f8_a_steady_poster_is_not_slowed(pool: Pool, source: str) -> None:
    events, rates = 0, list[float]()
    # What others do on this machine slows some of the rounds, and a fixed rate would slow each.
    while not rates or (max(rates) <= ORIGINALS_RATE and len(rates) < 5):
        started = time.monotonic()
        pool.workers[0].post_many(source, "e", events, F8_EVENTS)
        events += F8_EVENTS
        for worker in pool.workers:
            worker.call("wait", source, "e", events)
        rates.append(F8_EVENTS / (time.monotonic() - started))
    assert max(rates) > ORIGINALS_RATE, rates
    assert [one.data for one in pool.workers[3].seen(source)] == list(range(events))
