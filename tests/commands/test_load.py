"""What a process of a benchmark posts and counts."""

from __future__ import annotations

from itertools import islice, pairwise

import orjson
import pytest

from eventsh.commands.load import LEAST_SIZE, Load, Tally


def handle(tally: Tally, *numbers: int) -> None:
    for number in numbers:
        tally.handler({"id": number, "v": 0}, "tick", "bench", 1)


@pytest.mark.parametrize("rate", [0.0, 1000.0])
@pytest.mark.parametrize("posters", [1, 3])
def test_every_event_once_and_in_order_is_what_should_be(posters, rate):
    ends: list[None] = []
    tally = Tally(Load(6, posters, rate=rate), lambda: ends.append(None))
    handle(tally, *range(5))
    assert (tally.handled, ends) == (5, [])
    handle(tally, 5)
    assert (tally.handled, tally.out_of_order, ends) == (6, 0, [None])


@pytest.mark.parametrize("rate", [0.0, 1000.0])
@pytest.mark.parametrize(
    ("posters", "numbers"), [(1, (0, 2)), (1, (1,)), (1, (0, 0)), (1, (0, 2, 1)), (2, (0, 1, 4)), (2, (0, 0))]
)
def test_what_is_lost_doubled_or_late_is_seen(posters, numbers, rate):
    tally = Tally(Load(9, posters, rate=rate), lambda: None)
    handle(tally, *numbers)
    assert tally.out_of_order >= 1
    assert tally.handled == len(numbers)


def test_posters_need_not_keep_step():
    tally = Tally(Load(6, 2), lambda: None)
    handle(tally, 0, 2, 4, 1, 3, 5)
    assert tally.out_of_order == 0


def test_a_gap_is_counted():
    tally = Tally(Load(6), lambda: None)
    tally.take_gap({"missed": 4}, "gap", "eventsh", None)
    assert tally.missed == 4


@pytest.mark.parametrize("size", [LEAST_SIZE, 65, 1000, 100_000])
@pytest.mark.parametrize("rate", [0.0, 1.0])
def test_data_is_as_large_as_asked_for(size, rate):
    name = Load(1, size=size, rate=rate).name()
    data = {"id": 123_456, "name": name, "tags": ["a", "bc"], "v": 10**15 if rate else 1.5}
    assert len(orjson.dumps(data)) == size


def test_sources_come_in_random_order_and_all_of_them():
    pairs = list(islice(Load(1, sources=20).pairs(), 2000))
    assert set(pairs) == set(Load(1, sources=20).names())
    assert len(set(pairs)) == 20
    assert 1800 < sum(before != after for before, after in pairwise(pairs)) < 2000
    assert pairs == list(islice(Load(1, sources=20).pairs(), 2000))


def test_large_events_have_shorter_queues():
    assert Load(1).options() == {"max_payload_len": 65536, "max_queue_len": 10240}
    large = Load(1, size=1024 * 1024).options()
    assert large["max_queue_len"] == 64
    assert large["max_payload_len"] > 1024 * 1024


def test_a_warm_up_is_a_short_run_without_pauses():
    assert Load(1_000_000, 2, 100, 3, 50.0).warm_up() == Load(20_000, 2, 100, 3)
    assert Load(3, 3).warm_up() == Load(3, 3)
