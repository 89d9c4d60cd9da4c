"""Row 13 of FAULTS.md, briefly. The long form is `python -m tests.faults --row 13 --kills 1000`."""

from __future__ import annotations

from tests.faults.cycles import run_cycles

# In eight draws of this one each way to end has its turn, before the pool is ready and after.
SEED = 2


def test_a_pool_that_is_ended_at_any_moment_leaves_no_process_and_no_socket() -> None:
    report = run_cycles(8, SEED, print)
    assert not report.faults, str(report)
    # Each way to end it has had its turn.
    assert len(report.ends) == 3
