"""Row 26 of FAULTS.md, briefly. The long form is `python -m tests.faults --row 26 --kills 100`."""

from __future__ import annotations

import pytest

from tests.faults.campaign import Plan, directory
from tests.faults.removals import FILES, remove_files, split_brokers

kinds = pytest.mark.parametrize(
    ("broker", "transport"),
    [
        ("auto", "unix"),
        ("serve", "shm"),
        pytest.param("auto", "shm", marks=pytest.mark.long),
        pytest.param("serve", "unix", marks=pytest.mark.long),
    ],
)


@kinds
def test_removed_files_are_made_anew_by_the_same_broker_and_nothing_is_lost(broker, transport) -> None:
    plan = Plan(len(FILES), 5, workers=2, posters=1, rate=100.0, broker=broker, transport=transport)
    with directory() as path:
        report = remove_files(plan, path, print)
    assert not report.faults, str(report)
    assert report.account.handled == 2 * report.account.posted > 0
    assert report.account.told == 0


@kinds
def test_of_two_brokers_the_older_stays_and_the_workers_of_both_account_for_all(broker, transport) -> None:
    plan = Plan(1, 6, workers=2, posters=1, rate=200.0, broker=broker, transport=transport)
    with directory() as path:
        report = split_brokers(plan, path, print)
    assert not report.faults, str(report)
    # Each side missed what was confirmed on the other.
    assert report.account.told > 0
