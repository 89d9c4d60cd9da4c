"""Rows 3 and 4 of FAULTS.md, briefly. The long form is `python -m tests.faults --row 3 --kills 50`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.campaign import Plan, directory
from tests.faults.stops import stop_brokers, stop_workers

SEED = 7
MEMORY_BYTES = 32 * 1024 * 1024


@pytest.fixture
def path():
    with directory() as path:
        yield path


def test_a_worker_that_stands_still_is_told_exactly_what_it_missed_and_the_others_go_on(path: Path) -> None:
    plan = Plan(kills=1, seed=SEED, workers=3, rate=400.0, timeout_s=2.0, max_queue_len=500)
    found = stop_workers(plan, path, print)
    account = found.report.account
    assert not found.report.faults, str(found)
    assert account.told > 0, str(found)
    assert account.told_too_much == 0, str(found)
    assert account.handled + account.told == account.posted * account.places
    assert found.broker_grew_bytes < MEMORY_BYTES
    # Rate and latency are measured by the long form: here others use the machine too, and may have most of it in one of
    # the two spans. Who waited for the one that stands still would have handled nothing.
    assert found.during[0].rate > found.before[0].rate / 20


def test_while_the_broker_stands_still_posters_are_refused_and_nothing_is_lost_or_told_as_a_gap(path: Path) -> None:
    # It stands still for longer than `timeout`, with every queue full: that is not the workers' fault.
    plan = Plan(kills=1, seed=SEED, workers=3, rate=1000.0, timeout_s=2.0, max_queue_len=500, pause_s=0.1)
    found = stop_brokers(plan, path, print)
    account = found.report.account
    assert not found.report.faults, str(found)
    assert found.report.overflows > 0
    assert account.told == 0, str(found)
    assert account.handled == account.posted * account.places
    assert found.poster_grew_bytes < MEMORY_BYTES
