"""Epoch numbers: what one holds, and which of two is the later one. No clock.

Theory of operation: an epoch is one integer, for the wire and recordings have 64 bits for it, and version 0.1.0 compares
the integers. It holds a digest of the clock that measured it in the high bits, and the time since that clock began in the
low ones:

    0 | 1 | digest of the clock, 16 bits | time in units of 4,096 ns, 46 bits

A clock is one boot of one host. Times of two clocks can't be compared, so only epochs of one clock have an order, with one
exception: a broker knows that its own boot is the latest boot of its host, and so that epochs of all other clocks came
before its own. Wall clocks give no order at all: people set them.

Version 0.1.0 took nanoseconds since 1970, which stay below bit 62 until the year 2116. These epochs count as one clock
that is older than all others, and is not another boot: the broker was replaced by a newer version, on one host.
"""

from __future__ import annotations

from binascii import crc32

__all__ = ["EpochOrder", "encode_epoch"]

_NAMES_CLOCK = 1 << 62
_DIGEST_BITS = 16
# 46 bits of units of 2**12 ns last for 9 years of uptime. Two brokers of one address can't start within one unit.
_TIME_BITS = 46
_UNIT_BITS = 12


def encode_epoch(clock: bytes, age_ns: int) -> int:
    """Return the number of an epoch that begins now.

    Args:
        clock: The identity of the clock, the same for all processes that may compare its times.
        age_ns: The time by that clock. It never decreases.
    """
    units = age_ns >> _UNIT_BITS
    # A clock that has run for longer than the low bits hold counts as another clock from then on, and never as younger.
    laps = units >> _TIME_BITS
    digest = crc32(clock + b"%d" % laps) & ((1 << _DIGEST_BITS) - 1)
    return _NAMES_CLOCK | digest << _TIME_BITS | units & ((1 << _TIME_BITS) - 1)


def _clock_of(epoch: int) -> int:
    """Return the digest of an epoch's clock with the bit that marks it; 0 for all epochs of version 0.1.0."""
    return epoch >> _TIME_BITS if epoch & _NAMES_CLOCK else 0


class EpochOrder:
    """The order of epochs as the broker of epoch `own` knows it."""

    __slots__ = ("_clock",)

    def __init__(self, own: int) -> None:
        self._clock = _clock_of(own)

    def is_later(self, epoch: int, other: int) -> bool:
        """Return whether `epoch` is known to have begun after `other`."""
        rank, other_rank = self._rank(epoch), self._rank(other)
        if rank == other_rank:
            return _clock_of(epoch) == _clock_of(other) and epoch > other
        return rank > other_rank

    def key(self, epoch: int) -> tuple[int, int]:
        """Return a sort key that agrees with `is_later`. Epochs without a known order come in some fixed order."""
        return self._rank(epoch), epoch

    def _rank(self, epoch: int) -> int:
        clock = _clock_of(epoch)
        if clock == self._clock:
            return 2
        return 1 if clock else 0

    def is_of_other_boot(self, epoch: int) -> bool:
        """Return whether an epoch ended with its host, so that nobody may know any more what was confirmed in it."""
        return _clock_of(epoch) not in (0, self._clock)
