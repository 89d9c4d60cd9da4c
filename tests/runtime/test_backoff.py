from __future__ import annotations

from itertools import pairwise

import pytest

from eventsh.runtime.backoff import (
    BACKOFF_FIRST_S,
    BACKOFF_LAST_S,
    MAX_RESTARTS,
    RESTART_WINDOW_S,
    RUN_WELL_S,
    Backoff,
)


def test_delays_double_up_to_the_longest():
    backoff = Backoff()
    delays = [backoff.delay_s(1000.0 * n, 1000.0 * n) for n in range(9)]
    assert delays == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0, 5.0])


def test_a_process_that_ran_well_starts_from_the_shortest_again():
    backoff = Backoff()
    for n in range(MAX_RESTARTS):
        backoff.delay_s(0.1 * n, None)
    assert backoff.delay_s(3.0, 3.0 - RUN_WELL_S) == BACKOFF_FIRST_S


def test_restarts_never_exceed_their_number_in_any_window():
    backoff, now, restarts = Backoff(), 0.0, []
    for _ in range(50):
        now += backoff.delay_s(now, None)
        restarts.append(now)
    for first, after in zip(restarts, restarts[MAX_RESTARTS:], strict=False):
        assert after - first >= RESTART_WINDOW_S - 1e-9
    assert max(b - a for a, b in pairwise(restarts)) <= RESTART_WINDOW_S
    assert BACKOFF_LAST_S <= RESTART_WINDOW_S


def test_only_starts_that_failed_in_a_row_exhaust_it():
    backoff = Backoff()
    for n in range(MAX_RESTARTS):
        backoff.delay_s(float(n), None)
    assert not backoff.exhausted
    backoff.delay_s(20.0, 19.9)
    for n in range(MAX_RESTARTS):
        backoff.delay_s(30.0 + n, None)
    assert not backoff.exhausted
    backoff.delay_s(40.0, None)
    assert backoff.exhausted


def test_it_goes_on_for_ever():
    backoff = Backoff()
    assert all(backoff.delay_s(20.0 * n, None) <= RESTART_WINDOW_S for n in range(5000))
