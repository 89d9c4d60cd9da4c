from __future__ import annotations

import pytest

from eventsh.recording.pace import Lateness, Pace

MS = 1_000_000


def dues(pace: Pace, times_ms: list[int], now: float = 100.0) -> list[float | None]:
    return [pace.due(1_700_000_000_000_000_000 + time_ms * MS, 1, now) for time_ms in times_ms]


@pytest.mark.parametrize(
    ("speed", "expected"), [(1.0, [100, 100.5, 102]), (2.0, [100, 100.25, 101]), (0.5, [100, 101, 104])]
)
def test_deadlines_are_those_of_the_recording_divided_by_the_speed(speed, expected):
    assert dues(Pace(speed), [0, 500, 2000]) == pytest.approx(expected)


def test_they_do_not_depend_on_how_late_the_caller_is():
    pace = Pace()
    assert [pace.due(time_ms * MS, 1, 100.0 + late) for time_ms, late in ((0, 0), (1000, 5), (2000, 9))] == [
        100,
        101,
        102,
    ]


def test_at_full_speed_nothing_is_due_at_a_time():
    assert dues(Pace(None), [0, 500]) == [None, None]


def test_with_a_rate_events_are_due_at_even_distances():
    pace = Pace(rate=100)
    assert [pace.due(0, 5, 10.0) for _ in range(3)] == pytest.approx([10, 10.05, 10.10])


def test_long_gaps_are_shortened_and_a_clock_that_was_set_back_stands_still():
    assert dues(Pace(max_gap_s=1.0), [0, 5000, 5500]) == pytest.approx([100, 101, 101.5])
    assert dues(Pace(), [1000, 500, 1500]) == pytest.approx([100, 100, 100.5])


YEAR_MS = 365 * 24 * 3600 * 1000


def test_a_clock_that_was_set_by_more_neither_waits_nor_hurries():
    for set_ms in (-YEAR_MS, -3_600_000, YEAR_MS):
        times_ms = [0, 500, set_ms + 700, set_ms + 1000, 1200, 1500]
        step_s = 1200 / 1000 + 3600 - 1 if set_ms == -3_600_000 else 0
        assert dues(Pace(), times_ms) == pytest.approx([100, 100.5, 100.5, 100.8, 100.8 + step_s, 101.1 + step_s])


def test_a_day_is_a_pause_and_a_longer_one_a_set_clock():
    day_ms = 24 * 3600 * 1000
    assert dues(Pace(2.0), [0, day_ms, 2 * day_ms + 1]) == pytest.approx([100, 100 + 43200, 100 + 43200])
    assert dues(Pace(max_gap_s=1.0), [0, day_ms, 2 * day_ms + 1]) == pytest.approx([100, 101, 102])


def test_a_pause_shifts_what_follows():
    pace = Pace()
    dues(pace, [0])
    pace.shift(3)
    assert dues(pace, [1000]) == pytest.approx([104])


@pytest.mark.parametrize("kind", ["speed", "rate"])
def test_a_change_of_speed_holds_from_where_it_is(kind):
    pace = Pace(1.0) if kind == "speed" else Pace(rate=1)
    dues(pace, [0])
    (due,) = dues(pace, [1000])
    assert due == 101
    # Half of the way to it is left.
    assert pace.change(2.0, due, 100.5) == 100.75
    assert dues(pace, [3000] if kind == "speed" else [0]) == pytest.approx([101.75] if kind == "speed" else [101.25])


def test_another_round_begins_at_once():
    pace = Pace()
    dues(pace, [0, 1000])
    pace.restart(200.0)
    assert dues(pace, [0, 1000], now=200.0) == pytest.approx([200, 201])


def test_percentiles_are_at_most_a_twentieth_too_high():
    lateness = Lateness()
    assert lateness.percentile_s(0.5) is None
    for number in range(1, 1001):
        lateness.note(number / 1000, 1)
    for share in (0.01, 0.5, 0.9, 0.99, 1.0):
        found = lateness.percentile_s(share)
        assert found is not None
        assert share <= found <= share * 1.05 + 1e-9
    assert lateness.most_s == 1.0


def test_the_position_is_in_seconds_of_the_recording_without_shortened_gaps():
    pace = Pace(4.0, max_gap_s=1.0)
    assert pace.position_s == 0
    dues(pace, [0, 500, 5000])
    assert pace.position_s == pytest.approx(1.5)
    pace.restart(200.0)
    assert pace.position_s == 0
    dues(pace, [0, 500], now=200.0)
    assert pace.position_s == pytest.approx(0.5)


def test_a_rate_takes_the_place_of_the_speed():
    assert (Pace(2.0).speed, Pace(2.0).rate) == (2.0, None)
    assert (Pace(2.0, rate=5).speed, Pace(2.0, rate=5).rate) == (None, 5)
    assert (Pace().speed, Pace().position_s) == (1.0, 0.0)


def test_another_round_with_a_rate_begins_at_once_too():
    pace = Pace(rate=10)
    dues(pace, [0, 0, 0])
    pace.restart(200.0)
    assert dues(pace, [0, 0], now=200.0) == pytest.approx([200, 200.1])


def test_a_change_multiplies_the_speed_and_nothing_where_there_is_none():
    for kind, expected in (({"speed": 2.0}, (6.0, None)), ({"rate": 5}, (None, 15)), ({"speed": None}, (None, None))):
        pace = Pace(**kind)
        dues(pace, [0])
        pace.change(3.0, 100, 100)
        assert (pace.speed, pace.rate) == expected


def test_a_change_after_the_deadline_makes_it_due_now():
    pace = Pace()
    dues(pace, [0, 1000])
    assert pace.change(2.0, 101, 105) == 105
    assert dues(pace, [3000]) == [106]


def test_a_step_of_the_clock_back_costs_the_time_until_it_has_caught_up():
    assert dues(Pace(), [1000, 500, 900, 1100]) == pytest.approx([100, 100, 100, 100.1])


def test_events_that_were_in_time_are_late_by_nothing():
    lateness = Lateness()
    assert (lateness.events, lateness.most_s) == (0, 0)
    lateness.note(0.0, 98)
    lateness.note(1e-6, 1)
    lateness.note(3.0, 1)
    assert (lateness.events, lateness.most_s) == (100, 3.0)
    assert lateness.percentile_s(0.99) == 0.0
    assert lateness.percentile_s(0.991) == 3.0
    lateness.note(-1.0, 900)
    assert lateness.most_s == 3.0
    assert lateness.percentile_s(0.999) == 0.0


def test_a_percentile_is_never_below_the_share_and_never_above_the_latest():
    lateness = Lateness()
    for count, seconds in ((10, 0.001), (10, 0.002), (5, 0.1)):
        lateness.note(seconds, count)
    for share, least in ((0.4, 0.001), (0.41, 0.002), (0.8, 0.002), (0.81, 0.1), (1.0, 0.1)):
        found = lateness.percentile_s(share)
        assert found is not None
        assert least <= found <= least * 1.05
    assert lateness.percentile_s(1.0) == 0.1
    assert Lateness().percentile_s(1.0) is None
