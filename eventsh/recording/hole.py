"""Events that should be in a recording and are not: counted while they come, then told in their place."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from eventsh.protocol.frame import HEADER

__all__ = ["Hole"]


@dataclass(slots=True)
class Hole:
    """One row of events in one epoch. `missed` is None where nobody can say how many they are."""

    epoch: int
    reason: str
    began_ns: int
    missed: int | None = 0
    first_seq: int = 0
    last_seq: int = 0

    @property
    def is_empty(self) -> bool:
        return self.missed == 0

    def miss(self, frame: bytes | bytearray) -> None:
        """Count the events of a frame."""
        _, _, _, count, _, _, _, seq, _ = HEADER.unpack_from(frame)
        self.add(count, seq, seq + count - 1)

    def add(self, missed: int | None, first_seq: int, last_seq: int) -> None:
        """Count events that somebody else has counted; a seq of 0 is not known."""
        self.first_seq = self.first_seq or first_seq
        self.last_seq = last_seq or self.last_seq
        self.missed = None if self.missed is None or missed is None else self.missed + missed

    def facts(self) -> dict[str, Any]:
        """What its record says. It ends now."""
        return {
            "missed": self.missed,
            "first_seq": self.first_seq,
            "last_seq": self.last_seq,
            "reason": self.reason,
            "epoch": self.epoch,
            "began_ns": self.began_ns,
            "ended_ns": time.time_ns(),
        }
