"""Row 12 of FAULTS.md, briefly. The long form is `python -m tests.faults --row 12 --kills 50000000`."""

from __future__ import annotations

from tests.faults.campaign import directory
from tests.faults.soak import SLACK_BYTES, Growth, _Sample, run_soak

SEED = 7
# A second or two of an idle machine, so that there is more than a handful of samples.
EVENTS = 1_000_000


def test_what_processes_hold_does_not_grow_with_the_events_that_pass() -> None:
    with directory() as path:
        report = run_soak(EVENTS, SEED, path, print)
    assert not report.faults, str(report)
    assert report.posted + report.keys == EVENTS
    assert report.clients > 10


def test_growth_is_found() -> None:
    leaking, flat = Growth("leaking"), Growth("flat")
    for number in range(100):
        leaking.samples.append(_Sample(number, number * SLACK_BYTES // 50, 5 + number // 60, 3))
        flat.samples.append(_Sample(number, 50_000_000 + number % 7 * 4096, 5 + number % 2, 3))
    assert leaking.faults == ["leaking grew by 5.8 MB", "leaking has 6 descriptors where it had 5"]
    assert not flat.faults
