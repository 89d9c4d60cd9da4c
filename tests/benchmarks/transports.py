"""What the transports carry, in turn, as a multiple of what unix sockets do.

    python tests/benchmarks/transports.py [--rounds 5]

Ends with status 1 when an event was lost, doubled or out of order.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
from collections import defaultdict

from eventsh.commands.bench import measure
from eventsh.commands.load import Load

SCHEMES = ("unix", "shm", "tcp")
# Bytes of an event's data, and how many of them take about a second.
LOADS = {65: 400_000, 1024: 200_000, 65_536: 10_000, 1_000_000: 600}
WORKERS = 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    is_whole = True
    print(f"| bytes of data | {' | '.join(f'{scheme}, posts/s' for scheme in SCHEMES)} | shm to unix | tcp to unix |")
    print("| --- | --- | --- | --- | --- | --- |", flush=True)
    for size, events in LOADS.items():
        rates: dict[str, list[float]] = defaultdict(list)
        for _ in range(options.rounds):
            for scheme in SCHEMES:
                found = asyncio.run(measure(Load(events, size=size), WORKERS, scheme, "async", lambda *_: None))
                rates[scheme].append(found.posts_per_s)
                is_whole = is_whole and not (found.lost or found.out_of_order)
        cells = [f"{statistics.median(rates[scheme]):,.0f}" for scheme in SCHEMES]
        for scheme in SCHEMES[1:]:
            # Of each round by itself: both met the same moment of the machine.
            ratios = [one / unix for one, unix in zip(rates[scheme], rates["unix"], strict=True)]
            cells.append(f"{statistics.median(ratios):.2f}")
        print(f"| {size:,} | {' | '.join(cells)} |", flush=True)
    if not is_whole:
        sys.exit("events were lost, doubled or out of order")


if __name__ == "__main__":
    main()
