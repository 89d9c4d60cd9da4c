"""What a client remembers of the events that it has got, to drop those that come again and to tell a new broker of them.

Knows no broker's death: what was sent again is marked.
"""

from __future__ import annotations

from collections.abc import Callable

from eventsh.protocol.frame import Flag, read_key, shorten_key
from eventsh.protocol.messages import Taken

__all__ = ["REMEMBERED", "Memory"]

# Of how many posters a worker remembers what it has, to drop what is sent again after a broker's death. Only posters
# whose batches are unconfirmed at that moment matter, so this is generous; some 10 MiB full.
REMEMBERED = 65536

# Of how many unique events, and how long all their keys may be: what a new broker is told of them fits into a frame.
_REMEMBERED_UNIQUES = 16384
_REMEMBERED_KEY_BYTES = 2 * 1024 * 1024


class Memory:
    """Of one session, over all its brokers. `clock` is monotonic, in seconds."""

    __slots__ = ("_clock", "_key_bytes", "_uniques", "seen", "told")

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        # By origin: the number of the last event that everybody got. The session notes it by itself, at most REMEMBERED,
        # for each batch would pay for the call.
        self.seen: dict[int, int] = {}
        # The last epoch whose broker knows of the unique events, which is the one that gave them out or one that was told.
        self.told = 0
        # The key of each unique event, when the broker stamped it and when it was received here: a new broker has to know
        # how long its key has been taken. The stamp is a time of day, which people set, and is for version 0.1.0 only.
        self._uniques: dict[tuple[int, int], tuple[bytes, int, float]] = {}
        self._key_bytes = 0

    @property
    def has_uniques(self) -> bool:
        return bool(self._uniques)

    def is_repeat(self, flags: int, origin: int, number: int) -> bool:
        """Whether this process already has this batch, from an earlier broker or before another worker gave it back.

        Only what is marked as resent can be known: origins are random, and a new poster may by chance have the origin
        of one that has left.
        """
        if not flags & Flag.RESENT:
            return False
        if flags & Flag.UNIQUE:
            return (origin, number) in self._uniques
        return number <= self.seen.get(origin, 0)

    def note_unique(self, origin: int, number: int, time_ns: int, frame: bytearray | memoryview) -> None:
        """Remember a unique event. Repeating the call changes nothing. Raises ProtocolError for a frame without a key."""
        known, key, received_at = self._uniques, shorten_key(read_key(frame)), self._clock()
        forgotten, *_ = known.pop((origin, number), (b"", 0, 0.0))
        known[origin, number] = (key, time_ns, received_at)
        self._key_bytes += len(key) - len(forgotten)
        while len(known) > _REMEMBERED_UNIQUES or self._key_bytes > _REMEMBERED_KEY_BYTES:
            self._key_bytes -= len(known.pop(next(iter(known)))[0])

    def note_told(self, epoch: int) -> None:
        """Note that the broker of this epoch knows of the unique events."""
        self.told = epoch

    def recount(self) -> None:
        """Count the keys anew, after an exception that may have interrupted `note_unique`."""
        self._key_bytes = sum(len(key) for key, *_ in self._uniques.values())

    def tell(self, epoch: int) -> Taken | None:
        """For the broker of `epoch`: which unique events others before it gave out; again, if the last time it may not have
        heard. None if there is nothing to tell."""
        if not self._uniques:
            self.told = epoch
        elif self.told != epoch:
            now = self._clock()
            return Taken(
                [[*name, time_ns, key.hex()] for name, (key, time_ns, _) in self._uniques.items()],
                [int((now - received_at) * 1000) for _, _, received_at in self._uniques.values()],
            )
        return None
