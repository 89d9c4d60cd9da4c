"""How many events a second go from one poster to four workers, as a share of what Python can do at all.

    python tests/benchmarks/throughput.py [--events 1000000] [--rounds 3] [--workers 4] [--api async|thread|both|all]

Rounds of what `eventsh bench` measures once: the ceiling, eventsh through AsyncEvents and through Events, and with
`all` also through AsyncEvents with 20 sources in random order, where hardly two neighbours share a source and the
ceiling is measured with those too. Interleaved; medians are printed. Ends with status 1 when an event was lost,
doubled or out of order.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial

from eventsh.commands.bench import Ceiling, LoadResult, measure, measure_ceiling
from eventsh.commands.load import Load

# What is measured, by the name of a row: which API, and of how many sources.
ROWS = {"async": ("async", 1), "thread": ("thread", 1), "mixed": ("async", 20)}
ROWS_OF_API = {"async": ["async"], "thread": ["thread"], "both": ["async", "thread"], "all": list(ROWS)}


def say_nothing(name: str, part: float) -> None:
    pass


def note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


class Round:
    """One time through all rows."""

    def __init__(self, load: Load, workers: int, rows: list[str], address: str) -> None:
        self.ceilings: dict[int, Ceiling] = {}
        self.results: dict[str, LoadResult] = {}
        for row in rows:
            api, sources = ROWS[row]
            mixed = replace(load, sources=sources)
            if sources not in self.ceilings:
                self.ceilings[sources] = asyncio.run(measure_ceiling(mixed, workers, say_nothing))
            self.results[row] = asyncio.run(measure(mixed, workers, address, api, say_nothing))

    def ceiling(self, row: str) -> Ceiling:
        return self.ceilings[ROWS[row][1]]

    def share(self, row: str) -> float:
        return self.results[row].posts_per_s / self.ceiling(row).posts_per_s

    def cpu_us(self, row: str, part: str) -> float:
        """Microseconds of CPU an event that a part of the pool takes."""
        return (self.results[row].cpu_s[part] or 0.0) / self.results[row].events * 1e6

    def cpu_share(self, row: str) -> float:
        """The CPU time of the ceiling as a part of that of eventsh: on a busy machine it says more than the clock."""
        return self.ceiling(row).cpu_s / sum(used or 0.0 for used in self.results[row].cpu_s.values())


def print_row(row: str, rounds: list[Round]) -> None:
    def median(value: Callable[[Round], float]) -> float:
        return statistics.median(map(value, rounds))

    rate = median(lambda played: played.results[row].posts_per_s)
    ceiling = median(lambda played: played.ceiling(row).posts_per_s)
    share, cpu_share = median(lambda played: played.share(row)), median(lambda played: played.cpu_share(row))
    used = [median(partial(Round.cpu_us, row=row, part=part)) for part in ("posters", "broker", "workers")]
    cells = "  ".join(f"{value:5.2f}" for value in used)
    print(f"{row:8}{rate:>12,.0f}{ceiling:>12,.0f}{share:>8.2f}{cpu_share:>8.2f}   {cells}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--api", choices=list(ROWS_OF_API), default="both")
    parser.add_argument("--address", default="unix", help="of the broker; a scheme alone will do")
    options = parser.parse_args()
    rows = ROWS_OF_API[options.api]
    rounds: list[Round] = []
    for number in range(options.rounds):
        rounds.append(Round(Load(options.events), options.workers, rows, options.address))
        shares = "  ".join(f"{row} {rounds[-1].share(row):.2f}" for row in rows)
        note(f"round {number + 1}: ceiling {rounds[-1].ceiling(rows[0]).posts_per_s:,.0f} posts/s; of it {shares}")
    print(f"{options.events:,} events of 65 bytes, {options.workers} workers, medians of {options.rounds} rounds")
    print(f"{'':8}{'posts/s':>12}{'ceiling':>12}{'share':>8}{'of CPU':>8}   us of CPU an event: poster, broker, others")
    for row in rows:
        print_row(row, rounds)
    if any(result.lost or result.out_of_order for played in rounds for result in played.results.values()):
        sys.exit("events were lost, doubled or out of order")


if __name__ == "__main__":
    main()
