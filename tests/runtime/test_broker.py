from __future__ import annotations

from eventsh.runtime.broker import Clock


def clock_at(times: list[float]) -> Clock:
    return Clock(0.5, iter(times).__next__)


def test_the_brokers_clock_is_the_monotonic_one_while_its_loop_turns():
    clock = clock_at([100.0, 100.25, 100.25, 100.75])
    assert [clock(), clock(), clock()] == [100.25, 100.25, 100.75]


def test_of_a_pause_in_which_the_broker_stood_still_only_the_longest_turn_counts():
    clock = clock_at([100.0, 160.0, 160.25, 260.25])
    assert [clock(), clock(), clock()] == [100.5, 100.75, 101.25]
