"""What a lot of latencies comes to: percentiles, and the bars of a histogram."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Latency", "summarize"]

# Upper ends of the bars, in microseconds: up to 5 s, three to a power of ten, as one sees them at equal distances.
_ENDS_US = tuple(step * 10**power for power in range(1, 7) for step in (1, 2, 5))


@dataclass(frozen=True, slots=True)
class Latency:
    """Microseconds. `bars` are (upper end, how many up to there and above the bar before), without empty ones at the
    ends; what took longer than all is in the last."""

    count: int
    p50: float
    p90: float
    p99: float
    p99_9: float
    max: float
    bars: tuple[tuple[int, int], ...]


def summarize(latencies_ns: Sequence[int]) -> Latency | None:
    """None when there is nothing to sum up."""
    if not latencies_ns:
        return None
    ordered = sorted(latencies_ns)
    p50, p90, p99, p99_9, most = (_percentile(ordered, share) for share in (0.5, 0.9, 0.99, 0.999, 1.0))
    return Latency(len(ordered), p50, p90, p99, p99_9, most, _bars(ordered))


def _percentile(ordered: Sequence[int], share: float) -> float:
    """The least of them that so large a part of all does not exceed."""
    rank = -int(-share * len(ordered) // 1)
    return ordered[max(rank, 1) - 1] / 1000


def _bars(ordered: Sequence[int]) -> tuple[tuple[int, int], ...]:
    last = max(1, min(len(_ENDS_US), bisect_left(_ENDS_US, ordered[-1] / 1000) + 1))
    first = min(last - 1, bisect_left(_ENDS_US, ordered[0] / 1000))
    below = 0
    bars = []
    for end in _ENDS_US[first:last]:
        up_to = len(ordered) if end == _ENDS_US[last - 1] else _count_up_to(ordered, end * 1000)
        bars.append((end, up_to - below))
        below = up_to
    return tuple(bars)


def _count_up_to(ordered: Sequence[int], limit: int) -> int:
    return bisect_left(ordered, limit + 1)
