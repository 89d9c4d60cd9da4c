"""Slot table: assign, expect and expire the slots of workers and observers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from eventsh.core.broker.budget import Budget
from eventsh.core.broker.state import Slot
from eventsh.core.queue import Queue

if TYPE_CHECKING:
    from eventsh.options import Options
    from eventsh.protocol.messages import Hello

__all__ = ["SlotTable", "SlotTableFull", "SlotTaken"]


class SlotTaken(Exception):
    """Another process holds the slot that was asked for."""


class SlotTableFull(Exception):
    """There are as many slots as allowed."""


class SlotTable:
    """Every slot, held or kept: workers by number, observers by identity. A worker's slot outlives its process: see `expire`."""

    def __init__(self, options: Options, now: float) -> None:
        self.max_slots = options.max_slots
        self._options = options
        self.workers: dict[int, Slot] = {number: self._make(number, now) for number in range(options.slots)}
        self.observers: list[Slot] = []

    def __iter__(self) -> Iterator[Slot]:
        yield from self.workers.values()
        yield from self.observers

    def __len__(self) -> int:
        return len(self.workers) + len(self.observers)

    @property
    def ordered_workers(self) -> list[Slot]:
        """The workers by number."""
        return [slot for _, slot in sorted(self.workers.items())]

    def assign(self, hello: Hello, now: float) -> tuple[Slot, bool]:
        """Return the slot for a client, and whether its stream goes on where the slot's queue begins.

        The caller then calls `Slot.attach`. Raises SlotTaken or SlotTableFull.
        """
        # By identity whatever its epoch: its first welcome may have been lost with the connection.
        for slot in self:
            if slot.identity == hello.identity:
                return slot, True
        if hello.role == "observer":
            slot = self._new(None, now)
            self.observers.append(slot)
            return slot, False
        number = self._free_number() if hello.worker_id is None else hello.worker_id
        known = self.workers.get(number)
        if known is not None and known.connection is not None:
            raise SlotTaken
        if known is None or (hello.worker_id is None and known.is_expired):
            # A process that asks for any slot did not lose what passed by an empty one.
            self.workers.pop(number, None)
            known = self.workers[number] = self._new(number, now)
            return known, False
        return known, True

    def _free_number(self) -> int:
        """Return the lowest number that nobody holds and nobody comes back for."""
        number = 0
        while number in self.workers and not self.workers[number].is_free:
            number += 1
        return number

    def _new(self, number: int | None, now: float) -> Slot:
        if len(self) >= self.max_slots:
            # A slot that a client named, and that no process has taken, keeps no process that is there from attaching.
            empty = [slot for slot in self if slot.is_expired] or [slot for slot in self if slot.is_expected]
            if not empty:
                raise SlotTableFull
            self.remove(min(empty, key=lambda slot: slot.since))
        return self._make(number, now)

    def _make(self, number: int | None, now: float) -> Slot:
        options = self._options
        queue = Queue(options.max_queue_len, options.max_queue_bytes)
        return Slot(number, queue, Budget(options.timeout, now), now)

    def expect(self, numbers: Iterable[int], backlog: Slot | None, posts: int, now: float) -> None:
        """Keep slots for the workers of an earlier broker, which miss nothing that is posted before they come.

        Args:
            backlog: Everything since this broker's start, `posts` broadcast posts among it; None: no longer known.
        """
        for number in numbers:
            slot = self.workers.get(number)
            if slot is None:
                if len(self) >= self.max_slots:
                    return
                slot = self.workers[number] = self._make(number, now)
                if backlog is not None:
                    slot.start_from(backlog, posts, now)
            slot.expect()

    @property
    def is_complete(self) -> bool:
        """Whether every worker of an earlier broker has come back and named the unique events that it has, or was given up."""
        return not any(slot.may_hold_uniques for slot in self.workers.values())

    def remove(self, slot: Slot) -> None:
        """Give a slot up for good."""
        if slot.worker_id is None:
            self.observers.remove(slot)
        else:
            del self.workers[slot.worker_id]

    def expire(self, now: float, timeout: float) -> list[Slot]:
        """Give up the queues of slots that became empty more than `timeout` seconds ago, and return those slots.

        A worker's slot stays as a count of what it misses, so that the process that asks for its number is told; an observer's
        is removed.
        """
        expired = []
        for slot in list(self):
            if slot.absence is not None and not slot.is_expired and now - slot.since > timeout:
                expired.append(slot)
                # An observer's too: who looks for the end of its process has no reason to go on.
                slot.expire(f"nobody held slot {slot.worker_id} for {timeout:g} s", now)
                if slot.is_observer:
                    self.remove(slot)
        return expired
