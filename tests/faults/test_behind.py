"""A broker that is killed while a worker is left behind: what that one misses, it is told, to the event."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.behind import kill_beside_the_absent, kill_beside_the_stopped
from tests.faults.campaign import Plan, Report, directory

# Long enough for all to come back to the next broker before it gives one up.
TIMEOUT_S = 3.0


@pytest.fixture
def path():
    with directory() as path:
        yield path


def assert_exact(report: Report) -> None:
    account = report.account
    assert not report.faults, str(report)
    assert account.told >= 300, str(report)
    assert account.told_too_much == 0, str(report)
    assert account.handled + account.told == account.posted * account.places, str(report)


@pytest.mark.parametrize(
    ("transport", "max_queue_len"),
    [
        ("unix", 500),
        ("tcp", 10240),
        pytest.param("unix", 10240, marks=pytest.mark.long),
        pytest.param("shm", 10240, marks=pytest.mark.long),
    ],
)
def test_a_worker_that_stands_still_while_the_broker_is_killed_is_told_exactly_what_it_missed(
    path: Path, transport, max_queue_len
) -> None:
    plan = Plan(
        kills=1, seed=7, workers=3, timeout_s=TIMEOUT_S, slow=0.0, transport=transport, max_queue_len=max_queue_len
    )
    assert_exact(kill_beside_the_stopped(plan, path, print))


def test_a_worker_that_is_restarted_while_the_broker_is_killed_is_told_exactly_what_it_missed(path: Path) -> None:
    plan = Plan(kills=1, seed=7, workers=3, timeout_s=TIMEOUT_S, slow=0.0)
    assert_exact(kill_beside_the_absent(plan, path, print))
