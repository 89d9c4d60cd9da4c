"""Cases D1 to D7: who gets an event, and in which order."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from eventsh.errors import NotConnected
from tests.conformance.harness import BrokerHandle, Bus, Ledger, Pool, Seen, Worker

MakeBroker = Callable[..., BrokerHandle]
MakeBus = Callable[..., Bus]
MakeWorker = Callable[..., Worker]


def test_d1_four_workers_handle_a_post_once_each(pool: Pool, source: str) -> None:
    assert pool.workers[1].post(source, "purge", {"key": "k1"})
    expected = Seen(source, "purge", {"key": "k1"}, pool.workers[1].pid)
    assert pool.settle(source, posters=pool.workers[1:2]) == [[expected]] * 4


def test_d1_posts_of_all_four_reach_all_four_in_one_order(pool: Pool, source: str) -> None:
    for worker in pool.workers:
        worker.burst(*(["post", source, "count", [worker.worker_id, number]] for number in range(50)))
    for worker in pool.workers:
        worker.wait(source, "count", 200)
    first, *others = pool.settle(source, posters=pool.workers)
    for number in range(4):
        of_one = [seen.data[1] for seen in first if seen.data[0] == number]
        assert of_one == list(range(50))
    assert others == [first] * 3


def test_d2_a_handler_gets_data_event_source_and_the_posters_pid(pool: Pool, source: str) -> None:
    for worker in pool.workers:
        worker.post(source, "from", worker.worker_id)
    for seen in pool.settle(source, posters=pool.workers):
        assert sorted(seen, key=lambda one: one.data) == [
            Seen(source, "from", worker.worker_id, worker.pid) for worker in pool.workers
        ]


def test_d3_local_posts_are_handled_by_the_poster_alone_in_order_and_without_a_pid(pool: Pool, source: str) -> None:
    poster = pool.workers[2]
    assert poster.post_local(source, "first", 1)
    assert poster.post_local(source, "second", 2)
    local = [Seen(source, "first", 1, None), Seen(source, "second", 2, None)]
    assert pool.settle(source, posters=[poster]) == [[], [], local, []]


def test_d4_a_local_post_does_not_wait_for_a_post_before_it_that_travels(pool: Pool, source: str) -> None:
    poster = pool.workers[0]
    poster.burst(["post", source, "r1"], ["post_local", source, "r2"], ["post", source, "r3"])
    poster.wait(source, "r3")
    seen = [[one.event for one in of_worker] for of_worker in pool.settle(source)]
    assert seen == [["r2", "r1", "r3"], *[["r1", "r3"]] * 3]


def test_d5_nothing_is_lost_between_post_configure_and_register(
    make_bus: MakeBus, make_broker: MakeBroker, source: str
) -> None:
    bus, ledger = make_bus(), Ledger()
    bus.post(source, "r1")
    # Nobody listens yet, so that the local event is sure to come before the answer of a broker.
    bus.configure()
    bus.post_local(source, "r2")
    make_broker()
    bus.flush()
    assert ledger.of(source) == []
    bus.register(ledger.record, source)
    bus.post(source, "r3")
    ledger.wait(source, "r3")
    assert [seen.event for seen in ledger.of(source)] == ["r2", "r1", "r3"]


def test_d6_configured_tells_and_readiness_can_be_waited_for(make_bus: MakeBus, make_broker: MakeBroker) -> None:
    bus = make_bus()
    assert not bus.configured()
    bus.configure()
    assert bus.configured()
    with pytest.raises(NotConnected, match=r"not attached to .* within 0\.05 s"):
        bus.wait_ready(0.05)
    make_broker()
    bus.wait_ready()
    bus.close()
    assert not bus.configured()


def test_d7_an_observer_posts_and_gets_broadcasts_and_wins_no_unique_event(
    pool: Pool, make_bus: MakeBus, source: str
) -> None:
    ledger = Ledger()
    observer = make_bus(pool.broker.address, role="observer")
    observer.register(ledger.record)
    observer.configure()
    observer.wait_ready()
    assert observer.events.worker_id is None
    observer.post(source, "from the observer")
    for number in range(20):
        observer.post(source, "unique", number, unique=f"{source} {number}")
    observer.post(source, "done")
    for worker in pool.workers:
        worker.wait(source, "done")
    ledger.wait(source, "done")
    assert [seen.event for seen in ledger.of(source)] == ["from the observer", "done"]
    seen = pool.settle(source)
    assert all(of_worker[0].event == "from the observer" for of_worker in seen)
    assert sorted(one.data for of_worker in seen for one in of_worker if one.event == "unique") == list(range(20))


def test_d7_an_observer_that_asks_for_unique_events_wins_them(
    make_bus: MakeBus, make_broker: MakeBroker, source: str
) -> None:
    make_broker()
    ledger = Ledger()
    observer = make_bus(role="observer", take_unique=True)
    observer.register(ledger.record)
    observer.configure()
    observer.post(source, "unique", unique=source)
    observer.post(source, "repeat", unique=source)
    observer.post(source, "done")
    ledger.wait(source, "done")
    assert [seen.event for seen in ledger.of(source)] == ["unique", "done"]
