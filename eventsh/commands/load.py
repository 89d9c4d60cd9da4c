"""What a benchmark does, and how a process of it counts what it handles. Starts and measures nothing."""

from __future__ import annotations

import time
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import cycle
from random import Random
from typing import Any

import orjson

from eventsh.options import Options

__all__ = ["LEAST_SIZE", "Load", "Tally"]

# So many pairs of source and event are drawn beforehand; more than a processor could learn by heart.
_DRAWN = 4099
# Warmed up by this part of the events, at most so many: connections, caches, and the interpreter that specializes.
_WARM_UP_PART = 10
_MOST_WARM_UP = 20_000
# No queue may hold more than about this much, however large the events are.
_QUEUE_BYTES = 64 * 1024 * 1024

# The data of an event, filled up by its name. Where it is timed, `v` is the time.
_FRAME = {"id": 100_000, "name": "", "tags": ["a", "bc"], "v": 1.5}
_TIMED_FRAME = {**_FRAME, "v": 10**15}
LEAST_SIZE = len(orjson.dumps(_TIMED_FRAME))

Handler = Callable[[Any, str, str, "int | None"], None]


@dataclass(frozen=True, slots=True)
class Load:
    """What is to be done: so many events in all, by so many posters. `size` is bytes of data once it is encoded. With a
    `rate`, that many are posted a second in all, each with the time of its post; else as many as can be."""

    events: int
    posters: int = 1
    size: int = 65
    sources: int = 1
    rate: float = 0.0

    def warm_up(self) -> Load:
        """The same, shorter and without pauses."""
        events = min(self.events // _WARM_UP_PART, _MOST_WARM_UP)
        return Load(max(events, self.posters), self.posters, self.size, self.sources)

    def names(self) -> list[tuple[str, str]]:
        """The sources and events that there are."""
        if self.sources == 1:
            return [("bench", "tick")]
        return [(f"source-{number}", f"event-{number}") for number in range(self.sources)]

    def pairs(self) -> Iterator[tuple[str, str]]:
        """The source and event of each post, for ever: always the same, or in random order."""
        return cycle(Random(1).choices(self.names(), k=_DRAWN if self.sources > 1 else 1))

    def name(self) -> str:
        """What fills the data up to its size."""
        empty = len(orjson.dumps(_TIMED_FRAME if self.rate else _FRAME))
        return ("cache-key-" + "0123456789" * (self.size // 10))[: max(0, self.size - empty)]

    def options(self) -> dict[str, Any]:
        """What eventsh has to be told for events of this size."""
        limits = Options()
        return {
            "max_payload_len": max(limits.max_payload_len, self.size + 1024),
            "max_queue_len": max(16, min(limits.max_queue_len, _QUEUE_BYTES // self.size)),
        }


class Tally:
    """Counts what one process handles in one run, and checks that each poster's events come once and in order."""

    def __init__(self, load: Load, on_last: Callable[[], None]) -> None:
        self.events = load.events
        self.out_of_order = 0
        self.missed = 0
        # Nanoseconds from post to handler, by the event's number.
        self.latencies = array("q", bytes(8 * load.events)) if load.rate else array("q")
        self._on_last = on_last
        self._left: Callable[[], int] = lambda: load.events
        is_simple = load.posters == 1 and not load.rate
        self.handler = self._handler_of_one() if is_simple else self._handler_of_many(load.posters)

    @property
    def handled(self) -> int:
        """How many came so far."""
        return self.events - self._left()

    def _handler_of_one(self) -> Handler:
        """A closure that does as little as checks everything: it is not its own cost that is to be measured."""
        left = self.events
        expected = 0

        def handler(data: Any, event: str, source: str, pid: int | None) -> None:
            nonlocal left, expected
            number = data["id"]
            if number != expected:
                self.out_of_order += 1
            expected = number + 1
            left -= 1
            if not left:
                self._on_last()

        self._left = lambda: left
        return handler

    def _handler_of_many(self, posters: int) -> Handler:
        left = self.events
        expected = list(range(posters))
        latencies, clock = self.latencies, time.monotonic_ns

        def handler(data: Any, event: str, source: str, pid: int | None) -> None:
            nonlocal left
            now, number = clock(), data["id"]
            if latencies:
                latencies[number] = now - data["v"]
            if number != expected[number % posters]:
                self.out_of_order += 1
            expected[number % posters] = number + posters
            left -= 1
            if not left:
                self._on_last()

        self._left = lambda: left
        return handler

    def take_gap(self, data: Any, event: str, source: str, pid: int | None) -> None:
        """A handler: events were not given to this process, and it is told so."""
        self.missed += data["missed"]
