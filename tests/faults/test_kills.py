"""Rows 1 and 2 of FAULTS.md, briefly. The long form is `python -m tests.faults --row 1 --kills 1000`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.campaign import Plan, Report, directory, kill_brokers, kill_workers

SEED = 7


def assert_kept(report: Report, kills: int) -> None:
    """Every promise was kept, and there was something to keep."""
    assert not report.faults, str(report)
    assert len(report.kills) >= kills
    assert report.account.posted > 100 * kills
    assert report.account.handled + report.account.told == report.account.posted * report.account.places, str(report)


@pytest.fixture
def path():
    with directory() as path:
        yield path


@pytest.mark.parametrize("transport", ["unix", "shm", pytest.param("tcp", marks=pytest.mark.long)])
def test_killed_workers_lose_nothing_and_come_back(path: Path, transport) -> None:
    report = kill_workers(Plan(kills=4, seed=SEED, workers=3, transport=transport), path, print)
    assert_kept(report, 4)
    assert len(report.recovered_s) == len(report.kills)


@pytest.mark.parametrize(
    ("broker", "transport"),
    [
        ("serve", "unix"),
        ("auto", "tcp"),
        pytest.param("serve", "tcp", marks=pytest.mark.long),
        pytest.param("serve", "shm", marks=pytest.mark.long),
        pytest.param("auto", "unix", marks=pytest.mark.long),
    ],
)
def test_a_killed_broker_loses_nothing_and_repeats_nothing(path: Path, broker, transport) -> None:
    report = kill_brokers(Plan(kills=3, seed=SEED, workers=3, broker=broker, transport=transport), path, print)
    assert_kept(report, 3)
    assert report.account.again == 0
    # No worker dies, so none of its unique events may run in another.
    assert report.account.keys_again == 0
    assert report.recovered_s
