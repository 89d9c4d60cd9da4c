from __future__ import annotations

import threading

from eventsh.runtime.watchdog import Stall, Watchdog, look_period


def look_away() -> None: ...


def test_a_call_is_told_once_when_it_has_been_seen_for_the_timeout():
    stall: Stall[str] = Stall()
    assert [stall.look("a", now, 5.0) for now in (10.0, 12.0, 15.0, 16.0, 99.0)] == [None, None, 5.0, None, None]


def test_calls_that_change_are_never_told():
    stall: Stall[int] = Stall()
    assert {stall.look(number, float(number), 0.5) for number in range(100)} == {None}


def test_a_call_after_a_break_is_a_new_one():
    stall: Stall[str] = Stall()
    assert [stall.look(call, now, 5.0) for call, now in (("a", 0.0), (None, 4.0), ("a", 6.0))] == [None] * 3
    assert stall.look("a", 11.0, 5.0) == 5.0


def test_the_watchdog_looks_again_and_again_until_it_is_stopped():
    looked = threading.Semaphore(0)
    watchdog = Watchdog(looked.release, period_s=0.01)
    watchdog.start()
    assert looked.acquire(timeout=10)
    assert looked.acquire(timeout=10)
    watchdog.stop()
    watchdog._thread.join(10)
    assert not watchdog._thread.is_alive()


def test_the_watchdog_looks_often_enough_but_not_too_often():
    assert [look_period(timeout_s) for timeout_s in (0.0001, 4.0, 1e9)] == [0.01, 0.5, 1.0]


def test_a_watchdog_that_was_not_started_can_be_stopped():
    Watchdog(look_away, 1.0).stop()
