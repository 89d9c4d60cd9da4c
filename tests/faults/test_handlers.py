"""Row 5 of FAULTS.md, end to end: a handler that behaves badly in one worker, and what the other one has of it."""

from __future__ import annotations

import itertools
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from eventsh.api import Events
from tests.faults.campaign import directory
from tests.faults.ledger import Kind, read_lives
from tests.faults.processes import DEADLINE_S, Served, ask, wait_until

BAD_HANDLERS = str(Path(__file__).with_name("bad_handlers.py"))
TIMEOUT_S = 2.0
EVENTS = 200


_posters = itertools.count(1)


@contextmanager
def serving() -> Iterator[Served]:
    with directory() as path:
        pool = Served(path, f"unix:{path}/run/e.sock", 2, f"--timeout={TIMEOUT_S}s", handlers=BAD_HANDLERS)
        try:
            yield pool
        finally:
            # One that hangs does not stop by itself, and a second signal kills at once.
            pool.process.terminate()
            with suppress(subprocess.TimeoutExpired):
                pool.process.wait(1.0)
            if pool.process.poll() is None:
                pool.process.terminate()
                pool.process.wait(DEADLINE_S)


@pytest.fixture
def pool() -> Iterator[Served]:
    with serving() as pool:
        yield pool


@pytest.fixture(scope="module")
def lasting_pool() -> Iterator[Served]:
    """For what every worker outlives."""
    with serving() as pool:
        yield pool


def numbers(pool: Served, slot: int, poster: int) -> list[list[int]]:
    """What each process of a slot handled of a poster, in its order."""
    return [
        [record.number for record in records if record.kind == Kind.HANDLED and record.poster == poster]
        for life in read_lives(pool.directory)
        if (records := list(life.records())) and records[0].slot == slot
    ]


def workers(pool: Served) -> dict[int, int]:
    state = ask(pool.address)
    assert state is not None
    return {worker["worker_id"]: worker["pid"] for worker in state["workers"]}


def post(pool: Served, event: str, data: float | None = None) -> int:
    """Half of the events, the bad one, and the other half; the number of their poster."""
    poster = next(_posters)
    with Events(pool.address, broker="never", role="observer") as events:
        events.wait_ready(DEADLINE_S)
        for number in range(1, EVENTS + 1):
            if number == EVENTS // 2:
                events.post("bad", event, data)
            events.post("load", "e", [poster, number])
        events.flush(DEADLINE_S)
    return poster


ALL = list(range(1, EVENTS + 1))


@pytest.mark.parametrize(
    ("event", "data", "warning"),
    [
        ("raise", None, "ValueError: bad on purpose"),
        ("slow", TIMEOUT_S * 1.5, "misbehave"),
    ],
)
def test_what_a_handler_does_is_told_with_its_name_and_no_event_is_lost_in_any_worker(
    lasting_pool, event, data, warning
):
    pool = lasting_pool
    before = workers(pool)
    poster = post(pool, event, data)
    wait_until(lambda: numbers(pool, 1, poster) == [ALL], "the other worker has all")
    wait_until(lambda: numbers(pool, 0, poster) == [ALL], "its own worker has all")
    wait_until(lambda: warning in pool.log, f"{warning} is logged")
    assert "misbehave" in pool.log
    assert workers(pool) == before


def test_a_handler_that_exits_has_its_worker_stop_in_good_order_and_no_event_is_lost_or_doubled(pool):
    before = workers(pool)
    poster = post(pool, "exit")
    wait_until(lambda: numbers(pool, 1, poster) == [ALL], "the other worker has all")
    wait_until(lambda: "ended: exit status 3; next start" in pool.log, "its end is told with its status")
    wait_until(lambda: sum(map(len, numbers(pool, 0, poster))) >= EVENTS, "its own place has all")
    assert sorted(itertools.chain.from_iterable(numbers(pool, 0, poster))) == ALL
    wait_until(lambda: workers(pool).get(0) not in (None, before[0]), "there is another one in its place")
    assert workers(pool)[1] == before[1]


def test_a_handler_that_hangs_keeps_its_own_worker_alone_and_is_named(pool):
    poster = post(pool, "hang")
    wait_until(lambda: numbers(pool, 1, poster) == [ALL], "the other worker has all")
    wait_until(lambda: "misbehave" in pool.log, "the handler is named")
    assert numbers(pool, 0, poster) == [ALL[: EVENTS // 2 - 1]]


def test_a_handler_that_ends_its_process_has_it_restarted_ever_more_slowly_and_the_others_go_on(pool):
    poster = post(pool, "die")
    wait_until(lambda: numbers(pool, 1, poster) == [ALL], "the other worker has all")
    wait_until(lambda: pool.log.count("exit status 3") >= 2, "it was restarted and has died again")
    assert "worker 0" in pool.log
    # It gets the same event again and again, but never more than a few times in 10 s.
    assert pool.log.count("exit status 3") <= 6
    assert len(numbers(pool, 1, poster)) == 1


@pytest.mark.parametrize("event", ["fork and exit", "fork and return"])
def test_a_handler_that_forks_does_not_have_events_handled_twice(lasting_pool, event):
    pool = lasting_pool
    before = workers(pool)
    poster = post(pool, event)
    wait_until(lambda: numbers(pool, 1, poster) == [ALL], "the other worker has all")
    wait_until(lambda: sum(map(len, numbers(pool, 0, poster))) >= EVENTS, "its own worker has all")
    assert numbers(pool, 0, poster) == [ALL]
    assert workers(pool)[1] == before[1]
