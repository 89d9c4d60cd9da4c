"""Slot table: assign, expect and expire the slots of workers and observers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from eventsh.core.broker.budget import Budget
from eventsh.core.broker.state import Slot, SlotState
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
        if hello.worker_id is None:
            return self._assign_any(hello, now)
        known = self.workers.get(hello.worker_id)
        if known is None:
            known = self.workers[hello.worker_id] = self._new(hello.worker_id, now)
            return known, False
        if known.connection is not None:
            raise SlotTaken
        return known, True

    def _assign_any(self, hello: Hello, now: float) -> tuple[Slot, bool]:
        """Return the slot whose process ended first, or a new one.

        A process that was attached to a broker before succeeds no other: it begins anew, and gets a gap for what it missed.
        """
        left = [slot for slot in self.workers.values() if slot.can_be_succeeded] if not hello.epoch else []
        if left:
            # A slot that has expired has only a gap to give; what the others have queued would be given up.
            return min(left, key=lambda slot: (slot.is_expired, slot.since)), True
        number = 0
        while number in self.workers and not self.workers[number].is_unused:
            number += 1
        known = self.workers.get(number)
        if known is not None and not known.is_expired:
            return known, True
        # A process that asks for any slot did not lose what passed by an empty one.
        self.workers.pop(number, None)
        known = self.workers[number] = self._new(number, now)
        return known, False

    def ceding(self) -> Slot | None:
        """Return the first slot to drain whose queue since the goodbye is for a process that asks for no number."""
        draining = [slot for slot in self.workers.values() if slot.connection and slot.is_spare and not slot.is_leaving]
        return min(draining, key=lambda slot: slot.since, default=None)

    def dispensable(self) -> Slot | None:
        """Return the slot that gives way to a process when the table is full: one that has expired, or that a client named and no
        process has taken."""
        empty = [slot for slot in self if slot.is_expired] or [slot for slot in self if slot.is_expected]
        return min(empty, key=lambda slot: slot.since, default=None)

    def _new(self, number: int | None, now: float) -> Slot:
        if len(self) >= self.max_slots:
            raise SlotTableFull
        return self._make(number, now)

    def _make(self, number: int | None, now: float) -> Slot:
        options = self._options
        queue = Queue(options.max_queue_len, options.max_queue_bytes)
        return Slot(number, queue, Budget(options.timeout, now), now)

    def expect(self, hello: Hello, backlog: Slot | None, posts: int, now: float) -> list[Slot]:
        """Keep the slots that a client names for the workers of an earlier broker, which miss nothing that is posted before
        they come.

        Args:
            backlog: Everything since this broker's start, `posts` broadcast posts among it; None: no longer known.

        Returns:
            Those for which no process is expected, but perhaps a successor.
        """
        numbers, assigned, left = set(hello.slots), set(hello.assigned_slots), set(hello.left_slots)
        if hello.role == "worker" and hello.worker_id is not None:
            numbers.add(hello.worker_id)
            left.discard(hello.worker_id)
            if hello.assigned:
                assigned.add(hello.worker_id)
        for number in numbers:
            slot = self.workers.get(number)
            if slot is None:
                if len(self) >= self.max_slots:
                    break
                slot = self.workers[number] = self._make(number, now)
                if backlog is not None:
                    slot.start_from(backlog, posts, now)
            if slot.state is SlotState.STARTING:
                slot.expect(is_assigned=number in assigned, has_left=number in left)
        return [slot for number in left if (slot := self.workers.get(number)) is not None and slot.goodbye is not None]

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

        A worker's slot stays as a count of what it misses, for the gap that its next process gets, where that process asks for
        its number or the last one was killed. An observer's is removed, and so is a slot that no process can miss: no number
        was asked for, and the last process said goodbye or is known only from an earlier broker.
        """
        expired = []
        for slot in list(self):
            if slot.absence is not None and not slot.is_expired and now - slot.since > timeout:
                expired.append(slot)
                is_over = slot.is_observer or slot.is_spare or (slot.is_assigned and slot.identity is None)
                # A removed one's too: the watch for the end of its process has no reason to go on.
                slot.expire(f"nobody held slot {slot.worker_id} for {timeout:g} s", now)
                if is_over:
                    self.remove(slot)
        return expired
