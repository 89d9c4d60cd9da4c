"""Cases L1 to L5: what is refused, and what is not."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest

from eventsh.errors import ConfigureError, PayloadTooLarge, QueueOverflow, UsageError
from tests.conformance.harness import FACES, BrokerHandle, Bus, Ledger, Pool

MakeBroker = Callable[..., BrokerHandle]
MakeBus = Callable[..., Bus]


def test_l1_large_events_under_the_limit_are_delivered_without_a_warning(
    pool: Pool, source: str, caplog: pytest.LogCaptureFixture
) -> None:
    def complaints() -> str:
        return pool.broker.complaints() + pool.workers[0].complaints()

    before = complaints()
    sizes = {"65537": 65_537, "1 MiB": 1024 * 1024}
    poster = pool.workers[1]
    for event, size in sizes.items():
        assert poster.post(source, event, "x" * size)
    assert poster.post(source, "unique", "x" * 655_350, unique=source)
    seen = [{one.event: len(one.data) for one in of_worker} for of_worker in pool.settle(source, posters=[poster])]
    assert sorted(seen, key=len) == [*[sizes] * 3, {**sizes, "unique": 655_350}]
    assert complaints() == before
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_l2_the_envelope_counts_and_the_refusal_names_size_limit_and_option(
    quiet_broker: BrokerHandle, make_bus: MakeBus, source: str
) -> None:
    bus, ledger = make_bus(quiet_broker.address, max_payload_len=200), Ledger()
    bus.register(ledger.record, source)
    bus.configure()
    with pytest.raises(PayloadTooLarge) as caught:
        bus.post(source, "e", "x" * 200)
    size = caught.value.size_bytes
    assert size > 202
    assert caught.value.limit_bytes == 200
    for part in (source, str(size), "200", "max_payload_len"):
        assert part in str(caught.value)
    # As many bytes less as it was over: exactly at the limit.
    with pytest.raises(PayloadTooLarge):
        bus.post(source, "e", "x" * (401 - size))
    bus.post(source, "e", "x" * (400 - size))
    bus.post(source, "done")
    ledger.wait(source, "done")
    assert [len(seen.data or "") for seen in ledger.of(source)] == [400 - size, 0]


WRONG_VALUES: dict[str, list[Any]] = {
    "timeout": ["5", True, [], 0, -1, float("nan"), float("inf")],
    "max_queue_len": ["5", True, 1.5, 0, -1, None],
    "max_payload_len": ["5", True, 1.5, 0, -1, None, 16 * 1024 * 1024 + 1],
    "worker_id": ["0", -1, 1.0],
    "broker": ["always", None, 1],
    "role": ["poster", None],
    "no_such_option": [1],
}
WRONG_OPTIONS = [(option, value) for option, values in WRONG_VALUES.items() for value in values]


@pytest.mark.parametrize(("option", "value"), WRONG_OPTIONS)
@pytest.mark.parametrize("own_face", FACES)
def test_l3_a_wrong_option_is_refused_by_name(own_face: str, option: str, value: Any) -> None:
    with pytest.raises(ConfigureError, match=option) as caught:
        Bus(own_face, "inproc:never", **{option: value})
    assert caught.value.option == option
    bus = Bus(own_face, "inproc:never")
    try:
        with pytest.raises(ConfigureError, match=option):
            bus.configure(**{option: value})
        assert not bus.configured()
    finally:
        bus.end()


@pytest.mark.parametrize("address", ["", ":", "unix:", "nosuch:thing", "/run/a.sock", 5, b"unix:/a", "inproc:"])
@pytest.mark.parametrize("own_face", FACES)
def test_l3_a_wrong_address_is_refused(own_face: str, address: Any) -> None:
    bus = Bus(own_face)
    try:
        with pytest.raises(ConfigureError, match="address") as caught:
            bus.configure(address)
        assert caught.value.option == "address"
        assert not bus.configured()
    finally:
        bus.end()


@pytest.mark.parametrize("name", ["", 5, b"bytes", None])
def test_l4_a_source_or_event_that_is_empty_or_no_string_is_refused(bus: Bus, source: str, name: Any) -> None:
    for post in (bus.post, bus.post_local):
        with pytest.raises(UsageError, match="source must"):
            post(name, "e")
        with pytest.raises(UsageError, match="event must"):
            post(source, name)
    handler = Ledger().record
    with pytest.raises(UsageError, match="event must"):
        bus.register(handler, source, name)
    if name is not None:
        with pytest.raises(UsageError, match="source must"):
            bus.register(handler, name)
        with pytest.raises(UsageError, match="unique must"):
            bus.post(source, "e", unique=name)


def test_l5_a_full_queue_refuses_and_takes_the_next_post_once_there_is_room(
    make_bus: MakeBus, make_broker: MakeBroker, source: str
) -> None:
    bus, ledger = make_bus(max_queue_len=10), Ledger()
    bus.register(ledger.record, source)
    bus.configure()
    for number in range(10):
        assert bus.post(source, "e", number)
    for _ in range(2):
        with pytest.raises(QueueOverflow, match="max_queue_len") as caught:
            bus.post(source, "e", "refused")
        assert (caught.value.queued, caught.value.limit) == (10, 10)
    make_broker()
    bus.drain()
    assert bus.post(source, "e", 10)
    ledger.wait(source, "e", 11)
    assert [seen.data for seen in ledger.of(source)] == list(range(11))


def test_l5_a_full_local_queue_refuses_too(bus: Bus, source: str) -> None:
    errors: list[QueueOverflow] = []
    ledger = Ledger()

    def flood(data: Any, event: str, source: str, pid: int | None) -> None:
        # In one go: nothing is handled meanwhile, and the event that is being handled counts too. A handler may fill the queue
        # to twice its limit.
        try:
            for _ in range(20_480):
                bus.events.post_local(source, "flood")
        except QueueOverflow as error:
            errors.append(error)

    bus.register(flood, source, "begin")
    bus.register(ledger.record, source, "flood")
    bus.post_local(source, "begin")
    ledger.wait(source, "flood", 20_479)
    assert [(error.queue, error.queued, error.limit) for error in errors] == [("local", 20_480, 20_480)]
    assert bus.post_local(source, "flood")
    ledger.wait(source, "flood", 20_480)
