"""The budget of a slot by itself: exact whenever it is looked at."""

from __future__ import annotations

import pytest

from eventsh.core.broker.budget import REFILL, Budget


def test_a_full_budget_is_empty_after_its_limit_and_not_before():
    budget = Budget(5.0, 100.0)
    budget.spend(200.0)
    assert budget.empty_at == 205.0
    assert not budget.is_empty(204.99)
    assert budget.is_empty(205.0)


def test_it_holds_no_more_than_its_limit():
    budget = Budget(5.0, 0.0)
    budget.refill(1e6)
    budget.spend(1e6)
    assert budget.empty_at == 1e6 + 5


def test_it_refills_at_three_percent_of_the_time_with_room():
    budget = Budget(5.0, 0.0)
    budget.spend(0.0)
    assert budget.is_empty(5.0)
    budget.refill(5.0)
    budget.spend(15.0)
    assert budget.empty_at == pytest.approx(15.0 + 10 * REFILL)
    assert REFILL == 0.03


def test_nothing_is_spent_and_nothing_refilled_while_it_rests():
    budget = Budget(5.0, 0.0)
    budget.spend(0.0)
    budget.rest(2.0)
    budget.spend(1000.0)
    assert budget.empty_at == 1003.0


def test_many_short_times_are_counted_as_exactly_as_one_long_one():
    budget = Budget(5.0, 0.0)
    for turn in range(4999):
        budget.spend(turn * 0.002)
        budget.refill(turn * 0.002 + 0.001)
    budget.spend(10.0)
    assert budget.empty_at == pytest.approx(10.0 + 5 - 4.999 + 4.999 * REFILL, abs=1e-3)


def test_a_drop_that_came_late_shortens_the_next_time():
    budget = Budget(5.0, 0.0)
    budget.spend(0.0)
    budget.rest(6.0)
    budget.refill(6.0)
    assert budget.is_empty(6.0 + 0.99 / REFILL)
    assert not budget.is_empty(6.0 + 1.01 / REFILL)


def test_one_that_is_used_up_is_empty_at_once_and_owes_nothing_more():
    budget = Budget(5.0, 0.0)
    budget.use_up(0.0)
    assert budget.is_empty(0.0)
    assert not budget.is_empty(1.0)
