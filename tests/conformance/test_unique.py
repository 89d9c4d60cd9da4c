"""Cases U1 to U8: unique events and their keys."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from eventsh.errors import PayloadTooLarge, QueueOverflow
from tests.conformance.harness import (
    BrokerHandle,
    Bus,
    Ledger,
    Pool,
    ProcessWorker,
    Seen,
    Worker,
    wait_until,
)

MakeBroker = Callable[..., BrokerHandle]
MakeBus = Callable[..., Bus]
MakeWorker = Callable[..., Worker]

# More than any small table of keys would hold; the original's holds 1,024.
MANY_KEYS = 100_000


def test_u1_one_worker_handles_the_first_post_of_a_key_and_nobody_a_repeat(pool: Pool, source: str) -> None:
    first, second = pool.workers[:2]
    first.post(source, "refresh", 1, unique=source)
    first.post(source, "refresh", 2, unique=source)
    first.flush()
    # The key is the same for whoever posts.
    second.post(source, "refresh", 3, unique=source)
    seen = pool.settle(source, posters=[first, second])
    assert [one for of_worker in seen for one in of_worker] == [Seen(source, "refresh", 1, first.pid)]


def test_u2_a_key_expires_and_is_taken_again(make_broker: MakeBroker, make_worker: MakeWorker, source: str) -> None:
    pool = Pool(make_broker(unique_timeout=0.04), [make_worker(), make_worker()])
    poster = pool.workers[0]
    # Each pair leaves and is routed in one go, so that no pause can come between the two.
    poster.burst(["post", source, "run", 1, "key"], ["post", source, "run", 2, "key"])
    poster.flush()
    time.sleep(0.1)
    poster.burst(["post", source, "run", 3, "key"], ["post", source, "run", 4, "key"], ["post", source, "done"])
    poster.wait(source, "done")
    seen = pool.settle(source)
    assert sorted(one.data for of_worker in seen for one in of_worker if one.event == "run") == [1, 3]


def test_u3_other_events_around_a_unique_one_reach_all_workers(pool: Pool, source: str) -> None:
    poster = pool.workers[3]
    poster.burst(
        ["post", source, "before"],
        ["post", source, "unique", None, source],
        ["post", source, "between"],
        ["post", source, "unique", None, source],
        ["post", source, "after"],
    )
    poster.wait(source, "after")
    seen = [[one.event for one in of_worker] for of_worker in pool.settle(source, posters=[poster])]
    assert sorted(seen, key=len) == [
        *[["before", "between", "after"]] * 3,
        ["before", "unique", "between", "after"],
    ]


def test_u4_a_post_that_is_too_large_does_not_take_the_key(pool: Pool, make_bus: MakeBus, source: str) -> None:
    poster = make_bus(pool.broker.address, role="observer", max_payload_len=200).configure()
    poster.wait_ready()
    with pytest.raises(PayloadTooLarge):
        poster.post(source, "unique", "x" * 200, unique=source)
    poster.post(source, "unique", "small", unique=source)
    poster.post(source, "unique", "repeat", unique=source)
    poster.flush()
    assert [one.data for of_worker in pool.settle(source) for one in of_worker] == ["small"]


def test_u5_a_post_that_a_full_queue_refuses_does_not_take_the_key(
    make_bus: MakeBus, make_broker: MakeBroker, source: str
) -> None:
    bus, ledger = make_bus(max_queue_len=3), Ledger()
    bus.register(ledger.record, source)
    bus.configure()
    for number in range(3):
        bus.post(source, "other", number)
    with pytest.raises(QueueOverflow):
        bus.post(source, "unique", "refused", unique="key")
    make_broker()
    bus.flush()
    bus.post(source, "unique", "accepted", unique="key")
    bus.post(source, "unique", "repeat", unique="key")
    bus.flush()
    bus.post(source, "done")
    ledger.wait(source, "done")
    assert [one.data for one in ledger.of(source) if one.event == "unique"] == ["accepted"]


# The longest by far, and nothing in it depends on the face: posting 200,000 events is not a matter of the loop.
@pytest.mark.parametrize("face", ["Events"], scope="session")
@pytest.mark.timeout(600)  # so many posts take a while where others keep the machine busy
def test_u6_no_repeat_gets_through_while_a_hundred_thousand_keys_are_alive(
    make_broker: MakeBroker, make_worker: MakeWorker, source: str
) -> None:
    broker = make_broker(unique_timeout=600)
    # The table of keys knows no transport: one of them gets all.
    many_keys = MANY_KEYS if broker.address.startswith("unix:") else MANY_KEYS // 10
    pool = Pool(broker, [make_worker(), make_worker()])
    poster = pool.workers[0]
    poster.call("post_unique_keys", source, "first", many_keys)
    poster.call("post_unique_keys", source, "repeat", many_keys)
    poster.flush()
    assert poster.status()["broker"]["unique_keys"] == many_keys
    assert poster.status()["broker"]["ignored_repeats"] == many_keys
    poster.post(source, "marker")
    for worker in pool.workers:
        worker.call("wait", source, "marker", 1)
    counts = [worker.call("count", source) for worker in pool.workers]
    assert sum(count["first"] for count in counts) == many_keys
    assert all("repeat" not in count for count in counts)


def test_u7_only_live_workers_get_unique_events(make_broker: MakeBroker, make_worker: MakeWorker, source: str) -> None:
    # Slot 4 is never taken.
    make_broker(slots=5)
    live, gone, draining, killed = (make_worker(worker_id=number) for number in range(4))
    draining.hold(source, "hold")
    live.post(source, "hold")
    draining.wait(source, "held")
    draining.begin_close()
    gone.close()
    if isinstance(killed, ProcessWorker):
        killed.kill()
    else:
        killed.close(leave=False)

    def states() -> dict[int, str]:
        return {worker["worker_id"]: worker["state"] for worker in live.status()["workers"]}

    wait_until(lambda: states() == {0: "attached", 2: "draining", 3: "absent", 4: "absent"}, states)
    for number in range(30):
        live.post(source, "unique", number, unique=f"key {number}")
    live.post(source, "done")
    seen = live.wait(source, "done")
    assert [one.data for one in seen if one.event == "unique"] == list(range(30))
    draining.let_go()
    assert all(one.event != "unique" for one in draining.wait(source, "let go"))


@pytest.mark.parametrize("own_face", ["Events", "AsyncEvents"])
def test_u8_repeats_are_ignored_within_one_process_too(own_face: str, directory: Path, source: str) -> None:
    bus, ledger = Bus(own_face, f"inproc:{source}", linger=0.05), Ledger()
    try:
        bus.register(ledger.record, source)
        bus.configure()
        bus.post(source, "unique", 1, unique="key")
        bus.post(source, "unique", 2, unique="key")
        bus.post(source, "done")
        ledger.wait(source, "done")
        assert [one.data for one in ledger.of(source)] == [1, None]
    finally:
        bus.end()
