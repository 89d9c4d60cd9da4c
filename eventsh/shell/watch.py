"""What a shell shows of the events that it sees: those that `tail` asks for, of many a sample, and what comes back from
its handlers in workers.

Called for every batch in the thread of the connection, so it must be quick: what is not shown costs next to nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from eventsh.commands.tail import Seen
from eventsh.core.scripts import SCRIPT_OUTPUT
from eventsh.event import LIFECYCLE_SOURCE
from eventsh.shell.names import Names

if TYPE_CHECKING:
    from eventsh.commands.patterns import Pattern
    from eventsh.core.delivery import Delivery
    from eventsh.runtime.client import Deliveries

__all__ = ["Sampler", "Tap", "Watcher", "WorkerOutput"]

# For so long is counted before the rest of a second's events is told as a number.
_WINDOW_S = 1.0


class Sampler:
    """Lets `rate` events a window pass, and counts the others."""

    def __init__(self, rate: Callable[[], int], clock: Callable[[], float] = time.monotonic) -> None:
        self._rate = rate
        self._clock = clock
        self._window_ends = 0.0
        self._left = 0
        self.skipped = 0

    def admit(self, count: int) -> int:
        """How many of so many more events may be shown now."""
        now = self._clock()
        if now >= self._window_ends:
            self._window_ends = now + _WINDOW_S
            self._left = self._rate()
        admitted = min(count, self._left)
        self._left -= admitted
        self.skipped += count - admitted
        return admitted

    def take_skipped(self) -> int:
        """How many were not shown since the last call."""
        skipped, self.skipped = self.skipped, 0
        return skipped


@dataclass(frozen=True, slots=True)
class WorkerOutput:
    """What a script wrote in a worker; or, with `is_error` and its number, the traceback of what it raised."""

    worker_id: int
    script: int | None
    text: str
    is_error: bool = False


class Watcher:
    """Looks at what arrives, and hands on what is to be shown. `show_*` are called in the connection's thread."""

    def __init__(
        self,
        names: Names,
        sampler: Sampler,
        *,
        show_event: Callable[[Seen], None],
        show_output: Callable[[WorkerOutput], None],
        show_note: Callable[[str], None],
        find_script: Callable[[str, str], int | None],
    ) -> None:
        self.pattern: Pattern | None = None
        self.seen = 0
        self._names = names
        self._sampler = sampler
        self._show_event = show_event
        self._show_output = show_output
        self._show_note = show_note
        self._find_script = find_script

    def take(self, delivery: Delivery) -> None:
        """Events arrived."""
        seq = delivery.first_seq
        for source, event, datas in delivery.runs:
            if source == LIFECYCLE_SOURCE:
                self._take_own(delivery, event, datas)
            elif seq:
                self._names.note(source, event, datas[-1])
            if event != SCRIPT_OUTPUT or source != LIFECYCLE_SOURCE:
                self._tail(delivery, source, event, datas, seq)
            if seq:
                seq += len(datas)

    def tick(self) -> None:
        """Some time has passed: tell what was not shown."""
        if skipped := self._sampler.take_skipped():
            more = f"… {skipped:,} more event{'' if skipped == 1 else 's'}, not shown (set rate N shows N a second)"
            self._show_note(more)

    def _tail(self, delivery: Delivery, source: str, event: str, datas: list[Any], seq: int) -> None:
        pattern = self.pattern
        # What a process tells itself of its own life did not cross the broker.
        if pattern is None or not seq or not pattern.matches(source, event):
            return
        self.seen += len(datas)
        for number in range(self._sampler.admit(len(datas))):
            self._show_event(Seen(source, event, datas[number], delivery.pid, seq + number, delivery.time_ns))

    def _take_own(self, delivery: Delivery, event: str, datas: list[Any]) -> None:
        for data in datas:
            match event, data:
                case "gap", {"missed": int(missed)} if not delivery.first_seq:
                    self._show_note(f"this shell was too slow, or away: it missed {missed:,} events")
                case _, {"text": str(text), "worker_id": int(worker_id), "lost": int(lost)} if event == SCRIPT_OUTPUT:
                    more = f"\n… {lost:,} more characters, not shown" if lost else ""
                    self._show_output(WorkerOutput(worker_id, None, text.rstrip("\n") + more))
                case "handler_error", {
                    "worker_id": int(worker_id),
                    "location": str(location),
                    "traceback": str(text),
                } if script := self._find_script(location, str(data.get("handler"))):
                    more = data.get("failed", 1)
                    text += f"({more - 1} more failed)\n" if isinstance(more, int) and more > 1 else ""
                    self._show_output(WorkerOutput(worker_id, script, text, is_error=True))


class Tap:
    """Stands before the dispatcher of the shell's own handlers, and has the watcher look first."""

    def __init__(self, inner: Deliveries, watcher: Watcher) -> None:
        self._inner = inner
        self._watcher = watcher

    @property
    def pending(self) -> int:
        return self._inner.pending

    def dispatch(self, delivery: Delivery) -> bool:
        self._watcher.take(delivery)
        return self._inner.dispatch(delivery)

    def abandon(self) -> None:
        self._inner.abandon()

    def close(self) -> None:
        self._inner.close()
