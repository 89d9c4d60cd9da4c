"""Campaigns of faults from the command line: `python -m tests.faults --row 1 --kills 1000 --seed 7`.

Prints what was posted, handled, told, lost and handled twice, and how long it took until what was killed was back. The
exit status is 1 when something is not as promised; the ledgers are kept then.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from tests.faults.campaign import Plan, directory, kill_brokers, kill_workers


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--row", type=int, choices=(1, 2), required=True, help="which row of FAULTS.md")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--posters", type=int, default=2)
    parser.add_argument("--rate", type=float, default=400.0, help="posts a second, of each poster")
    parser.add_argument("--timeout", type=float, default=5.0, help="the option of that name")
    parser.add_argument("--broker", choices=("serve", "auto"), default="serve", help="row 2: whose broker")
    parser.add_argument("--pause", type=float, default=0.6, help="seconds, at most, between all are back and a kill")
    parser.add_argument("--no-doubles", action="store_true", help="never kill several at once")
    known = parser.parse_args()
    plan = Plan(
        kills=known.kills,
        seed=known.seed,
        workers=known.workers,
        posters=known.posters,
        rate=known.rate,
        timeout_s=known.timeout,
        broker=known.broker,
        pause_s=known.pause,
        doubles=not known.no_doubles,
    )
    keep = Path(tempfile.mkdtemp(prefix="evf-", dir="/tmp"))
    campaign = kill_workers if known.row == 1 else kill_brokers
    with directory(keep) as path:
        report = campaign(plan, path, lambda text: print(text, file=sys.stderr, flush=True))
    print(report, flush=True)
    if report.faults:
        print(f"FAULTS: {report.faults}; the ledgers are in {keep}", flush=True)
        return 1
    for file in keep.glob("*.ledger"):
        file.unlink()
    return 0


if __name__ == "__main__":
    sys.exit(main())
