"""Row 21 of FAULTS.md, briefly. The long form is `python -m tests.faults --row 21 --kills 200`. And which worker gets one."""

from __future__ import annotations

import time
from contextlib import ExitStack
from pathlib import Path

from eventsh import Events
from tests.faults.campaign import Plan, directory, serve_pool
from tests.faults.ledger import Kind, read_lives
from tests.faults.processes import DEADLINE_S, wait_until
from tests.faults.uniques import HANDLERS, kill_broker_and_workers


def test_broker_and_workers_killed_at_the_same_instant_lose_no_unique_event() -> None:
    with directory() as path:
        report = kill_broker_and_workers(Plan(kills=4, seed=21, workers=3, rate=100.0), path, print)
    assert not report.faults, str(report)
    assert report.posted > 100
    # Else nothing was at stake.
    assert report.confirmed_unhandled > 0


def test_a_worker_that_has_run_a_handler_for_a_second_gets_none_of_sixteen_events_at_once() -> None:
    with directory() as path, ExitStack() as stack:
        pool = serve_pool(Plan(kills=0, seed=0, workers=4), path, stack, HANDLERS)
        events = Events(pool.address, role="observer", broker="never")
        stack.callback(events.close)
        events.configure()
        events.wait_ready(DEADLINE_S)
        events.post("load", "unique", [1, 0, 4.0], "long")
        wait_until(lambda: runs(path, Kind.UNIQUE), "the long handler runs")
        ((busy, begun_ns),) = runs(path, Kind.UNIQUE).values()
        wait_until(lambda: time.monotonic_ns() - begun_ns > 1e9, "it has run for a second")
        for number in range(1, 17):
            # Short ones: the others must not be in a handler for long themselves when the last is assigned.
            events.post("load", "unique", [1, number, 0.0], f"key {number}")
        wait_until(lambda: len(runs(path, Kind.UNIQUE)) == 17, "all have begun")
        pids = [pid for number, (pid, _) in runs(path, Kind.UNIQUE).items() if number]
        assert not runs(path, Kind.UNIQUE_ENDED).get(0), "the handler has returned: the machine is too slow"
        assert busy not in pids


def runs(path: Path, kind: Kind) -> dict[int, tuple[int, int]]:
    """The pid and time in ns of each event's record of this kind."""
    return {
        record.number: (life.pid, record.time_ns)
        for life in read_lives(path)
        for record in life.records()
        if record.kind == kind
    }
