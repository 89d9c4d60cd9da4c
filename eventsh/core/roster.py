"""Which place a client gets: worker slots by number, observers by identity, and when an empty place is given up."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from eventsh.core.slot import Slot

if TYPE_CHECKING:
    from eventsh.protocol.messages import Hello

__all__ = ["Roster", "RosterFull", "SlotTaken"]


class SlotTaken(Exception):
    """Another process holds the slot that was asked for."""


class RosterFull(Exception):
    """There are as many places as allowed."""


class Roster:
    """Every place, taken or kept. A worker's place outlives its process: see `expire`."""

    def __init__(self, *, slots: int, max_slots: int, max_queue_len: int, now: float) -> None:
        self.max_slots = max_slots
        self.max_queue_len = max_queue_len
        self.workers: dict[int, Slot] = {number: Slot(number, max_queue_len, now) for number in range(slots)}
        self.observers: list[Slot] = []

    def __iter__(self) -> Iterator[Slot]:
        yield from self.workers.values()
        yield from self.observers

    @property
    def ordered_workers(self) -> list[Slot]:
        """By their numbers, for people."""
        return [slot for _, slot in sorted(self.workers.items())]

    def place(self, hello: Hello, now: float) -> tuple[Slot, bool]:
        """The place for a client, and whether its stream goes on where the place's queue begins.

        Raises SlotTaken or RosterFull. The caller then calls `Slot.attach`.
        """
        # By name whatever its epoch: its first welcome may have been lost with the connection.
        for slot in self:
            if slot.identity == hello.identity:
                return slot, True
        if hello.role == "observer":
            slot = self._new(None, now)
            self.observers.append(slot)
            return slot, False
        number = self._free_number() if hello.worker_id is None else hello.worker_id
        known = self.workers.get(number)
        if known is not None and known.link is not None:
            raise SlotTaken
        if known is None or (hello.worker_id is None and known.is_expired):
            # Whoever asks for any place did not lose what passed by an empty one.
            self.workers.pop(number, None)
            known = self.workers[number] = self._new(number, now)
            return known, False
        return known, True

    def _free_number(self) -> int:
        """The lowest number that nobody holds and nobody will come back for."""
        number = 0
        while number in self.workers:
            slot = self.workers[number]
            if slot.link is None and (slot.is_gone or slot.is_expired):
                return number
            number += 1
        return number

    def _new(self, number: int | None, now: float) -> Slot:
        if len(self.workers) + len(self.observers) >= self.max_slots:
            empty = [slot for slot in self if slot.link is None and slot.is_expired]
            if not empty:
                raise RosterFull
            self.remove(min(empty, key=lambda slot: slot.absent_since))
        return Slot(number, self.max_queue_len, now)

    def expect(self, numbers: Iterable[int], founder: Slot | None, posts: int, now: float) -> None:
        """Keep places for the workers of an earlier broker: they come when they come, and none of them may miss what is
        posted meanwhile. `founder` has what passed since this broker's start, `posts` to everybody among it."""
        for number in numbers:
            slot = self.workers.get(number)
            if slot is None:
                if len(self.workers) + len(self.observers) >= self.max_slots:
                    return
                slot = self.workers[number] = Slot(number, self.max_queue_len, now)
                if founder is not None:
                    slot.start_from(founder, posts, now)
            if slot.identity is None and not slot.is_expired:
                slot.is_gone = False

    @property
    def is_complete(self) -> bool:
        """Whether every worker of an earlier broker has come back, and told what it has, or was given up."""
        return not any(
            (slot.is_telling and not slot.is_expired)
            or (slot.identity is None and not slot.is_gone and not slot.is_expired)
            for slot in self.workers.values()
        )

    def remove(self, slot: Slot) -> None:
        """Give a place up for good."""
        if slot.worker_id is None:
            self.observers.remove(slot)
        else:
            del self.workers[slot.worker_id]

    def expire(self, now: float, timeout: float) -> list[Slot]:
        """Places that became empty more than `timeout` ago: their queues are let go.

        A worker's place stays as a count of what it misses, so that whoever takes it by its number is told; an
        observer's is removed.
        """
        expired = []
        for slot in list(self):
            if slot.link is None and not slot.is_expired and now - slot.absent_since > timeout:
                expired.append(slot)
                # An observer's too: whoever looks for the end of its process has no reason to go on.
                slot.is_expired = True
                if slot.is_observer:
                    self.remove(slot)
                else:
                    slot.drop_queue()
                    slot.start_losing(f"nobody held slot {slot.worker_id} for {timeout:g} s")
        return expired
