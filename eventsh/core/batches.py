"""Batches: how many posted events share one frame, and how that frame is written.

Theory of operation. Decoding a batch creates one list or dict for each container in it. Beyond 700 live containers the
garbage collector runs in every batch and frees nothing, so `Batcher` learns from the end of each long batch how many
events make BATCH_CONTAINERS containers. A batch also ends once it holds BATCH_BYTES, and before an event that travels in
a frame of its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from eventsh.protocol.frame import BATCH_BYTES, BATCH_CONTAINERS, BATCH_EVENTS, HEADER, HEADER_BYTES, Kind

__all__ = ["Alone", "Batcher", "Facts", "Names"]

# Source, event, the start of the first run with these names, and of a later one, the longest data that needs no check, the
# longest data allowed.
Names = tuple[str, str, bytes, bytes, int, int]

# A batch with fewer events says too little about the events of a program.
_LEAST_EVENTS = 50
_SAMPLE_BYTES = 2048


class Alone(NamedTuple):
    """Facts of a post that travels in a frame of its own. Its data is the whole body, with the unique key before the JSON."""

    flags: int
    events: int = 1
    pid: int | None = None
    """Process that the frame names as its poster; None: this one."""
    seq: int = 0
    wait: Any = None
    """Receives the receipt and the handler reports of this post."""


Facts = Names | Alone


class Batcher:
    """Writes the frames of one poster."""

    __slots__ = ("events",)

    def __init__(self) -> None:
        # Events of the next batch, at most.
        self.events = BATCH_EVENTS

    def build(
        self, facts: Sequence[Facts], datas: Sequence[bytes], first: int, *, pid: int, origin: int
    ) -> tuple[int, bytearray]:
        """Write the frame of the first of these events, which are numbered from `first`.

        Returns:
            The number of events in the frame, and the frame.
        """
        names = facts[0]
        if isinstance(names, Alone):
            return names.events, _write_alone(names, datas[0], first, pid=pid, origin=origin)
        # Passes in C: a loop over the events in bytecode took as long as posting them.
        if sum(map(len, datas)) > BATCH_BYTES:
            fitting = _count_fitting(map(len, datas))
            facts, datas = facts[:fitting], datas[:fitting]
        count = len(facts)
        # Names compare by identity first.
        if facts.count(names) == count:
            frame = bytearray(HEADER_BYTES) + b"[" + names[2] + b",".join(datas)
        else:
            count, frame = _join_runs(facts, datas)
        frame += b"]]]"
        if count >= _LEAST_EVENTS:
            self._learn(count, frame)
        HEADER.pack_into(frame, 0, len(frame) - HEADER_BYTES, Kind.EVENTS, 0, count, pid, origin, first, 0, 0)
        return count, frame

    def _learn(self, count: int, frame: bytearray) -> None:
        """Choose the length of the next batches by the containers at the end of this one, and by its bytes."""
        containers = frame.count(b"[", -_SAMPLE_BYTES) + frame.count(b"{", -_SAMPLE_BYTES)
        sampled = count * min(_SAMPLE_BYTES, len(frame)) / len(frame)
        fitting = min(int(sampled * BATCH_CONTAINERS / (containers + 1)), BATCH_BYTES * count // len(frame))
        self.events = min(max(fitting, _LEAST_EVENTS), BATCH_CONTAINERS)


def _join_runs(facts: Sequence[Facts], datas: Sequence[bytes]) -> tuple[int, bytearray]:
    """Write runs up to an event that travels alone. The last run is left open."""
    count = len(facts)
    if Alone in set(map(type, facts)):
        count = next(place for place, names in enumerate(facts) if isinstance(names, Alone))
    names: Sequence[Any] = facts[:count]
    # One list for all parts, filled in C but for this comprehension: with 20 sources most runs have one event.
    parts: list[bytes] = [b""] * (2 * count)
    parts[::2] = [b"," if before is now else now[3] for before, now in zip((None, *names), names, strict=False)]
    parts[1::2] = datas[:count]
    parts[0] = names[0][2]
    # Long names count too: the broker refuses a batch that is longer than its events can make it.
    if sum(map(len, parts)) > BATCH_BYTES:
        count = _count_fitting(map(len, map(bytes.__add__, parts[::2], parts[1::2])))
        del parts[2 * count :]
    return count, bytearray(HEADER_BYTES) + b"[" + b"".join(parts)


def _count_fitting(sizes: Iterable[int]) -> int:
    """How many events make a body of BATCH_BYTES, the one that passes it included."""
    total = count = 0
    for size in sizes:
        total += size
        count += 1
        if total >= BATCH_BYTES:
            break
    return count


def _write_alone(facts: Alone, body: bytes, first: int, *, pid: int, origin: int) -> bytearray:
    frame = bytearray(HEADER_BYTES) + body
    poster = pid if facts.pid is None else facts.pid
    length = len(frame) - HEADER_BYTES
    HEADER.pack_into(frame, 0, length, Kind.EVENTS, facts.flags, facts.events, poster, origin, first, facts.seq, 0)
    return frame
