"""Row 21 of FAULTS.md, briefly. The long form is `python -m tests.faults --row 21 --kills 200`."""

from __future__ import annotations

from tests.faults.campaign import Plan, directory
from tests.faults.uniques import kill_broker_and_workers


def test_broker_and_workers_killed_at_the_same_instant_lose_no_unique_event() -> None:
    with directory() as path:
        report = kill_broker_and_workers(Plan(kills=4, seed=21, workers=3, rate=100.0), path, print)
    assert not report.faults, str(report)
    assert report.posted > 100
    # Else nothing was at stake.
    assert report.confirmed_unhandled > 0
