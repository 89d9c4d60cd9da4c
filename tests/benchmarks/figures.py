"""Every figure of speed, latency, CPU and memory that eventsh promises itself, in one table.

    python -m tests.benchmarks.figures [--rounds 5] [--scale 1.0] [--write]

Run it from the root of a checkout, on a machine that does nothing else. --write puts the table, and what it was measured
on, into tests/benchmarks/RESULTS.md. Peers that are not installed are left out (see peers.py).
"""

from __future__ import annotations

import argparse
import asyncio
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import orjson

import eventsh
from eventsh.commands.bench import measure
from eventsh.commands.load import Load
from eventsh.options import Options, broker_arguments
from eventsh.runtime.loop import new_event_loop
from tests.benchmarks.peers import Results, compare, installed, running, wait_for
from tests.benchmarks.throughput import ROWS, Round, note, say_nothing

RESULTS = Path(__file__).with_name("RESULTS.md")
BEGIN, END = "<!-- figures -->", "<!-- /figures -->"
MIB = 1024 * 1024
DATA = {"id": 500_000, "name": "cache-key-000123", "tags": ["a", "bc"], "v": 1.5}
BLOCK = 100
STALLED_EVENT_BYTES = 1024
STALL_S = 3.0


@dataclass
class Figure:
    name: str
    value: float | None
    limit: float
    is_least: bool = True
    unit: str = ""

    def row(self) -> str:
        bound = f"{'at least' if self.is_least else 'at most'} {self.limit:g}{self.unit}"
        if self.value is None:
            return f"| {self.name} | {bound} | not measured | |"
        met = self.value >= self.limit if self.is_least else self.value <= self.limit
        return f"| {self.name} | {bound} | {self.value:.2f}{self.unit} | {'yes' if met else '**no**'} |"


def throughput(rounds: list[Round]) -> list[Figure]:
    names = {
        "async": ("share of the ceiling, AsyncEvents on uvloop", 0.75),
        "thread": ("share of the ceiling, Events", 0.55),
        "mixed": ("share of the ceiling, 20 sources in random order", 0.45),
    }
    figures = [
        Figure(name, statistics.median(played.share(row) for played in rounds), limit)
        for row, (name, limit) in names.items()
    ]
    parts = [played.results["async"].cpu_s for played in rounds]
    shares = [(part["broker"] or 0.0) / sum(used or 0.0 for used in part.values()) for part in parts]
    return [*figures, Figure("broker's part of all CPU, 4 workers", statistics.median(shares), 0.10, is_least=False)]


def peers(results: Results) -> list[Figure]:
    limits = {"zmq": 3.0, "nats": 7.0, "redis": 12.0, "queue": 22.0}
    return [
        *(
            Figure(f"posts/s, ratio to {name}", results.ratio(results.throughput, name), limits[name])
            for name in limits
        ),
        Figure("posts/s one a turn, ratio to zmq", results.ratio(results.single, "zmq"), 1.0),
        Figure("latency p50, ratio to redis", results.ratio(results.p50, "redis"), 0.6, is_least=False),
        Figure("latency p99, ratio to redis", results.ratio(results.p99, "redis"), 0.8, is_least=False),
    ]


def cpu_of_many(rounds: int, scale: float) -> Figure:
    """CPU for a delivery with 32 workers, as a multiple of that with 4."""
    ratios = []
    for _ in range(rounds):
        used = {}
        for workers in (4, 32):
            events = int(400_000 * scale) // workers
            result = asyncio.run(measure(Load(events), workers, "unix", "async", say_nothing))
            used[workers] = sum(part or 0.0 for part in result.cpu_s.values()) / (events * workers)
        ratios.append(used[32] / used[4])
    return Figure("CPU a delivery, 32 workers to 4", statistics.median(ratios), 1.15, is_least=False)


# --- memory ---

BARE = "import asyncio, orjson; print('ready', flush=True); input()"
WORKER = """
import asyncio, sys, eventsh
from eventsh.runtime.loop import new_event_loop

async def work():
    async with eventsh.AsyncEvents(sys.argv[1], broker="never") as events:
        seen = asyncio.Event()
        events.register(lambda data, event, source, pid: seen.set(), "bench", "tick")
        await events.wait_ready(30)
        print("attached", flush=True)
        for number in range(20_000 if sys.argv[2] == "post" else 0):
            try:
                events.post("bench", "other", number)
            except eventsh.QueueOverflow:
                await events.drain()
        if sys.argv[2] == "post":
            await events.flush()
            events.post("bench", "tick")
        await seen.wait()
        print("ready", flush=True)
        await asyncio.to_thread(input)

asyncio.Runner(loop_factory=new_event_loop).run(work())
"""


def status_bytes(pid: int, field: str) -> int:
    with open(f"/proc/{pid}/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith(f"{field}:"))


def start(code: str, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def expect(process: subprocess.Popen[str], word: str) -> None:
    assert process.stdout is not None
    if process.stdout.readline() != f"{word}\n":
        sys.exit(f"a process did not get {word}")


def memory_of_worker() -> Figure:
    """Of one that handled 20,000 events, beyond an interpreter that has imported asyncio and orjson."""
    with (
        tempfile.TemporaryDirectory() as directory,
        running(*broker_command(f"{directory}/e.sock", Options(linger=None))),
    ):
        wait_for(f"{directory}/e.sock")
        processes = [start(BARE)]
        for part in ("work", "post"):
            # One after the other, or the one that posts may have done so before the other one is there.
            processes.append(start(WORKER, f"unix:{directory}/e.sock", part))
            expect(processes[-1], "attached")
        for process in processes:
            expect(process, "ready")
        bare, used = (status_bytes(process.pid, "VmRSS") for process in processes[:2])
        for process in processes:
            process.communicate("\n")
    return Figure(
        "memory of a worker beyond a bare interpreter", (used - bare) / MIB, 12.0, is_least=False, unit=" MiB"
    )


def broker_command(path: str, options: Options) -> list[str]:
    flags = ["--address", f"unix:{path}", *broker_arguments(options)]
    return [sys.executable, "-m", "eventsh.runtime.broker", *flags]


STALLED = """
import sys, eventsh
with eventsh.Events(sys.argv[1], broker="never") as events:
    events.register(print, "never")
    events.wait_ready(30)
    print("ready", flush=True)
    input()
"""


def memory_of_broker() -> Figure:
    """Of a broker while one of its workers is stopped and another one posts all that it may."""
    options = Options(linger=None)
    with tempfile.TemporaryDirectory() as directory:
        path = f"{directory}/e.sock"
        broker = subprocess.Popen(broker_command(path, options), stderr=subprocess.DEVNULL)
        stalled = None
        try:
            wait_for(path)
            stalled = start(STALLED, f"unix:{path}")
            expect(stalled, "ready")
            before = status_bytes(broker.pid, "VmRSS")
            stalled.send_signal(signal.SIGSTOP)
            with eventsh.Events(f"unix:{path}", broker="never") as events:
                events.wait_ready(30)
                post_all_it_may(events)
                peak = status_bytes(broker.pid, "VmHWM")
                stalled.send_signal(signal.SIGCONT)
        finally:
            if stalled is not None:
                stalled.send_signal(signal.SIGCONT)
                stalled.communicate("\n")
            broker.terminate()
            broker.wait()
    beyond = (peak - before - options.max_queue_len * STALLED_EVENT_BYTES) / MIB
    return Figure("broker, a worker stalled: memory beyond its queue", beyond, 20.0, is_least=False, unit=" MiB")


def post_all_it_may(events: eventsh.Events) -> None:
    name = "x" * (STALLED_EVENT_BYTES - len(orjson.dumps(["bench", "tick", ""])))
    ends = time.monotonic() + STALL_S
    while time.monotonic() < ends:
        try:
            events.post("bench", "tick", name)
        except eventsh.QueueOverflow:
            time.sleep(0.01)


# --- what a post costs the caller ---


class Costs:
    """Blocks of posts and of bare dumps, in turn."""

    def __init__(self) -> None:
        self.bare: list[float] = []
        self.posts: list[float] = []

    def take(self, post: Callable[[str, str, Any], object]) -> None:
        dumps, clock = orjson.dumps, time.perf_counter
        began = clock()
        for _ in range(BLOCK):
            dumps(("bench", "tick", DATA))
        between = clock()
        for _ in range(BLOCK):
            post("bench", "tick", DATA)
        self.bare.append(between - began)
        self.posts.append(clock() - between)

    @property
    def ratio(self) -> float:
        return statistics.median(self.posts) / statistics.median(self.bare)


async def cost_of_async(address: str, blocks: int) -> float:
    costs = Costs()
    async with eventsh.AsyncEvents(address, broker="never") as events:
        await events.wait_ready(30)
        for number in range(blocks):
            costs.take(events.post)
            if number % 20 == 19:
                await events.flush()
    return costs.ratio


def cost_of_thread(address: str, blocks: int) -> float:
    costs = Costs()
    with eventsh.Events(address, broker="never") as events:
        events.wait_ready(30)
        for number in range(blocks):
            costs.take(events.post)
            if number % 20 == 19:
                events.flush()
    return costs.ratio


def costs_of_posts(scale: float) -> list[Figure]:
    blocks = int(4000 * scale)
    with tempfile.TemporaryDirectory() as directory:
        path = f"{directory}/e.sock"
        with running(*broker_command(path, Options(linger=None))):
            wait_for(path)
            with asyncio.Runner(loop_factory=new_event_loop) as runner:
                ratio = runner.run(cost_of_async(f"unix:{path}", blocks))
            threaded = cost_of_thread(f"unix:{path}", blocks)
    return [
        Figure("post() in the caller to a bare dumps, AsyncEvents", ratio, 3.0, is_least=False),
        Figure("the same, Events", threaded, 5.0, is_least=False),
    ]


# --- all of it ---


def machine() -> list[str]:
    model = platform.processor() or platform.machine()
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo") as info:
            model = next((line.partition(":")[2].strip() for line in info if line.startswith("model name")), model)
    packages = ", ".join(f"{name} {version(name)}" for name in ("orjson", "uvloop"))
    return [
        f"{model}, {os.cpu_count()} cores, {platform.system()} {platform.release()}",
        f"{platform.python_implementation()} {platform.python_version()}, {packages}",
    ]


def peer_rows(results: Results) -> list[str]:
    rows = ["| | eventsh | " + " | ".join(name for name in installed()[1:]) + " |"]
    rows.append("| --- |" + " --- |" * len(installed()))
    for title, values in (
        ("posts/s", results.throughput),
        ("posts/s, one a turn of the loop", results.single),
        ("latency p50, us", results.p50),
        ("latency p99, us", results.p99),
    ):
        cells = [f"{statistics.median(values[name]):,.0f}" if name in values else "" for name in installed()]
        rows.append(f"| {title} | " + " | ".join(cells) + " |")
    return rows


def measure_all(rounds: int, scale: float) -> str:
    load_before = os.getloadavg()[0]
    played = []
    for number in range(rounds):
        played.append(Round(Load(int(1_000_000 * scale)), 4, list(ROWS), "unix"))
        shares = "  ".join(f"{row} {played[-1].share(row):.2f}" for row in ROWS)
        note(f"throughput: round {number + 1}: of the ceiling, {shares}")
    results = compare(installed(), rounds, scale, ["throughput", "single", "latency"])
    note("CPU, memory, posts")
    figures = [*throughput(played), *peers(results), cpu_of_many(min(rounds, 3), scale)]
    figures += [memory_of_worker(), memory_of_broker(), *costs_of_posts(scale)]
    ceiling = statistics.median(one.ceilings[1].posts_per_s for one in played)
    return "\n".join(
        [
            *machine(),
            "",
            f"Medians of {rounds} rounds; load average {load_before:.1f} before and {os.getloadavg()[0]:.1f} after.",
            f"The ceiling is {ceiling:,.0f} posts/s.",
            "",
            "| figure | aim | measured | reached |",
            "| --- | --- | --- | --- |",
            *(figure.row() for figure in figures),
            "",
            *peer_rows(results),
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--scale", type=float, default=1.0, help="of the number of events")
    parser.add_argument("--write", action="store_true", help=f"into {RESULTS.name}")
    options = parser.parse_args()
    text = measure_all(options.rounds, options.scale)
    print(text)
    if options.write:
        before, _, rest = RESULTS.read_text().partition(BEGIN)
        RESULTS.write_text(f"{before}{BEGIN}\n{text}\n{END}{rest.partition(END)[2]}")


if __name__ == "__main__":
    main()
