"""How many events a second go from one poster to four workers, as a share of what Python can do at all.

    python tests/benchmarks/throughput.py [--events 1000000] [--rounds 3] [--workers 4] [--api async|thread|both]

The ceiling is measured in the same run: one process that only encodes events, and as many processes as there are
workers that only decode such batches and call a handler. Nothing travels between them. eventsh does the same work
through its public API, with a broker of its own; one of the workers is the poster. Each worker checks that every event
came once and in order. Rounds are interleaved, and medians are printed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any

import orjson

import eventsh
from eventsh.runtime.loop import new_event_loop

# 65 bytes encoded, as a cache or a presence event is.
SHAPE = {"id": 0, "name": "cache-key-000123", "tags": ["a", "bc"], "v": 1.5}
BATCH = 256


def check_shape() -> None:
    size = len(orjson.dumps(["bench", "tick", {**SHAPE, "id": 500_000}]))
    assert 60 <= size <= 85, size


class Count:
    """A handler that checks order and number, and says when the last event came."""

    def __init__(self, events: int) -> None:
        self.events = events
        self.next = 0
        self.wrong = 0
        self.done_at = 0.0

    def __call__(self, data: Any, event: str, source: str, pid: int | None) -> None:
        number = data["id"]
        if number != self.next:
            self.wrong += 1
        self.next = number + 1
        if self.next == self.events:
            self.done_at = time.monotonic()


def wait_for_start(path: str) -> None:
    """Every process of a round waits for one file, so that all begin at once."""
    while not os.path.exists(path):
        time.sleep(0.001)


def say(**facts: Any) -> None:
    print(json.dumps(facts), flush=True)


# --- the ceiling ---


def ceiling_encode(events: int, start: str) -> None:
    say(ready=True)
    wait_for_start(start)
    began = time.monotonic()
    for number in range(events):
        orjson.dumps(("bench", "tick", {"id": number, "name": "cache-key-000123", "tags": ["a", "bc"], "v": 1.5}))
    say(began=began, ended=time.monotonic())


def ceiling_decode(events: int, start: str) -> None:
    batches = [
        b"["
        + b",".join(orjson.dumps(("bench", "tick", {**SHAPE, "id": number})) for number in range(first, first + BATCH))
        + b"]"
        for first in range(0, min(events, 100 * BATCH), BATCH)
    ]
    counted = 0

    def handler(data: Any, event: str, source: str, pid: int | None) -> None:
        nonlocal counted
        counted += 1

    say(ready=True)
    wait_for_start(start)
    began = time.monotonic()
    while counted < events:
        for batch in batches:
            for source, event, data in orjson.loads(batch):
                handler(data, event, source, 1)
            if counted >= events:
                break
    say(began=began, ended=time.monotonic())


# --- eventsh ---


async def work_async(address: str, events: int, start: str, posts: bool) -> None:
    async with eventsh.AsyncEvents(address, broker="never") as bus:
        count = Count(events)
        bus.register(count, "bench", "tick")
        await bus.wait_ready(10)
        say(ready=True)
        while not os.path.exists(start):
            await asyncio.sleep(0.001)
        began = time.monotonic()
        if posts:
            post = bus.post
            for number in range(events):
                try:
                    post("bench", "tick", {"id": number, "name": "cache-key-000123", "tags": ["a", "bc"], "v": 1.5})
                except eventsh.QueueOverflow:
                    await bus.drain()
                    post("bench", "tick", {"id": number, "name": "cache-key-000123", "tags": ["a", "bc"], "v": 1.5})
            await bus.flush()
        while not count.done_at:
            await asyncio.sleep(0.005)
        say(began=began, ended=count.done_at, wrong=count.wrong, cpu=time.process_time())


def work_thread(address: str, events: int, start: str, posts: bool) -> None:
    with eventsh.Events(address, broker="never") as bus:
        count = Count(events)
        bus.register(count, "bench", "tick")
        bus.wait_ready(10)
        say(ready=True)
        wait_for_start(start)
        began = time.monotonic()
        if posts:
            post = bus.post
            for number in range(events):
                try:
                    post("bench", "tick", {"id": number, "name": "cache-key-000123", "tags": ["a", "bc"], "v": 1.5})
                except eventsh.QueueOverflow:
                    bus.drain()
                    post("bench", "tick", {"id": number, "name": "cache-key-000123", "tags": ["a", "bc"], "v": 1.5})
            bus.flush()
        while not count.done_at:
            time.sleep(0.005)
        say(began=began, ended=count.done_at, wrong=count.wrong, cpu=time.process_time())


# --- a round ---


def run_round(kind: str, events: int, workers: int) -> tuple[float, dict[str, float]]:
    """One round; posts a second, and CPU seconds by process where they are known."""
    with tempfile.TemporaryDirectory() as directory:
        start = f"{directory}/start"
        address = f"unix:{directory}/bench.sock"
        broker = None
        cpu: dict[str, float] = {}
        if kind == "ceiling":
            roles = ["encode", *["decode"] * workers]
        else:
            roles = [f"{kind}-post", *[f"{kind}-work"] * (workers - 1)]
            broker = subprocess.Popen([sys.executable, "-m", "eventsh.runtime.broker", "--address", address])
            wait_for_start(address.removeprefix("unix:"))
        command = [sys.executable, __file__, "--events", str(events), "--start", start, "--address", address, "--role"]
        processes = [subprocess.Popen([*command, role], stdout=subprocess.PIPE, text=True) for role in roles]
        try:
            for process in processes:
                assert process.stdout is not None
                process.stdout.readline()
            with open(start, "w"):
                pass
            results = []
            for process in processes:
                assert process.stdout is not None
                results.append(json.loads(process.stdout.readline()))
                process.wait(60)
        finally:
            for process in processes:
                process.kill()
                process.wait()
            if broker is not None:
                with open(f"/proc/{broker.pid}/stat") as stat:
                    fields = stat.read().rpartition(")")[2].split()
                cpu["broker"] = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
                broker.terminate()
                broker.wait(10)
        if kind != "ceiling":
            wrong = sum(result["wrong"] for result in results)
            if wrong:
                raise SystemExit(f"{wrong} events were lost, doubled or out of order")
            cpu["poster"] = results[0]["cpu"]
            cpu["worker"] = statistics.mean(result["cpu"] for result in results[1:]) if workers > 1 else 0.0
        seconds = max(result["ended"] for result in results) - min(result["began"] for result in results)
        return events / seconds, cpu


def play(role: str, address: str, events: int, start: str) -> None:
    """What a process of a round does."""
    if role == "encode":
        ceiling_encode(events, start)
    elif role == "decode":
        ceiling_decode(events, start)
    elif role.startswith("async"):
        with asyncio.Runner(loop_factory=new_event_loop) as runner:
            runner.run(work_async(address, events, start, role.endswith("post")))
    else:
        work_thread(address, events, start, role.endswith("post"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--api", choices=("async", "thread", "both"), default="both")
    parser.add_argument("--role", help=argparse.SUPPRESS)
    parser.add_argument("--start", help=argparse.SUPPRESS)
    parser.add_argument("--address", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.role:
        play(arguments.role, arguments.address, arguments.events, arguments.start)
        return
    check_shape()
    kinds = ["ceiling", *(("async", "thread") if arguments.api == "both" else (arguments.api,))]
    rates: dict[str, list[float]] = {kind: [] for kind in kinds}
    cpus: dict[str, dict[str, float]] = {}
    for number in range(arguments.rounds):
        for kind in kinds:
            rate, cpus[kind] = run_round(kind, arguments.events, arguments.workers)
            rates[kind].append(rate)
            print(f"round {number + 1}: {kind:8} {rate:>12,.0f} posts/s", file=sys.stderr)
    ceiling = statistics.median(rates["ceiling"])
    print(f"{arguments.events:,} events of 65 bytes, {arguments.workers} workers, medians of {arguments.rounds} rounds")
    for kind in kinds:
        rate = statistics.median(rates[kind])
        cpu = "  ".join(f"{name} {seconds:.2f} s CPU" for name, seconds in cpus[kind].items())
        print(f"{kind:8} {rate:>12,.0f} posts/s  {rate / ceiling:>5.2f} of the ceiling  {cpu}")


if __name__ == "__main__":
    main()
