"""Row 12: events as fast as there is room, for long, while clients come and go; what the processes hold must not grow."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from eventsh.api import Events
from tests.faults.processes import DEADLINE_S, ROOT, Served, ask, environment, wait_until
from tests.faults.stops import rss_bytes

__all__ = ["Growth", "SoakReport", "run_soak"]

HANDLERS = str(Path(__file__).with_name("soak_handlers.py"))
POSTER = str(Path(__file__).with_name("soak_poster.py"))
# Tables fill up to their limits first: what is remembered of unique events, what the allocator keeps.
_WARM_SHARE = 0.3
# What a process may seem to grow by after that, in all: the steps in which its memory is counted, not a leak. An event
# that left one byte behind would be more in a long run.
SLACK_BYTES = 4 * 1024 * 1024
_SAMPLES = 200
_REST_S = 120.0


@dataclass(frozen=True, slots=True)
class _Sample:
    done: int
    memory_bytes: int
    descriptors: int
    threads: int


@dataclass(slots=True)
class Growth:
    """What one process held, from when its tables were full to the end."""

    name: str
    samples: list[_Sample] = field(default_factory=list)

    def take(self, pid: int, done: int) -> None:
        descriptors, threads = len(os.listdir(f"/proc/{pid}/fd")), len(os.listdir(f"/proc/{pid}/task"))
        self.samples.append(_Sample(done, rss_bytes(pid), descriptors, threads))

    @property
    def warm(self) -> list[_Sample]:
        begin = self.samples[-1].done * _WARM_SHARE
        return [sample for sample in self.samples if sample.done >= begin]

    @property
    def bytes_per_million(self) -> float:
        """The slope of its memory, by least squares."""
        samples = self.warm
        mean_x = sum(sample.done for sample in samples) / len(samples)
        mean_y = sum(sample.memory_bytes for sample in samples) / len(samples)
        square = sum((sample.done - mean_x) ** 2 for sample in samples)
        product = sum((sample.done - mean_x) * (sample.memory_bytes - mean_y) for sample in samples)
        return product / square * 1e6 if square else 0.0

    @property
    def faults(self) -> list[str]:
        samples, found = self.warm, []
        grew = self.bytes_per_million * (samples[-1].done - samples[0].done) / 1e6
        if grew > SLACK_BYTES:
            found.append(f"{self.name} grew by {grew / 1e6:.1f} MB")
        half = len(samples) // 2
        for what in ("descriptors", "threads"):
            # Clients come and go, so a single sample may see one more; the least of many does not.
            before, after = (min(getattr(one, what) for one in part) for part in (samples[:half], samples[half:]))
            if after > before:
                found.append(f"{self.name} has {after} {what} where it had {before}")
        return found

    def __str__(self) -> str:
        first, last = self.warm[0], self.warm[-1]
        return (
            f"{self.name}: {first.memory_bytes / 1e6:.1f} to {last.memory_bytes / 1e6:.1f} MB,"
            f" slope {self.bytes_per_million / 1e3:+.1f} kB per million events,"
            f" {last.descriptors} descriptors, {last.threads} threads"
        )


@dataclass(slots=True)
class SoakReport:
    """What was posted and counted, and what it took."""

    seed: int
    posted: int = 0
    keys: int = 0
    took_s: float = 0.0
    clients: int = 0
    growths: list[Growth] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        head = (
            f"row 12, seed {self.seed}: {self.posted} broadcasts and {self.keys} unique events in {self.took_s:.0f} s,"
            f" {self.clients} clients came and went; {len(self.faults)} faults"
        )
        return "\n".join([head, *(f"  {one}" for one in self.growths), *(f"  FAULT: {one}" for one in self.faults)])


class _Poster:
    """A running soak_poster.py. Its output is a file, so that nobody has to read it in time."""

    def __init__(self, path: Path, address: str, number: int, events: int, seed: int, stack: ExitStack) -> None:
        self._out = path / f"poster-{number}.out"
        with self._out.open("wb") as out, (path / f"poster-{number}.err").open("wb") as err:
            self.process = subprocess.Popen(
                [sys.executable, POSTER, address, str(number), str(events), str(seed)],
                stdin=subprocess.PIPE,
                stdout=out,
                stderr=err,
                env=environment(path),
                cwd=ROOT,
            )
        stack.callback(self._end)

    def _end(self) -> None:
        assert self.process.stdin
        self.process.stdin.close()
        try:
            self.process.wait(DEADLINE_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def _words(self) -> list[str]:
        assert self.process.poll() is None, "a poster has ended"
        return self._out.read_text().split()

    @property
    def is_ready(self) -> bool:
        return "ready" in self._words()

    def begin(self) -> None:
        assert self.process.stdin
        self.process.stdin.write(b"\n")
        self.process.stdin.flush()

    @property
    def done(self) -> int:
        words = self._words()
        posted = [int(word) for before, word in pairwise(words) if before == "posted"]
        return max(posted, default=0)

    @property
    def result(self) -> tuple[int, int] | None:
        """How many broadcasts and unique events it posted, once all is confirmed."""
        words = self._words()
        return (int(words[-2]), int(words[-1])) if len(words) > 2 and words[-3] == "done" else None


def run_soak(
    events: int, seed: int, path: Path, say: Callable[[str], None], *, workers: int = 2, posters: int = 2
) -> SoakReport:
    """Post `events` events, and look at every process meanwhile."""
    report = SoakReport(seed)
    with ExitStack() as stack:
        pool = Served(path, f"unix:{path}/run/e.sock", workers, handlers=HANDLERS)
        stack.callback(pool.stop)
        sources = [_Poster(path, pool.address, n, events // posters, seed, stack) for n in range(1, posters + 1)]
        # Before the first look: what a process takes while it starts is no growth.
        wait_until(lambda: all(source.is_ready for source in sources), "the posters are attached")
        for source in sources:
            source.begin()
        watched = _watch(pool, sources)
        before, started = _worker_pids(pool), time.monotonic()
        due, step = 0, max(1, events // _SAMPLES)
        while any(source.result is None for source in sources):
            time.sleep(0.02)
            done = sum(source.done for source in sources)
            if done < due:
                continue
            due += step
            # Before others come and go: the broker may not have noticed yet that they have gone.
            for growth, pid in watched:
                growth.take(pid, done)
            report.clients += _come_and_go(pool.address)
            if len(watched[0][0].samples) % 10 == 0:
                say(f"{done}/{events} events after {time.monotonic() - started:.0f} s")
        report.took_s = time.monotonic() - started
        results = [source.result or (0, 0) for source in sources]
        report.posted, report.keys = (sum(column) for column in zip(*results, strict=True))
        report.faults += _count(pool, path, [broadcasts for broadcasts, _ in results], report.keys)
        if _worker_pids(pool) != before:
            report.faults.append("a process has died")
    report.growths = [growth for growth, _ in watched]
    report.faults += [fault for growth in report.growths for fault in growth.faults]
    return report


def _worker_pids(pool: Served) -> list[int]:
    state = ask(pool.address)
    assert state is not None
    return [state["broker"]["pid"], *(worker["pid"] for worker in state["workers"])]


def _watch(pool: Served, sources: Sequence[_Poster]) -> list[tuple[Growth, int]]:
    broker, *workers = _worker_pids(pool)
    return [
        (Growth("supervisor"), pool.process.pid),
        (Growth("broker"), broker),
        *((Growth(f"worker {number}"), pid) for number, pid in enumerate(workers)),
        *((Growth(f"poster {number}"), source.process.pid) for number, source in enumerate(sources, 1)),
    ]


def _come_and_go(address: str) -> int:
    """An observer and a question: what stays of clients that left would be seen."""
    with Events(address, broker="never", role="observer") as events:
        events.wait_ready(_REST_S)
    ask(address)
    return 2


def _count(pool: Served, path: Path, broadcasts: list[int], keys: int) -> list[str]:
    """Have every worker tell what it counted, and compare that with what was posted."""
    with Events(pool.address, broker="never", role="observer") as events:
        events.wait_ready(_REST_S)
        events.post("soak", "tell")
        events.flush(_REST_S)
    workers = _worker_pids(pool)[1:]
    files = [path / f"{pid}.counts" for pid in workers]
    wait_until(lambda: all(file.exists() for file in files), "every worker has told its count", _REST_S)
    counts: list[dict[str, Any]] = [json.loads(file.read_text()) for file in files]
    found = []
    wanted = {str(poster): number for poster, number in enumerate(broadcasts, 1)}
    for number, count in enumerate(counts):
        if count["last"] != wanted or count.get("out of order") or count.get("told"):
            found.append(f"worker {number} counted {count}, of {wanted}")
    if (ran := sum(count.get("keys", 0) for count in counts)) != keys:
        found.append(f"{ran} unique events ran, of {keys}")
    return found
