"""Record a mixed load, replay it into a fresh pool, and compare what handlers of both have seen.

    python tests/cli/roundtrip.py --events 100000

In the suite it runs with fewer events.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.cli.pool import Pool

# As those of the pool, with what a handler can ask.
MARKING = """
import json, os
import eventsh

journal = os.open({journal!r}, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

@eventsh.on("load")
def handle(data, event, source, pid):
    os.write(journal, json.dumps([os.getpid(), event, data, eventsh.replayed()]).encode() + b"\\n")

@eventsh.on("renamed")
async def renamed(data, event, source, pid):
    handle(data, event, source, pid)
"""


class MarkingPool(Pool):
    """Its journal says of each event whether it was replayed."""

    def __init__(self, directory: Path, *flags: str, workers: int = 2) -> None:
        directory.mkdir(exist_ok=True)
        handlers = directory / "marking.py"
        handlers.write_text(MARKING.format(journal=str(directory / "marks")))
        super().__init__(directory, "--handlers", str(handlers), *flags, workers=workers)

    def marks(self) -> list[tuple[int, str, Any, bool]]:
        path = self.directory / "marks"
        return [tuple(json.loads(line)) for line in path.read_text().splitlines()] if path.exists() else []

    def has_marks(self, count: int) -> bool:
        return len(self.marks()) >= count

    def ledger(self) -> Counter[tuple[str, str]]:
        return Counter((event, json.dumps(data)) for _, event, data, _ in self.marks())

    def forget(self) -> None:
        os.truncate(self.directory / "marks", 0)


def replay(pool: Pool, path: Path, *arguments: str) -> dict[str, Any]:
    done = pool.run("replay", str(path), "--to", pool.address, "--json", *arguments)
    assert done.status == 0, done.err
    facts: dict[str, Any] = json.loads(done.out)
    return facts


def wait_for(pool: MarkingPool, marks: int, deadline_s: float) -> None:
    """Wait until so many calls of handlers are told; the file is read only when it has grown."""
    path = pool.directory / "marks"
    end = time.monotonic() + deadline_s
    while sum(block.count(b"\n") for block in _blocks(path)) < marks:
        assert time.monotonic() < end, f"{len(pool.marks())} of {marks} calls"
        time.sleep(0.2)


def _blocks(path: Path) -> list[bytes]:
    return [path.read_bytes()] if path.exists() else []


def post_mixed_load(pool: MarkingPool, events: int) -> int:
    """Small ones and larger ones, of several sizes, in batches and alone, and unique ones; gives how many calls there are
    to be in two workers."""
    lines = (json.dumps({"n": number, "text": "ä" * (number % 50)}).encode() + b"\n" for number in range(events))
    done = pool.run("post", "load", "many", "--stdin", stdin=b"".join(lines))
    assert done.status == 0, done.err
    for number in range(3):
        assert pool.run("post", "load", "once", str(number), "--unique", f"key-{number}").status == 0
        large = json.dumps("x" * 20000)
        assert pool.run("post", "load", "again", large, "--count", "10").status == 0
    return 2 * (events + 30) + 3


def round_trip(directory: Path, events: int, deadline_s: float = 60.0) -> None:
    """Raises AssertionError when the ledgers differ."""
    path = directory / "load.evlog"
    first = MarkingPool(directory / "one", "--record", str(path))
    try:
        calls = post_mixed_load(first, events)
        wait_for(first, calls, deadline_s)
        recorded = first.ledger()
        assert not any(replayed for _, _, _, replayed in first.marks())
    finally:
        first.stop()
    second = MarkingPool(directory / "two")
    try:
        played = replay(second, path, "--speed", "max", "--wait-workers", "2")
        assert played["events"] == events + 33
        wait_for(second, calls, deadline_s)
        assert second.ledger() == recorded
        assert all(replayed for _, _, _, replayed in second.marks())
        orders: dict[int, list[int]] = {}
        for pid, event, data, _ in second.marks():
            if event == "many":
                orders.setdefault(pid, []).append(data["n"])
        assert list(orders.values()) == [list(range(events))] * 2
    finally:
        second.stop()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=100_000)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        round_trip(Path(directory), arguments.events, 600.0)
    print(f"{arguments.events + 33:,} events: the ledgers of both pools are equal")


if __name__ == "__main__":
    main()
