"""Row 20: what a poster keeps of its rate beside one client that floods the broker, in parts of that beside a burner of CPU."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable
from dataclasses import dataclass

from tests.benchmarks.flood import FLOODS, HERE, Bench

__all__ = ["LEAST_KEPT", "FloodReport", "flood"]

LEAST_KEPT = 0.6


@dataclass(frozen=True, slots=True)
class FloodReport:
    """`burner` is the poster's rate beside the burner, `kept` what it kept of that beside each flood: one figure a round."""

    burner: list[float]
    kept: dict[str, list[float]]

    @property
    def faults(self) -> list[str]:
        return [name for name, kept in self.kept.items() if statistics.median(kept) < LEAST_KEPT]

    def __str__(self) -> str:
        lines = [f"beside a burner of CPU {statistics.median(self.burner):,.0f} events/s"]
        for name, kept in self.kept.items():
            lines.append(f"{name}: {statistics.median(kept):.2f} kept ({min(kept):.2f} to {max(kept):.2f})")
        return "\n".join(lines)


def flood(rounds: int, say: Callable[[str], None], *, seconds: float = 1.5) -> FloodReport:
    """Measure each kind of flood in each round, next to the burner of that round."""
    bench = Bench(HERE, seconds)
    found = FloodReport([], {name: [] for name in FLOODS})
    with tempfile.TemporaryDirectory(prefix="eventsh-flood-") as directory:
        for number in range(rounds):
            for name in FLOODS:
                burner = bench.measure("burner", f"{directory}/b{number}{name}")
                rate = bench.measure(name, f"{directory}/f{number}{name}")
                found.burner.append(burner)
                found.kept[name].append(rate / burner)
            say(f"round {number + 1} of {rounds}")
    return found
