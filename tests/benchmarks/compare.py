"""Throughput and CPU an event of this checkout against another one, in turn: before and after a change.

    python tests/benchmarks/compare.py ../before [--events 300000] [--rounds 7] [--workers 4] [--only posting,async]

Rows: posting (CPU of posting and batching in one process, without a broker, best of several), and one poster to the
workers through AsyncEvents, through Events, and through AsyncEvents with 20 sources. Each round measures both checkouts,
in an order that alternates; the ratios are those of pairs, and their median is the figure.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parents[2]
ROWS = {"posting": ("posting", 1), "async": ("async", 1), "thread": ("thread", 1), "mixed": ("async", 20)}

# Runs in either checkout, so it uses only what both have.
CHILD = """
import asyncio, json, sys, time
api, sources, events, workers = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
if api == "posting":
    import contextlib, threading
    from eventsh.runtime.bus import Bus
    bus = Bus(threaded=True)
    bus.outbox.window = bus.outbox.max_queue_len = 1_000_000
    lock = getattr(bus, "lock", None) or contextlib.nullcontext()
    locked = hasattr(bus, "lock")
    if hasattr(bus.outbox, "is_awake"):
        bus.outbox.is_awake[0] = 1
    data = {"k": 17, "path": "/a/b/c/d/e/f/g/h/i", "ok": True, "name": "abcdef"}
    from eventsh.api import Events
    post = Events._over(bus).post
    best = 9.0
    for _ in range(events // 2000):
        began = time.process_time()
        for _ in range(2000):
            post("source", "event", data)
        if locked:
            with lock:
                bus.outbox.take()
        else:
            bus.outbox.take()
        bus.outbox.confirm(bus.outbox.number)
        best = min(best, time.process_time() - began)
        if hasattr(bus.outbox, "is_awake"):
            bus.outbox.is_awake[0] = 1
    print(json.dumps({"posts_per_s": 2000 / best, "cpu_us": best / 2000 * 1e6}))
else:
    from eventsh.commands.bench import measure
    from eventsh.commands.load import Load
    from dataclasses import replace
    result = asyncio.run(measure(replace(Load(events), sources=sources), workers, "unix", api, lambda *_: None))
    assert not result.lost and not result.out_of_order
    cpu = {part: (used or 0.0) / events * 1e6 for part, used in result.cpu_s.items()}
    print(json.dumps({"posts_per_s": result.posts_per_s, "cpu_us": sum(cpu.values()), **cpu}))
"""


def run(root: Path, api: str, sources: int, events: int, workers: int) -> dict[str, float]:
    done = subprocess.run(
        [sys.executable, "-c", CHILD, api, str(sources), str(events), str(workers)],
        env={**os.environ, "PYTHONPATH": str(root)},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        cwd="/",
    )
    figures: dict[str, float] = json.loads(done.stdout)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path, help="the checkout to compare with")
    parser.add_argument("--events", type=int, default=300_000)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--only", help="rows, with commas between them")
    options = parser.parse_args()
    rows = options.only.split(",") if options.only else list(ROWS)
    pairs: dict[str, list[tuple[dict[str, float], dict[str, float]]]] = {row: [] for row in rows}
    for number in range(options.rounds):
        for row in rows:
            order = (options.before.resolve(), HERE) if number % 2 else (HERE, options.before.resolve())
            found = {root: run(root, *ROWS[row], options.events, options.workers) for root in order}
            pairs[row].append((found[options.before.resolve()], found[HERE]))
        print(f"round {number + 1} of {options.rounds}", file=sys.stderr, flush=True)
    print(f"{'':10}{'before':>12}{'after':>12} posts/s  ratio (min, max)      us of CPU an event: before, after, ratio")
    for row in rows:
        before, after = zip(*pairs[row], strict=True)
        rates = [statistics.median(each["posts_per_s"] for each in side) for side in (before, after)]
        ratios = [b["posts_per_s"] / a["posts_per_s"] for a, b in pairs[row]]
        cpu = [statistics.median(each["cpu_us"] for each in side) for side in (before, after)]
        cpu_ratio = statistics.median(b["cpu_us"] / a["cpu_us"] for a, b in pairs[row])
        spread = f"{statistics.median(ratios):.3f} ({min(ratios):.2f}, {max(ratios):.2f})"
        print(
            f"{row:10}{rates[0]:>12,.0f}{rates[1]:>12,.0f}          {spread:20} {cpu[0]:6.2f} {cpu[1]:6.2f} {cpu_ratio:6.3f}"
        )


if __name__ == "__main__":
    main()
