"""Row 16 of FAULTS.md, briefly. The long form is `python -m tests.faults --row 16`."""

from __future__ import annotations

import pytest

from tests.faults.campaign import directory
from tests.faults.killers import Case, OwnWorkers, ServedWorkers, kill_by_events

SHORT = (
    Case("SIGKILL", 0.0, is_unique=False, is_alone=True),
    Case("exit 3", 0.0, is_unique=True, is_alone=True),
    Case("SIGSEGV", 0.5, is_unique=False, is_alone=False),
    Case("SIGKILL", 0.0, is_unique=True, is_alone=False),
)


@pytest.mark.parametrize("pool", [ServedWorkers, OwnWorkers])
def test_an_event_that_kills_its_process_becomes_a_dead_letter_and_the_pool_serves_on(pool) -> None:
    with directory() as path:
        report = kill_by_events(pool(path, 2), 2, SHORT, print)
    assert not report.faults, str(report)
    assert list(report.deaths) == list(SHORT)
