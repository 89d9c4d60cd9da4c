"""A process that posts through the public API at a steady rate, and handles what comes if it is a worker.

Usage: program.py DIRECTORY ADDRESS POSTER RATE SLOW SEED OPTIONS, where POSTER is its number (0 posts nothing), RATE and SLOW
are how many events and how many slow ones it posts a second, and OPTIONS are those of `configure` as JSON. Its standard input says what to do: "stop" ends the posting and answers when all is
confirmed, the end of input ends the process.
"""

from __future__ import annotations

import json
import random
import sys
import threading
import time

from eventsh.api import Events
from eventsh.errors import EventError, QueueOverflow
from tests.faults.ledger import Journal, Kind

_PERIOD_S = 0.01
# After a pause, as when there was no room, this many posts are made up for: what was not posted can't be lost.
_CATCH_UP = 200
_UNIQUE_SHARE = 0.03
_LARGE_SHARE = 0.05
_FLUSH_S = 120.0


class Poster:
    """Numbers its posts from 1 and writes each down once `post` gave True."""

    def __init__(self, events: Events, journal: Journal, poster: int, seed: int, slow_share: float) -> None:
        self._events = events
        self._journal = journal
        self._poster = poster
        self._random = random.Random(seed * 1000 + poster)
        self._slow_share = slow_share
        self._number = 0
        self._keys = 0
        self.overflows = 0

    def run(self, rate: float, stopped: threading.Event) -> None:
        started, done = time.monotonic(), 0
        while not stopped.wait(_PERIOD_S):
            due = int((time.monotonic() - started) * rate)
            done = max(done, due - _CATCH_UP)
            while done < due and not stopped.is_set():
                self._post()
                done += 1

    def _post(self) -> None:
        dice = self._random.random()
        if dice < _UNIQUE_SHARE:
            # All posters use the same keys, so that most of these are repeats.
            self._keys += 1
            self._put("unique", [self._poster, self._keys], f"key {self._keys}")
            self._journal.write(Kind.POSTED_KEY, self._poster, self._keys)
            return
        self._number += 1
        data = [self._poster, self._number]
        if dice > 1 - _LARGE_SHARE:
            data.append("x" * self._random.randrange(4000))  # type: ignore[arg-type]
        self._put("slow" if dice < _UNIQUE_SHARE + self._slow_share else f"e{self._number % 3}", data, None)
        self._journal.write(Kind.POSTED, self._poster, self._number)

    def _put(self, event: str, data: list[int], unique: str | None) -> None:
        while True:
            try:
                self._events.post("load", event, data, unique)
                return
            except QueueOverflow:
                self.overflows += 1
                self._events.drain(_FLUSH_S)


def main() -> int:
    directory, address, poster, rate, slow, seed, options = sys.argv[1:]
    journal = Journal(directory)
    events = Events(address, **json.loads(options))
    if json.loads(options).get("role", "worker") == "worker":
        events.register(journal.load, "load")
        events.register(journal.life, "eventsh")
    events.configure()
    events.wait_ready(_FLUSH_S)
    print("ready", flush=True)
    stopped = threading.Event()
    source = Poster(events, journal, int(poster), int(seed), float(slow) / max(1.0, float(rate)))
    thread = threading.Thread(target=source.run, args=(float(rate), stopped), daemon=True)
    status = 0
    for line in sys.stdin:
        if line.strip() == "post" and int(poster):
            thread.start()
        elif line.strip() == "stop":
            stopped.set()
            if thread.is_alive():
                thread.join(_FLUSH_S)
            try:
                events.flush(_FLUSH_S)
                print(f"flushed {source.overflows}", flush=True)
            except EventError as error:
                print(f"failed {error}", flush=True)
                status = 1
    stopped.set()
    events.close()
    return status


if __name__ == "__main__":
    sys.exit(main())
