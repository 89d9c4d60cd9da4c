"""Percentiles and bars."""

from __future__ import annotations

import random

import pytest

from eventsh.commands.latency import summarize


def test_nothing_sums_up_to_nothing():
    assert summarize([]) is None


def test_percentiles_are_values_that_so_many_do_not_exceed():
    values = [number * 1000 for number in range(1, 1001)]
    random.Random(1).shuffle(values)
    latency = summarize(values)
    assert latency is not None
    assert latency.count == 1000
    assert [latency.p50, latency.p90, latency.p99, latency.p99_9, latency.max] == [500, 900, 990, 999, 1000]


def test_of_one_value_all_percentiles_are_that():
    latency = summarize([70_000])
    assert latency is not None
    assert (latency.p50, latency.p99_9, latency.max) == (70, 70, 70)
    assert latency.bars == ((100, 1),)


@pytest.mark.parametrize(
    ("values_us", "bars"),
    [
        ([10, 11], ((10, 1), (20, 1))),
        ([1], ((10, 1),)),
        ([15, 300], ((20, 1), (50, 0), (100, 0), (200, 0), (500, 1))),
        ([6_000_000, 9_000_000_000], ((5_000_000, 2),)),
        ([5_000_000, 5_000_001], ((5_000_000, 2),)),
    ],
)
def test_bars_go_from_the_first_that_holds_something_to_the_last(values_us, bars):
    latency = summarize([value * 1000 for value in values_us])
    assert latency is not None
    assert latency.bars == bars


def test_every_value_is_in_one_bar():
    chance = random.Random(2)
    for _ in range(200):
        values = [int(10 ** chance.uniform(3, 11)) for _ in range(chance.randint(1, 50))]
        latency = summarize(values)
        assert latency is not None
        assert sum(count for _, count in latency.bars) == len(values)
        assert latency.bars[0][1]
        assert latency.bars[-1][1]
