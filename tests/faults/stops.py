"""Rows 3 and 4: what stands still for a while, a worker or the broker, and goes on later."""

from __future__ import annotations

import os
import random
import signal
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from tests.faults.account import percentile
from tests.faults.campaign import Plan, Report, finish, serve_pool, start_poster
from tests.faults.ledger import Kind, read_lives
from tests.faults.processes import ask, wait_until

__all__ = ["Span", "StopReport", "rss_bytes", "stop_brokers", "stop_workers"]

Say = Callable[[str], None]

_WINDOW_S = 1.0
# Acks of what is handled are up to 20 ms late, which are so many events at the highest rates here.
_UNDER_WAY = 200


@dataclass(frozen=True, slots=True)
class Span:
    """What the workers that go on did in a span of time."""

    rate: float
    """Events handled a second, by each."""
    latency_p50_s: float
    latency_p99_s: float


@dataclass(slots=True)
class StopReport:
    """A report, and how the others fared: with everybody there, and beside one that stands still."""

    report: Report
    before: list[Span] = field(default_factory=list)
    during: list[Span] = field(default_factory=list)
    broker_grew_bytes: int = 0
    poster_grew_bytes: int = 0

    def __str__(self) -> str:
        lines = [str(self.report)]
        for name, spans in (("with everybody", self.before), ("beside one that stands still", self.during)):
            if spans:
                rate = percentile([span.rate for span in spans], 0.5)
                p50 = percentile([span.latency_p50_s for span in spans], 0.5)
                p99 = percentile([span.latency_p99_s for span in spans], 0.5)
                lines.append(
                    f"  {name}: {rate:.0f} events/s each, latency p50 {p50 * 1e3:.2f} ms, p99 {p99 * 1e3:.2f} ms"
                )
        grew = (self.broker_grew_bytes / 1e6, self.poster_grew_bytes / 1e6)
        lines.append("  memory grew at most by {:.1f} MB in the broker, {:.1f} MB in a poster".format(*grew))
        return "\n".join(lines)


def rss_bytes(pid: int) -> int:
    """The memory that a process has in RAM."""
    with open(f"/proc/{pid}/statm") as statm:
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@contextmanager
def _stopped(pid: int) -> Iterator[None]:
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


def stop_workers(plan: Plan, path: Path, say: Say) -> StopReport:
    """Row 3: one worker at a time stands still for longer than `timeout`."""
    plan = replace(plan, slow=0.0)
    draw = random.Random(plan.seed)
    started, grew = time.monotonic(), 0
    windows: list[tuple[int, int, int, bool]] = []
    with ExitStack() as stack:
        address = serve_pool(plan, path, stack).address
        posters = [start_poster(plan, path, address, number, stack) for number in range(1, plan.posters + 1)]
        for poster in posters:
            poster.tell("post")
        for number in range(plan.kills):
            state = ask(address)
            assert state is not None
            slot = draw.randrange(plan.workers)
            pid = next(worker["pid"] for worker in state["workers"] if worker["worker_id"] == slot)
            broker = state["broker"]["pid"]
            _await_idle(address, None)
            windows.append(_window(slot, is_stopped=False))
            before = rss_bytes(broker)
            with _stopped(pid):
                wait_until(lambda slot=slot: _is_dropping(address, slot), "its events are dropped", 60.0)  # type: ignore[misc]
                # What waited while the queue was full comes at once, and is worked off first.
                _await_idle(address, slot)
                windows.append(_window(slot, is_stopped=True))
                grew = max(grew, rss_bytes(broker) - before)
                time.sleep(draw.uniform(0.0, plan.pause_s))
            wait_until(lambda slot=slot: not _is_dropping(address, slot), "it is given events again", 60.0)  # type: ignore[misc]
            say(f"{number + 1}/{plan.kills} stops after {time.monotonic() - started:.0f} s")
        report = finish("3", plan, path, address, posters, [], [], started, one_epoch=True)
    spans = _spans(path, windows)
    return StopReport(
        report,
        [span for span, window in zip(spans, windows, strict=True) if not window[3]],
        [span for span, window in zip(spans, windows, strict=True) if window[3]],
        broker_grew_bytes=grew,
    )


def _window(slot: int, *, is_stopped: bool) -> tuple[int, int, int, bool]:
    begin = time.monotonic_ns()
    time.sleep(_WINDOW_S)
    return begin, time.monotonic_ns(), slot, is_stopped


def _await_idle(address: str, but: int | None) -> None:
    """Wait until no worker has more queued than what is under way; the slot `but` is not waited for."""

    def look() -> bool:
        state = ask(address)
        return state is not None and all(
            worker["queued"] < _UNDER_WAY or worker["worker_id"] == but for worker in state["workers"]
        )

    wait_until(look, "the queues are short")


def _is_dropping(address: str, slot: int) -> bool:
    state = ask(address)
    return state is not None and any(
        worker["worker_id"] == slot and worker["state"] == "dropping" for worker in state["workers"]
    )


def _spans(path: Path, windows: list[tuple[int, int, int, bool]]) -> list[Span]:
    """What the workers of the other slots did in each window, by when it was posted."""
    posted: dict[tuple[int, int], int] = {}
    lives = read_lives(path)
    for life in lives:
        for record in life.records():
            if record.kind == Kind.POSTED:
                posted[record.poster, record.number] = record.time_ns
    handled: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for life in lives:
        for record in life.records():
            if record.kind == Kind.HANDLED:
                # Written down by its poster a little after it was posted, so it may already have been handled.
                waited = max(0, record.time_ns - posted[record.poster, record.number])
                handled[record.slot].append((record.time_ns, waited))
    spans = []
    for begin, end, slot, _ in windows:
        waits = [
            wait / 1e9 for other, done in handled.items() if other != slot for at, wait in done if begin <= at < end
        ]
        rate = len(waits) / max(1, len(handled) - 1) / ((end - begin) / 1e9)
        spans.append(Span(rate, percentile(waits, 0.5), percentile(waits, 0.99)))
    return spans


def stop_brokers(plan: Plan, path: Path, say: Say) -> StopReport:
    """Row 4: the broker stands still until no poster has room left, and for `timeout` more."""
    draw = random.Random(plan.seed)
    started, grew = time.monotonic(), 0
    with ExitStack() as stack:
        address = serve_pool(plan, path, stack).address
        posters = [start_poster(plan, path, address, number, stack) for number in range(1, plan.posters + 1)]
        for poster in posters:
            poster.tell("post")
        for number in range(plan.kills):
            state = ask(address)
            assert state is not None
            _await_idle(address, None)
            before = [rss_bytes(poster.pid) for poster in posters]
            with _stopped(state["broker"]["pid"]):
                # No worker made progress for longer than `timeout` then, with a full queue at last.
                full_after_s = plan.max_queue_len / plan.rate
                time.sleep(full_after_s + plan.timeout_s + draw.uniform(0.0, plan.pause_s))
                grew = max(grew, *(rss_bytes(poster.pid) - was for poster, was in zip(posters, before, strict=True)))
            say(f"{number + 1}/{plan.kills} stops after {time.monotonic() - started:.0f} s")
        report = finish("4", plan, path, address, posters, [], [], started, one_epoch=True)
    return StopReport(report, poster_grew_bytes=grew)
