"""Campaigns of faults from the command line: `python -m tests.faults --row 1 --kills 1000 --seed 7`.

Prints what was posted, handled, told, lost and handled twice, and how long it took until what was killed was back. The
exit status is 1 when something is not as promised; the ledgers are kept then.
"""

from __future__ import annotations

import argparse
import dataclasses
import random
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from tests.faults.campaign import Plan, Report, directory, kill_brokers, kill_workers
from tests.faults.clocks import LIBRARY, set_clocks
from tests.faults.cycles import run_cycles
from tests.faults.floods import flood
from tests.faults.garbage import Storm, storm_broker, storm_session
from tests.faults.heavy import GrowthReport, abuse, hang_workers, take_keys
from tests.faults.interruptions import WAYS, interrupt_posts
from tests.faults.jsons import TEXTS, abuse_json, draw_text
from tests.faults.killers import CASES, OwnWorkers, ServedWorkers, kill_by_events
from tests.faults.processes import TRANSPORTS, Served, ask, endpoint
from tests.faults.reloads import ReloadReport, reload_workers
from tests.faults.removals import remove_files, split_brokers
from tests.faults.slow import HANDLERS_S, LEAST_KEPT, QUEUES, slow_down
from tests.faults.soak import run_soak
from tests.faults.stops import StopReport, rss_bytes, stop_brokers, stop_workers
from tests.faults.uniques import kill_broker_and_workers

Campaign = Callable[[Plan, Path, Callable[[str], None]], Report | StopReport | ReloadReport]
ROWS: dict[int, Campaign] = {
    1: kill_workers,
    2: kill_brokers,
    3: stop_workers,
    4: stop_brokers,
    11: reload_workers,
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument(
        "--row",
        type=int,
        choices=(*ROWS, 7, 8, 12, 13, 15, 16, 17, 18, 19, 20, 21, 26),
        required=True,
        help="which row of FAULTS.md",
    )
    parser.add_argument(
        "--kills",
        type=int,
        default=20,
        help="how many faults; row 7: frames, row 8: texts, row 12: events, row 15: interruptions,"
        " row 17: seconds beside each slow worker, row 18: brokers, row 19: unique keys,"
        " row 20: rounds of floods,"
        " row 26: removals, and a tenth as many second brokers",
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--posters", type=int, default=2)
    parser.add_argument("--rate", type=float, default=400.0, help="posts a second, of each poster")
    parser.add_argument("--timeout", type=float, default=5.0, help="the option of that name")
    parser.add_argument("--broker", choices=("serve", "auto"), default="serve", help="rows 2 and 26: whose broker")
    parser.add_argument("--pause", type=float, default=0.6, help="seconds, at most, between all are back and a kill")
    parser.add_argument("--max-queue-len", type=int, default=10240, help="the option of that name")
    parser.add_argument("--no-doubles", action="store_true", help="never kill several at once")
    parser.add_argument(
        "--transport", choices=TRANSPORTS, default="unix", help="rows 1 to 4, 7, 11 and 26: what carries it"
    )
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
        max_queue_len=known.max_queue_len,
        doubles=not known.no_doubles,
        transport=known.transport,
    )
    if known.row == 7:
        return storm(known.kills, known.seed, known.transport)
    if known.row == 8:
        draw = random.Random(known.seed)
        with directory() as path:
            texts = abuse_json([*TEXTS, *(draw_text(draw) for _ in range(known.kills))], known.seed, path)
        print(texts, flush=True)
        return 1 if texts.faults else 0
    if known.row == 12:
        with directory() as path:
            soak = run_soak(known.kills, known.seed, path, say, workers=known.workers, posters=known.posters)
        print(soak, flush=True)
        return 1 if soak.faults else 0
    if known.row == 13:
        cycles = run_cycles(known.kills, known.seed, say)
        print(cycles, flush=True)
        return 1 if cycles.faults else 0
    if known.row == 16:
        return kill_each(known.workers)
    if known.row == 21:
        return kill_both(plan)
    if known.row == 15:
        return interrupt(known.kills)
    if known.row == 17:
        return slow(plan, known.kills)
    if known.row == 18:
        if LIBRARY is None:
            parser.error("row 18 sets clocks with libfaketime: install the package faketime")
        with directory() as path:
            clocks = set_clocks(known.kills, known.seed, path)
        print(clocks, flush=True)
        return 1 if clocks.faults else 0
    if known.row == 19:
        return heavy(known.kills, known.transport)
    if known.row == 20:
        floods = flood(known.kills, say)
        print(floods, flush=True)
        return 1 if floods.faults else 0
    if known.row == 26:
        if known.transport == "tcp":
            parser.error("row 26 is about files, and tcp has no socket's file: choose unix or shm")
        status = campaign(plan, remove_files)
        for number in range(max(1, known.kills // 10)):
            status |= campaign(dataclasses.replace(plan, seed=known.seed + number), split_brokers)
        return status
    return campaign(plan, ROWS[known.row])


def slow(plan: Plan, seconds: float) -> int:
    """Row 17: each pace of the slow handler, with each queue."""
    faults = 0
    # More than the fastest of them handles.
    plan = dataclasses.replace(plan, workers=3, posters=1, rate=3000.0)
    for handler_s in HANDLERS_S:
        for max_queue_len in QUEUES:
            with directory() as path:
                limited = dataclasses.replace(plan, max_queue_len=max_queue_len)
                found = slow_down(limited, path, say, handler_s=handler_s, seconds=seconds)
            print(found, flush=True)
            faults += bool(found.report.faults) + (found.kept < LEAST_KEPT)
    return 1 if faults else 0


def heavy(keys: int, transport: str) -> int:
    """Row 19: hung workers, raw clients, long keys."""
    faults = 0
    runs: list[Callable[[Path], GrowthReport]] = [
        lambda path: hang_workers(path, say, hung=1, transport=transport),
        lambda path: hang_workers(path, say, hung=3, transport=transport),
        lambda path: take_keys(path, keys=keys),
        lambda path: abuse(path, clients=10),
    ]
    for run in runs:
        with directory() as path:
            found = run(path)
        print(found, flush=True)
        faults += len(found.faults)
    return 1 if faults else 0


def interrupt(interruptions: int) -> int:
    """Interrupt posts so often by each way, 2,000 posts for each time."""
    faults = 0
    for by in WAYS:
        with directory() as path:
            report = interrupt_posts(2000 * interruptions, interruptions, by, path, timeout_s=60 + 2 * interruptions)
        print(report, flush=True)
        faults += report.faults
    return 1 if faults else 0


def kill_each(workers: int) -> int:
    """Every event that kills, in a pool of `serve` and in processes of a program's own."""
    faults = 0
    for start in (ServedWorkers, OwnWorkers):
        with directory() as path:
            report = kill_by_events(start(path, workers), workers, CASES, say)
        print(report, flush=True)
        faults += len(report.faults)
    return 1 if faults else 0


def kill_both(plan: Plan) -> int:
    """Kill the broker together with workers; the ledgers are kept where an event was lost or ran again without a reason."""
    keep = Path(tempfile.mkdtemp(prefix="evf-", dir="/tmp"))
    with directory(keep) as path:
        report = kill_broker_and_workers(plan, path, say)
    print(report, flush=True)
    if report.faults:
        print(f"FAULTS: the ledgers are in {keep}", flush=True)
        return 1
    shutil.rmtree(keep)
    return 0


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def campaign(plan: Plan, run: Campaign) -> int:
    keep = Path(tempfile.mkdtemp(prefix="evf-", dir="/tmp"))
    with directory(keep) as path:
        found = run(plan, path, say)
    print(found, flush=True)
    faults = found.faults if isinstance(found, Report) else found.report.faults
    if isinstance(found, ReloadReport) and found.faults:
        faults = {**faults, "changes": found.faults}
    if faults:
        print(f"FAULTS: {faults}; the ledgers are in {keep}", flush=True)
        return 1
    shutil.rmtree(keep)
    return 0


def storm(frames: int, seed: int, transport: str) -> int:
    """Row 7: most of the frames go to the rules themselves, a twentieth to a running broker, and as many to a client."""
    report = Storm(seed).run(frames)
    is_whole = report.handled == list(range(1, report.posted + 1))
    print(
        f"row 7, seed {seed}: {report.frames} frames in {report.connections} connections to the router in"
        f" {report.took_s:.0f} s, {report.refused} refused; {len(report.handled)} of {report.posted} events between them"
        f" handled{'' if is_whole else ', NOT IN ORDER'}; memory grew by {report.grew_bytes / 1e6:.1f} MB"
    )
    print(f"  to a client: {frames // 20} frames, refused {storm_session(seed, frames // 20)} times", flush=True)
    with directory() as path:
        pool = Served(path, endpoint(transport, path), 2)
        try:
            before = ask(pool.address)
            assert before is not None
            broker = before["broker"]["pid"]
            was = rss_bytes(broker)
            served = storm_broker(pool.address, seed, frames // 20, say)
            grew = (rss_bytes(broker) - was) / 1e6
            after = ask(pool.address)
        finally:
            status = pool.stop()
    print(
        f"  to a running broker: {served.frames} frames in {served.connections} connections in {served.took_s:.0f} s,"
        f" {served.refused} refused; its memory grew by {grew:.1f} MB"
    )
    same = after is not None and after["broker"]["pid"] == broker
    print(f"  the broker {'is the same' if same else 'DIED'}, and ended with status {status}", flush=True)
    return 0 if is_whole and same and status == 0 else 1


if __name__ == "__main__":
    sys.exit(main())
