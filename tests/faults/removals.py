"""Row 26: the files of a live broker are removed under load, each and together, and second brokers come up."""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from tests.faults.campaign import Plan, Report, Say, finish, serve_pool, start_poster
from tests.faults.processes import Program, ask, endpoint, wait_until

__all__ = ["FILES", "LIMIT_S", "remove_files", "split_brokers", "work_beside"]

# Within which one broker has to remain, and to be found at the address.
LIMIT_S = 10.0
# What is removed together. A directory goes with all that is in it.
FILES: dict[str, tuple[str, ...]] = {
    "socket": ("e.sock",),
    "lock": ("e.sock.lock",),
    "log": ("e.sock.log",),
    "socket and lock": ("e.sock", "e.sock.lock"),
    "directory": ("",),
}


def remove(run: Path, names: tuple[str, ...]) -> None:
    for name in names:
        if not name:
            shutil.rmtree(run)
        else:
            (run / name).unlink(missing_ok=True)


def present(run: Path) -> set[str]:
    return set(os.listdir(run)) if run.exists() else set()


@contextmanager
def running(plan: Plan, path: Path, stack: ExitStack) -> Iterator[tuple[str, list[Program], list[Program]]]:
    """A pool of `plan.broker`'s kind: its address, what posts, and the workers that are programs of their own."""
    address = endpoint(plan.transport, path)
    if plan.broker == "serve":
        pool = serve_pool(plan, path, stack)
        posters = [start_poster(plan, path, address, number, stack) for number in range(1, plan.posters + 1)]
        yield address, posters, []
        assert pool.process.poll() is None
        return
    workers = [work_beside(plan, path, address, number, stack) for number in range(1, plan.workers + 1)]
    yield address, workers[: plan.posters], workers


def work_beside(plan: Plan, path: Path, address: str, number: int, stack: ExitStack) -> Program:
    """Start a worker that would start a broker, too; it posts if its number is one of a poster's."""
    options = {"timeout": plan.timeout_s, "unique_timeout": 3600.0, "linger": 1.0, "max_queue_len": plan.max_queue_len}
    program = Program(path, address, number, plan.rate, plan.slow, plan.seed, **options)
    stack.callback(program.end)
    assert program.hear() == "ready"
    return program


def broker_of(address: str) -> dict[str, Any] | None:
    state = ask(address)
    return None if state is None else state["broker"]


def remove_files(plan: Plan, path: Path, say: Say) -> Report:
    """Remove files again and again, all kinds in turn; the broker stays the same, and its files come back."""
    draw = random.Random(plan.seed)
    run, started, backs = path / "run", time.monotonic(), list[float]()
    with ExitStack() as stack, running(plan, path, stack) as (address, posters, workers):
        for poster in posters:
            poster.tell("post")
        before, files = broker_of(address), present(run)
        assert before is not None
        kinds = [kind for kind in FILES if kind != "log" or "e.sock.log" in files]
        for number in range(plan.kills):
            time.sleep(draw.uniform(0.0, plan.pause_s))
            kind = kinds[number % len(kinds)]
            remove(run, FILES[kind])
            removed_at = time.monotonic()
            wait_until(lambda: present(run) == files, f"{files} are back after {kind}", LIMIT_S)
            after = broker_of(address)
            assert after is not None, f"nobody answers after {kind} was removed and made anew"
            assert after["epoch"] == before["epoch"], f"another broker after {kind}"
            backs.append(time.monotonic() - removed_at)
            say(f"{number + 1}/{plan.kills}: {kind} is back after {backs[-1]:.2f} s")
        report = finish("26", plan, path, address, posters, workers, [], started, one_epoch=True)
        report.recovered_s += backs
        return report


def split_brokers(plan: Plan, path: Path, say: Say) -> Report:
    """Remove all files while the broker stands still, and have others start a second one; both are under load when the
    first goes on. It stays. With an even seed, a worker of the second one stands still meanwhile."""
    started, run = time.monotonic(), path / "run"
    with ExitStack() as stack, running(plan, path, stack) as (address, posters, workers):
        first = broker_of(address)
        assert first is not None
        # Its supervisor too: it keeps the lock.
        holders = [pid for pid in (first["supervisor"], first["pid"]) if pid]
        for pid in holders:
            os.kill(pid, signal.SIGSTOP)
            stack.callback(_go_on, pid)
        shutil.rmtree(run)
        others = [work_beside(plan, path, address, number, stack) for number in (plan.posters + 1, plan.posters + 2, 0)]
        second = broker_of(address)
        assert second is not None
        assert second["epoch"] != first["epoch"]
        everybody = [*posters, *others[:2]]
        for poster in everybody:
            poster.tell("post")
        wait_until(lambda: (broker_of(address) or first)["events"] > 50, "the second broker is under load")
        if plan.seed % 2 == 0:
            os.kill(others[2].pid, signal.SIGSTOP)
            stack.callback(_go_on, others[2].pid)
        for pid in holders:
            os.kill(pid, signal.SIGCONT)
        begun = time.monotonic()
        wait_until(lambda: not Path(f"/proc/{second['pid']}").exists(), "the second broker has ended", LIMIT_S)
        wait_until(lambda: (broker_of(address) or second)["epoch"] == first["epoch"], "the first one answers", LIMIT_S)
        took_s = time.monotonic() - begun
        say(f"one broker after {took_s:.2f} s")
        time.sleep(plan.pause_s)
        _go_on(others[2].pid)
        report = finish("26", plan, path, address, everybody, [*workers, *others], [], started, one_epoch=False)
        report.recovered_s.append(took_s)
        wait_until(lambda: "e.sock.lock" in present(run), "the lock is made anew", LIMIT_S)
        # On each side one runs it: they know nothing of each other.
        report.account.keys_twice = 0
        return report


def _go_on(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGCONT)
