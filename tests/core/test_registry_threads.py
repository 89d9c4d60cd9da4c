"""Threads that register, unregister and match at the same time."""

from __future__ import annotations

import functools
import gc
import sys
import threading
from typing import Any

import pytest

from eventsh.core import registry as registry_module
from eventsh.core.registry import Handler, Match, Registry
from tests.core.test_registry import Box, module_handler, tagged_handler
from tests.core.test_registry_interrupts import first, namesake, together


@pytest.fixture
def hasty_threads():
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.mark.parametrize("moment", [1, 2])
def test_a_change_while_a_match_is_put_together_is_in_it(moment, monkeypatch):
    registry, calls = Registry(), []
    handlers_for = registry_module._Snapshot.handlers_for

    def interrupted(snapshot: Any, source: str, event: str) -> tuple[Handler, ...]:
        handlers = handlers_for(snapshot, source, event)
        calls.append(event)
        if len(calls) == moment:
            registry.register(module_handler)  # as another thread would, just now
        return handlers

    monkeypatch.setattr(registry_module._Snapshot, "handlers_for", interrupted)
    assert len(registry.match("s", "e").handlers) == 1


def test_a_change_just_before_a_match_can_be_found_is_in_it():
    registry = Registry()

    class Interrupted(dict[tuple[str, str], Match]):
        def setdefault(self, key: Any, match: Any = None) -> Any:
            registry.register(module_handler)  # as another thread would, just now
            return super().setdefault(key, match)

    registry.matches = Interrupted()
    assert len(registry.match("s", "e").handlers) == 1


def test_what_one_thread_registers_another_one_matches_afterwards(hasty_threads, monkeypatch):
    # A small cache starts anew all the time, which is the hard case.
    monkeypatch.setattr(registry_module, "_HALF_CACHE", 4)
    registry = Registry()
    done = threading.Event()
    wrong: list[str] = []

    def change() -> None:
        for number in range(400):
            event = str(number % 7)
            level = ((), ("s",), ("s", event))[number % 3]
            registry.register(module_handler, *level)
            if not registry.match("s", event).handlers:
                wrong.append(f"{number}: not there after register")
            registry.unregister(module_handler, *level)
            if registry.match("s", event).handlers:
                wrong.append(f"{number}: still there after unregister")
        done.set()

    def match() -> None:
        number = 0
        while not done.is_set():
            number += 1
            registry.match("s", str(number % 11))

    assert together(change, match, match) == [None] * 3
    assert wrong == []
    assert all(registry.match("s", str(number)).handlers == () for number in range(11))


def test_threads_that_register_and_unregister_at_once_lose_nothing(hasty_threads):
    registry = Registry()
    matches: list[Match] = [registry.match("s", "e"), registry.match("s", "f")]

    def work(start: int) -> None:
        for number in range(start, start + 100):
            registry.register(functools.partial(tagged_handler, number), "s", "e")
            temporary = functools.partial(tagged_handler, number)
            registry.register(temporary, "s")
            registry.unregister(temporary, "s")
            box = Box([])
            registry.register(box.take, weak=True)
            del box

    assert together(*(functools.partial(work, start) for start in (0, 1000, 2000))) == [None] * 3
    gc.collect()
    numbers = [handler.number for handler in registry.handlers()]
    assert len(numbers) == 300
    assert numbers == sorted(set(numbers))
    assert [len(match.handlers) for match in matches] == [300, 0]


def test_threads_that_register_one_callback_at_once_register_it_once(hasty_threads):
    for _ in range(100):
        registry = Registry()
        calls = [functools.partial(registry.register, first, "s", "a", "b", weak=bool(weak)) for weak in range(3)]
        assert together(*calls) == [True] * 3
        assert [handler.event for handler in registry.handlers()] == ["a", "b"]
        # One of them asked for a strong reference.
        assert [handler.weak for handler in registry.handlers()] == [False, False]


def test_of_threads_that_unregister_one_callback_at_once_one_is_told_that_it_was_there(hasty_threads):
    for _ in range(100):
        registry = Registry()
        registry.register(first, "s", "a", "b")
        results = together(*[functools.partial(registry.unregister, first, "s", "a", "b")] * 3)
        assert sorted(results) == [False, False, True]
        assert registry.handlers() == []


def test_an_event_meets_the_replaced_handler_or_the_new_one(hasty_threads):
    registry = Registry()
    registry.register(namesake(), "s", "e", replace=True)
    match = registry.match("s", "e")
    done = threading.Event()
    counts: set[int] = set()

    def replace() -> None:
        for _ in range(300):
            registry.register(namesake(), "s", "e", replace=True)
        done.set()

    def look() -> None:
        while not done.is_set():
            counts.add(len(match.handlers))

    assert together(replace, replace, look) == [None] * 3
    assert counts == {1}
    assert len(registry.handlers()) == 1
