"""What recordings cost and how fast and exact they are replayed.

    python tests/benchmarks/recording.py cost [--events 500000] [--rounds 5]     throughput with and without recording
    python tests/benchmarks/recording.py replay [--events 1000000] [--rounds 3]  events a second into four workers
    python tests/benchmarks/recording.py pace [--seconds 10]                     lateness at 1,000 events a second
    python tests/benchmarks/recording.py seek [--gigabytes 2]                    into the middle of a large file, memory

Rounds are interleaved, and medians are printed. Files are made in a temporary directory and removed.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import orjson

from eventsh.commands.bench import LoadResult, measure
from eventsh.commands.load import Load
from eventsh.commands.patterns import Pattern
from eventsh.commands.replay import Controls, ReplayArguments, replay
from eventsh.protocol.frame import Kind, encode_frame
from eventsh.recording.frames import Frame, events_of
from eventsh.recording.positions import Span
from eventsh.recording.writer import Writer
from eventsh.runtime.blocking import BlockingClient
from eventsh.runtime.endpoint import find_endpoint

EPOCH = 1_700_000_000_000_000_000
WORKERS = 4
HANDLERS = """
import eventsh

@eventsh.on("bench", "tick")
def handle(data, event, source, pid):
    pass
"""


class RecordedLoad(Load):
    """The same load, and the broker records it."""

    path = ""

    def options(self) -> dict[str, Any]:
        return {**super().options(), "record": self.path}


def cost(events: int, rounds: int) -> None:
    """Posts a second with and without recording, and the CPU time of the broker."""
    found: dict[str, list[LoadResult]] = {"off": [], "on": []}
    shares = []
    for number in range(rounds):
        # The order changes, so that what gets slower or faster over time is no advantage of one.
        for kind in ("off", "on") if number % 2 else ("on", "off"):
            with tempfile.TemporaryDirectory() as directory:
                RecordedLoad.path = f"{directory}/bench.evlog"
                load = RecordedLoad(events) if kind == "on" else Load(events)
                found[kind].append(asyncio.run(measure(load, WORKERS, "unix", "async", lambda *_: None)))
        shares.append(1 - found["on"][-1].posts_per_s / found["off"][-1].posts_per_s)
        print(f"round {number + 1}: recording costs {shares[-1]:.1%}", file=sys.stderr)
    for kind, results in found.items():
        rate = statistics.median(result.posts_per_s for result in results)
        broker = statistics.median(result.cpu_s["broker"] or 0.0 for result in results)
        total = statistics.median(sum(part or 0.0 for part in result.cpu_s.values()) for result in results)
        print(f"recording {kind:3} {rate:>12,.0f} posts/s  broker {broker:.3f} s CPU, all {total:.3f} s CPU")
    rates = {kind: statistics.median(result.posts_per_s for result in results) for kind, results in found.items()}
    print(f"recording costs {1 - rates['on'] / rates['off']:.1%} (medians), {statistics.median(shares):.1%} (of pairs)")


def make_recording(path: str, frames: int, batch: int, gap_ns: int, pad: int = 0) -> int:
    """A recording of so many frames with `batch` events each; gives the number of events."""
    shape = {"id": 0, "name": "cache-key-000123" + "x" * pad, "tags": ["a", "bc"], "v": 1.5}
    body = orjson.dumps([["bench", "tick", [{**shape, "id": number} for number in range(batch)]]])
    writer = Writer(path, fsync="never", fresh=True)
    writer.start({"epoch": EPOCH})
    for number in range(frames):
        first = number * batch + 1
        frame = encode_frame(
            Kind.EVENTS,
            body,
            count=batch,
            pid=1,
            origin=7,
            origin_seq=first,
            seq=first,
            time_ns=EPOCH + number * gap_ns,
        )
        writer.write([(frame, -1)])
    writer.finish()
    writer.close()
    return frames * batch


@contextmanager
def pool(directory: str) -> Iterator[str]:
    """`eventsh serve` with four workers; gives its address."""
    handlers = f"{directory}/handlers.py"
    with open(handlers, "w") as file:
        file.write(HANDLERS)
    address = f"unix:{directory}/bench.sock"
    command = [sys.executable, "-m", "eventsh", "serve", "--workers", str(WORKERS), "--handlers", handlers]
    with open(f"{directory}/log", "w") as log:
        process = subprocess.Popen([*command, "--listen", address], stdout=log, stderr=log)
    try:
        while "Ctrl-C stops it" not in open(f"{directory}/log").read():  # noqa: SIM115 - a benchmark
            if process.poll() is not None:
                raise SystemExit(open(f"{directory}/log").read())  # noqa: SIM115
            time.sleep(0.05)
        yield address
    finally:
        process.terminate()
        process.wait(20)


def handled(client: BlockingClient) -> int:
    least: int = min(worker["handled"] for worker in client.ask("status")["workers"])
    return least


def play(events: int, rounds: int) -> None:
    """Events a second until all four workers have handled all."""
    with tempfile.TemporaryDirectory() as directory:
        path = f"{directory}/a.evlog"
        total = make_recording(path, events // 250, 250, 1_000_000)
        rates = []
        with pool(directory) as address, BlockingClient(*find_endpoint(address), timeout_s=60) as client:
            for number in range(rounds):
                before = handled(client)
                began = time.monotonic()
                arguments = ReplayArguments(path, Pattern(), speed=None)
                replay(arguments, address, Controls(), total=None, timeout_s=60)
                while handled(client) < before + total:
                    time.sleep(0.002)
                rates.append(total / (time.monotonic() - began))
                print(f"round {number + 1}: {rates[-1]:,.0f} events/s", file=sys.stderr)
        print(f"replay at max into {WORKERS} workers: {statistics.median(rates):,.0f} events/s (median of {rounds})")


def pace(seconds: int) -> None:
    """Lateness at 1,000 events a second, and the drift at the end."""
    with tempfile.TemporaryDirectory() as directory:
        path = f"{directory}/a.evlog"
        make_recording(path, seconds * 1000, 1, 1_000_000)
        with pool(directory) as address:
            played = replay(ReplayArguments(path, Pattern()), address, Controls(), total=None, timeout_s=60)
        late = [played.late_p50_s or 0.0, played.late_p99_s or 0.0, played.late_max_s or 0.0]
        drift_ms = (played.seconds - (seconds * 1000 - 1) / 1000) * 1000
        print("late by {:.3f} ms (p50), {:.3f} ms (p99), {:.3f} ms (most)".format(*(each * 1000 for each in late)))
        print(f"after {seconds} s {drift_ms:.2f} ms behind, the last confirmation included")


def seek(gigabytes: float) -> None:
    """The time to the first event in the middle, and the memory that reading all takes."""
    with tempfile.TemporaryDirectory() as directory:
        path = f"{directory}/a.evlog"
        frames = int(gigabytes * 1e9 / 17000)
        total = make_recording(path, frames, 16, 1_000_000, pad=960)
        print(f"{os.path.getsize(path) / 1e9:.2f} GB, {total:,} events")
        times = []
        for part in (0.5, 0.25, 0.75, 0.9, 0.1):
            for place in (f"number:{int(total * part)}", f"{int(frames * part) / 1000}s"):
                began = time.monotonic()
                item = next(item for item in Span(path, place) if isinstance(item, Frame))
                event = next(events_of(item))
                times.append(time.monotonic() - began)
                assert event.seq >= total * part - 16, (event.seq, total * part)
        print(
            f"a place in the middle: {statistics.median(times) * 1000:.2f} ms (median), {max(times) * 1000:.2f} ms (most)"
        )
        for part in (0.01, 1.0):
            command = [sys.executable, "-m", "eventsh", "replay", path, "--dry-run", "--count", str(int(total * part))]
            process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = status
            print(f"reading {part:.0%} of it: {usage.ru_maxrss / 1024:.0f} MB of memory, {usage.ru_utime:.1f} s CPU")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("cost", "replay", "pace", "seek"))
    parser.add_argument("--events", type=int, default=500_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=10)
    parser.add_argument("--gigabytes", type=float, default=2.0)
    arguments = parser.parse_args()
    match arguments.what:
        case "cost":
            cost(arguments.events, arguments.rounds)
        case "replay":
            play(arguments.events, arguments.rounds)
        case "pace":
            pace(arguments.seconds)
        case _:
            seek(arguments.gigabytes)


if __name__ == "__main__":
    main()
