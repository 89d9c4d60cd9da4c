"""Row 17: one worker moves, but is slower than the load; what the others keep of their rate."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from tests.faults.campaign import Plan, Report, finish, serve_pool, start_poster
from tests.faults.ledger import Kind, read_lives
from tests.faults.processes import ask, wait_until

__all__ = ["HANDLERS_S", "LEAST_KEPT", "QUEUES", "SlowReport", "slow_down"]

HANDLERS_S = (0.0005, 0.001, 0.005, 0.05)
QUEUES = (500, 10240)
LEAST_KEPT = 0.95

_HANDLERS = str(Path(__file__).with_name("slow_handlers.py"))
_SLOW_SLOT = 1
_BEFORE_S = 3.0
# What is held when the budget ends is worked off.
_LATE_S = 0.2


@dataclass(frozen=True, slots=True)
class SlowReport:
    """What the others did before the worker was slow, and from `timeout` after its queue was full."""

    report: Report
    handler_s: float
    before: float
    """Events a second, each."""
    beside: float

    @property
    def kept(self) -> float:
        return self.beside / self.before

    def __str__(self) -> str:
        return (
            f"{self.report}\n  a handler of {self.handler_s * 1e3:g} ms, max_queue_len {self.report.plan.max_queue_len}:"
            f" the others {self.before:.0f} events/s before, {self.beside:.0f} beside it, {self.kept:.3f} kept"
        )


def slow_down(plan: Plan, path: Path, say: Callable[[str], None], *, handler_s: float, seconds: float) -> SlowReport:
    """Make one worker slow, and look at the others for `seconds`, from `timeout` after its queue was first full."""
    plan = replace(plan, slow=0.0)
    started = time.monotonic()
    slow = path / "slow"
    with ExitStack() as stack:
        address = serve_pool(plan, path, stack, _HANDLERS).address
        posters = [start_poster(plan, path, address, number, stack) for number in range(1, plan.posters + 1)]
        for poster in posters:
            poster.tell("post")
        wait_until(lambda: _handled(address) > plan.rate, "the load has begun")
        before = _window(_BEFORE_S)
        # Whole at once: the worker reads it at its next event.
        (path / "slow.new").write_text(str(handler_s))
        (path / "slow.new").rename(slow)
        stack.callback(slow.unlink, missing_ok=True)
        wait_until(lambda: _queued(address) >= plan.max_queue_len, "its queue is full", 120.0)
        say(f"{handler_s * 1e3:g} ms: full after {time.monotonic() - started:.0f} s")
        # Not the first drop: to wait for that would leave out the very time in which the others are held up for too long.
        time.sleep(plan.timeout_s + _LATE_S)
        beside = _window(seconds)
        slow.unlink()
        report = finish("17", plan, path, address, posters, [], [], started, one_epoch=True)
    rates = [_rate(path, *window) for window in (before, beside)]
    return SlowReport(report, handler_s, *rates)


def _window(seconds: float) -> tuple[int, int]:
    begin = time.monotonic_ns()
    time.sleep(seconds)
    return begin, time.monotonic_ns()


def _workers(address: str) -> list[dict[str, int | str]]:
    state = ask(address)
    return [] if state is None else state["workers"]


def _handled(address: str) -> int:
    return max((int(worker["handled"]) for worker in _workers(address)), default=0)


def _queued(address: str) -> int:
    return sum(int(worker["queued"]) for worker in _workers(address) if worker["worker_id"] == _SLOW_SLOT)


def _rate(path: Path, begin: int, end: int) -> float:
    """Events a second that the other workers handled, each."""
    counts = [
        sum(record.kind == Kind.HANDLED and begin <= record.time_ns < end for record in life.records())
        for life in read_lives(path)
        if any(record.kind == Kind.STARTED and record.slot not in (_SLOW_SLOT, 0xFFFF) for record in life.records())
    ]
    return sum(counts) / len(counts) / ((end - begin) / 1e9)
