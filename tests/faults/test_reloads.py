"""Row 11 of FAULTS.md, briefly. The long form is `python -m tests.faults --row 11 --kills 100`."""

from __future__ import annotations

from tests.faults.campaign import Plan, directory
from tests.faults.reloads import reload_workers

# Draws a bad handlers file, and workers that come and go, also in the midst of a reload.
SEED = 2


def test_reloads_and_changes_of_the_number_of_workers_lose_nothing_and_repeat_nothing() -> None:
    with directory() as path:
        found = reload_workers(
            Plan(kills=3, seed=SEED, workers=2, rate=200.0, pause_s=0.2, timeout_s=30.0), path, print
        )
    account = found.report.account
    assert not found.report.faults, str(found)
    assert not found.faults, str(found)
    assert account.told == 0, str(found)
    assert account.handled == account.posted * account.places
    assert account.stays >= 1
    assert account.handled_in_stays > 0
