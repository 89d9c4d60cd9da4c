"""Nothing that is promised depends on the wall clock, nor on the host staying up."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.compatibility.versions import Worker
from tests.faults.campaign import directory
from tests.faults.clocks import LIBRARY, SHIFTS_S, YEAR_S, Host, missed_by, set_clocks
from tests.faults.processes import DEADLINE_S, endpoint, environment, wait_until

# Long enough for a worker to come back to the next broker.
TIMEOUT_S = 2.0

needs_library = pytest.mark.skipif(LIBRARY is None, reason="libfaketime is not installed")


@pytest.fixture
def path() -> Iterator[Path]:
    with directory() as found:
        yield found


def wait_for(*arguments: Any) -> None:
    """Usage: wait_for(WORKER..., EVENT, DATA): until each worker has handled it."""
    *workers, event, data = arguments
    wait_until(lambda: all(data in worker.data_of(event) for worker in workers), f"{event!r} is handled")


def of_earlier_brokers(worker: Worker) -> list[tuple[int, bool]]:
    # The numbers of their events are not known. On a busy machine the present one may have given a worker up for a while.
    return [(gap["missed"], gap["exact"]) for gap in worker.gaps if not gap["first_seq"]]


shifts = pytest.mark.parametrize(
    "shift_s", [pytest.param(shift, marks=[pytest.mark.long] if shift in (60, YEAR_S) else []) for shift in SHIFTS_S]
)


@needs_library
@pytest.mark.parametrize("seed", [1])
def test_nothing_is_lost_silently_when_the_clock_is_set_under_a_broker_and_between_two(path: Path, seed) -> None:
    report = set_clocks(4, seed, path)
    assert not report.faults, str(report)
    assert report.told["away"] > 0, str(report)


@needs_library
@shifts
def test_a_worker_that_was_away_for_all_of_a_broker_is_told_what_it_missed(path: Path, shift_s) -> None:
    with Host(path, f"unix:{path}/e.sock", TIMEOUT_S) as host:
        host.start_broker()
        steady, away = host.start_worker("steady"), host.start_worker("away")
        with host.poster() as events:
            host.post(events)
            wait_until(lambda: len(away.data_of("e")) == host.posted, "it has handled all")
            os.kill(away.process.pid, signal.SIGSTOP)
            host.kill_broker()
            host.set_clock(shift_s)
            host.start_broker()
            host.wait_attached(1)
            host.post(events)
            host.kill_broker()
            host.start_broker()
            os.kill(away.process.pid, signal.SIGCONT)
            host.wait_attached(2)
            host.post(events, 1)
            wait_for(steady, away, "e", host.posted)
    assert of_earlier_brokers(away) == [(7, True)], away.gaps
    assert of_earlier_brokers(steady) == [], steady.gaps
    for worker in (steady, away):
        assert len(worker.data_of("e")) + missed_by(worker) >= host.posted


@needs_library
@shifts
def test_a_unique_key_stays_taken_when_the_clock_is_set_between_two_brokers(path: Path, shift_s) -> None:
    with Host(path, f"unix:{path}/e.sock", 30.0) as host:
        host.start_broker()
        worker = host.start_worker("worker")
        with host.poster() as events:
            events.post("app", "u", 1, unique="key")
            wait_until(lambda: worker.data_of("u"), "the event is handled")
            host.kill_broker()
            host.set_clock(shift_s)
            host.start_broker()
            events.post("app", "u", 2, unique="key")
            events.post("app", "e", 1)
            wait_for(worker, "e", 1)
            assert host.state is not None
            assert host.state["broker"]["ignored_repeats"] == 1
            assert worker.data_of("u") == [1]


@needs_library
def test_a_unique_key_is_free_in_time_when_the_clock_is_set_back_between_two_brokers(path: Path) -> None:
    with Host(path, f"unix:{path}/e.sock", 10.0) as host:
        host.start_broker()
        worker = host.start_worker("worker")
        with host.poster() as events:
            events.post("app", "u", 1, unique="key")
            wait_until(lambda: worker.data_of("u"), "the event is handled")
            time.sleep(6.0)
            host.kill_broker()
            host.set_clock(-3600)
            host.start_broker()
            host.wait_attached(1)
            began = time.monotonic()

            def is_free() -> bool:
                events.post("app", "u", 2, unique="key")
                events.flush(DEADLINE_S)
                return worker.data_of("u") != [1]

            # Had the second broker taken it anew, it would be taken for all of 10 s more.
            wait_until(is_free, "the key is free", began + 9.0 - time.monotonic())


@needs_library
def test_a_broker_whose_clock_is_set_keeps_keys_slots_and_its_recording(path: Path) -> None:
    recording = path / "events.evlog"
    with Host(path, f"unix:{path}/e.sock", 30.0, f"--record={recording}") as host:
        host.start_broker()
        workers = [host.start_worker("one"), host.start_worker("other")]
        with host.poster() as events:
            for shift_s in (0, YEAR_S, -YEAR_S, 0):
                host.set_clock(shift_s)
                events.post("app", "u", shift_s, unique="key")
                host.post(events)
            events.post("app", "last", None)
            events.flush(DEADLINE_S)
        wait_for(*workers, "last", None)
        for worker in workers:
            assert worker.data_of("e") == list(range(1, host.posted + 1))
            assert worker.gaps == []
        assert [data for worker in workers for data in worker.data_of("u")] == [0]
        assert host.state is not None
        assert host.state["broker"]["ignored_repeats"] == 3
        assert {worker["state"] for worker in host.state["workers"]} == {"attached"}
        assert host.broker is not None
        host.broker.terminate()
        host.broker.wait()

    def run(*command: str) -> str:
        full = [sys.executable, "-m", "eventsh", *command]
        done = subprocess.run(full, env=environment(path), capture_output=True, text=True, timeout=DEADLINE_S)
        assert done.returncode == 0, done.stderr
        return done.stdout

    items = [json.loads(line) for line in run("log", "cat", "--json", str(recording)).splitlines()]
    stamps = [item["time_ns"] // 1_000_000_000 for item in items if item.get("event") == "e"]
    assert (len(stamps), max(stamps) - min(stamps) > 1.9 * YEAR_S) == (host.posted, True)
    assert f"{host.posted:,}" in run("log", "stats", str(recording), "--source", "app", "--event", "e")
    # As recorded, whatever its stamps say: the pauses of two years are none.
    with Host(path, f"unix:{path}/f.sock", 30.0) as host:
        host.start_broker()
        worker = host.start_worker("replayed")
        run("replay", str(recording), "--address", host.address)
        wait_for(worker, "last", None)
        assert worker.data_of("e") == list(range(1, 29))


def test_clients_of_a_host_that_was_restarted_are_told_that_their_count_is_not_exact(path: Path) -> None:
    with Host(path, endpoint("tcp", path), TIMEOUT_S) as host:
        host.start_broker(boot="before", uptime_s=100_000)
        steady, away = host.start_worker("steady"), host.start_worker("away")
        with host.poster() as events:
            host.post(events)
            wait_until(lambda: len(away.data_of("e")) == host.posted, "it has handled all")
            os.kill(away.process.pid, signal.SIGSTOP)
            host.post(events)
            host.kill_broker()
            host.start_broker(boot="after", uptime_s=50)
            host.wait_attached(1)
            host.post(events)
            host.kill_broker()
            host.start_broker(boot="after", uptime_s=90)
            os.kill(away.process.pid, signal.SIGCONT)
            host.wait_attached(2)
            host.post(events, 1)
            wait_for(steady, away, "e", host.posted)
    assert of_earlier_brokers(steady) == [(0, False)], steady.gaps
    # Of the boot before, and of the first broker of the present boot.
    assert [exact for _, exact in of_earlier_brokers(away)] == [False, True], away.gaps
    for worker in (steady, away):
        assert len(worker.data_of("e")) + missed_by(worker) >= host.posted
