"""`eventsh bench`: the real command with processes of its own, and what it leaves behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.cli.pool import COMMAND, DEADLINE_S, Done, environment, wait_until

NOBODY = "unix:/nonexistent/e.sock"


def run(directory: Path, *arguments: str) -> Done:
    done = subprocess.run(
        [*COMMAND, "bench", *arguments],
        capture_output=True,
        env={**environment(NOBODY), "TMPDIR": str(directory)},
        timeout=DEADLINE_S,
        check=False,
        text=True,
    )
    return Done(done.returncode, done.stdout, done.stderr)


def measured(directory: Path, *arguments: str) -> dict[str, Any]:
    done = run(directory, *arguments, "--json")
    assert (done.status, done.err) == (0, "")
    assert os.listdir(directory) == []
    result: dict[str, Any] = json.loads(done.out)
    return result


def test_it_measures_eventsh_and_the_ceiling_and_loses_nothing(tmp_path):
    result = measured(tmp_path, "--events", "20000", "--workers", "3", "--posters", "2")
    throughput = result["throughput"]
    assert result["sound"] is True
    assert (throughput["events"], throughput["lost"], throughput["out_of_order"]) == (20000, 0, 0)
    assert throughput["posts_per_s"] > 0
    assert throughput["deliveries_per_s"] == pytest.approx(3 * throughput["posts_per_s"])
    assert result["share"] == pytest.approx(throughput["posts_per_s"] / result["ceiling"]["posts_per_s"])
    assert throughput["cpu_s"]["posters"] > 0
    assert throughput["peak_bytes"]["workers"] > 1_000_000
    assert result["latency"] is None


@pytest.mark.parametrize("api", ["async", "thread"])
def test_at_a_rate_it_measures_latencies_alone(tmp_path, api):
    result = measured(tmp_path, "--rate", "400", "--events", "200", "--workers", "2", "--api", api, "--sources", "3")
    latency = result["latency"]
    assert (result["throughput"], result["ceiling"], result["sound"]) == (None, None, True)
    assert latency["to_handler"]["count"] == 400
    assert latency["to_last"]["count"] == 200
    assert 0 < latency["to_handler"]["p50"] <= latency["to_last"]["p50"] <= latency["to_last"]["max"]
    # 200 events at 400 a second can't be over earlier.
    assert latency["seconds"] > 0.45


def test_people_get_tables_and_a_histogram(tmp_path):
    done = run(tmp_path, "--events", "500", "--workers", "2", "--latency")
    assert (done.status, done.err) == (0, "")
    for text in ("of the ceiling", "CPU s", "0 lost, 0 out of order", "p99.9", "until the last worker has it", "####"):
        assert text in done.out
    assert max(len(line) for line in done.out.splitlines() if not line.startswith("over ")) <= 80


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--workers", "2", "--posters", "3"], "posters must be from 1 to 2, not 3"),
        (["--events", "-1"], "--events must be a whole number, not '-1'"),
        (["--rate", "nan"], "--rate must be a number of events a second"),
        (["--address", "carrier"], "no transport has the scheme 'carrier'"),
    ],
)
def test_what_can_not_be_measured_is_refused_in_a_line(tmp_path, arguments, complaint):
    done = run(tmp_path, *arguments)
    assert (done.status, done.out) == (2, "")
    assert complaint in done.err
    assert done.err.count("\n") == 1
    assert os.listdir(tmp_path) == []


def test_it_does_not_displace_a_broker(tmp_path):
    (tmp_path / "run").mkdir(mode=0o700)
    address = f"unix:{tmp_path}/run/e.sock"
    broker = subprocess.Popen([*COMMAND, "serve", "--workers", "0", "--listen", address], stdout=subprocess.PIPE)
    try:
        assert broker.stdout is not None
        assert b"listening" in broker.stdout.readline()
        done = run(tmp_path, "--address", address, "--events", "10")
        assert done.status == 1
        assert "a broker is already running" in done.err
    finally:
        broker.send_signal(signal.SIGTERM)
        broker.communicate(timeout=DEADLINE_S)


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="looks for processes in /proc")
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, -signal.SIGINT), (signal.SIGKILL, -9)])
def test_its_processes_end_with_it(tmp_path, number, status):
    bench = subprocess.Popen(
        [*COMMAND, "bench", "--rate", "50", "--events", "100000", "--workers", "2"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**environment(NOBODY), "TMPDIR": str(tmp_path)},
    )
    try:
        wait_until(lambda: len(children(bench.pid)) == 3, "a broker and two workers")
        started = children(bench.pid)
    finally:
        bench.send_signal(number)
        try:
            _, err = bench.communicate(timeout=DEADLINE_S)
        finally:
            # Nothing if it has ended. One that has not would post for half an hour beside the other tests.
            bench.kill()
    assert bench.returncode == status
    assert b"Traceback" not in err
    wait_until(lambda: not any(Path(f"/proc/{child}").exists() for child in started), "their end")
    if number == signal.SIGINT:
        assert os.listdir(tmp_path) == []
