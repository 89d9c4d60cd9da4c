"""An exception at any opcode leaves a registration whole or not at all, and no match out of date.

The exception stands for one that a signal handler raises, or that is set on the thread from outside.
"""

from __future__ import annotations

import functools
import gc
import itertools
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

import pytest

import eventsh
from eventsh.core import registry as registry_module
from eventsh.core.registry import Match, Registry

S = TypeVar("S")
PACKAGE = str(Path(eventsh.__file__).parent)
DEADLINE_S = 30


class Interrupted(BaseException):
    """Raised out of a signal handler, as it were."""


def trace_opcodes(call: Callable[[], Any], see: Callable[[FrameType], None], files: str = PACKAGE) -> None:
    """Run `call`, and `see` each opcode of the files whose names begin so, before it is executed."""

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        if not frame.f_code.co_filename.startswith(files):
            return trace
        frame.f_trace_opcodes = True
        if event == "opcode":
            see(frame)
        return trace

    before = sys.gettrace()
    # Python 3.12 looks for such a frame in `settrace` alone.
    sys._getframe().f_trace_opcodes = True
    sys.settrace(trace)
    try:
        call()
    finally:
        sys.settrace(before)


def interrupted_at_each_opcode(begin: Callable[[], tuple[S, Callable[[], Any]]], files: str = PACKAGE) -> Iterator[S]:
    """The states that a call leaves which an exception ended: one for each place in the code, the first and the last time
    that the call comes there. `begin` makes a new state and the call."""
    places: list[tuple[str, int]] = []
    _, call = begin()
    trace_opcodes(call, lambda frame: places.append((frame.f_code.co_qualname, frame.f_lasti)), files)
    first = {place: number for number, place in reversed(list(enumerate(places)))}
    last = {place: number for number, place in enumerate(places)}
    assert len(first) > 10
    for number in sorted({*first.values(), *last.values()}):
        state, call = begin()
        steps = itertools.count()

        def raise_at(_: FrameType, number: int = number, steps: Iterator[int] = steps) -> None:
            if next(steps) == number:
                raise Interrupted

        with pytest.raises(Interrupted):
            trace_opcodes(call, raise_at, files)
        yield state


def together(*calls: Callable[[], Any]) -> list[Any]:
    """The results of calls that begin at one moment, each in a thread of its own."""
    barrier = threading.Barrier(len(calls))
    results: list[Any] = [None] * len(calls)

    def run(place: int) -> None:
        barrier.wait(DEADLINE_S)
        try:
            results[place] = calls[place]()
        except BaseException as error:  # noqa: BLE001 - the caller compares it
            results[place] = error

    threads = [threading.Thread(target=run, args=(place,), daemon=True) for place in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE_S)
        assert not thread.is_alive()
    return results


class Owner:
    def take(self, data: Any, event: str, source: str, pid: int | None) -> None: ...


def first(data: Any, event: str, source: str, pid: int | None) -> None: ...


def second(data: Any, event: str, source: str, pid: int | None) -> None: ...


def bystander(data: Any, event: str, source: str, pid: int | None) -> None: ...


def namesake() -> Callable[..., None]:
    """A function with the name of the last one, as a reloaded module has it."""

    def renamed(data: Any, event: str, source: str, pid: int | None) -> None: ...

    renamed.__qualname__ = "namesake"
    return renamed


KEYS = [("s", "a"), ("s", "b"), ("s", "other"), ("other", "a")]


class State:
    """A registry with handlers at all levels and with matches in use, and how it is to look afterwards."""

    def __init__(self) -> None:
        self.registry = Registry()
        self.owner: Owner | None = Owner()
        self.former, self.latter = namesake(), namesake()
        register = self.registry.register
        register(bystander)
        register(second, "s", "a", "b")
        register(self.owner.take, "s", "a", weak=True)
        register(self.former, "s", "a", "b", replace=True)
        self.matches: list[Match] = [self.registry.match(*key) for key in KEYS]
        self.known = self.registry.handlers()

    def levels(self, callback: Any) -> list[str]:
        return [str(handler.event) for handler in self.registry.handlers() if handler.callback == callback]

    def check(self) -> None:
        """Matches equal what the list of handlers says, and no handler is there twice."""
        handlers = self.registry.handlers()
        assert len({handler.number for handler in handlers}) == len(handlers)
        identities = [(handler.level, handler.callback) for handler in handlers]
        assert all(identities.count(identity) == 1 for identity in identities)
        for match, key in zip(self.matches, KEYS, strict=True):
            wanted = [
                *(handler for handler in handlers if handler.level == (None, None)),
                *(handler for handler in handlers if handler.level == (key[0], None)),
                *(handler for handler in handlers if handler.level == key),
            ]
            assert self.registry.match(*key) is match
            assert list(match.handlers) == wanted
            assert match.single == (wanted[0] if len(wanted) == 1 else None)
        # Gone handlers are inactive, but for replaced ones, which still get what they were given.
        for handler in self.known:
            if handler.callback is not self.former:
                assert handler.active == (handler in handlers)
        for handler in handlers:
            assert handler.callback is not None
            assert handler.active
            assert (handler.call == handler.callback) != handler.weak


def register_two(state: State) -> Any:
    return state.registry.register(first, "s", "a", "b")


def register_weak_two(state: State) -> Any:
    return state.registry.register(first, "s", "a", "b", weak=True)


def strengthen_one_and_add_one(state: State) -> Any:
    assert state.owner is not None
    return state.registry.register(state.owner.take, "s", "a", "b")


def unregister_two(state: State) -> Any:
    return state.registry.unregister(second, "s", "a", "b")


def replace_two(state: State) -> Any:
    return state.registry.register(state.latter, "s", "a", "b", replace=True)


@pytest.mark.parametrize(
    ("change", "callback_of", "before", "after"),
    [
        (register_two, lambda _: first, [], ["a", "b"]),
        (register_weak_two, lambda _: first, [], ["a", "b"]),
        (strengthen_one_and_add_one, lambda state: state.owner.take, ["a"], ["a", "b"]),
        (unregister_two, lambda _: second, ["a", "b"], []),
        (replace_two, lambda state: state.latter, [], ["a", "b"]),
    ],
)
def test_an_exception_at_any_opcode_leaves_all_events_registered_or_none(change, callback_of, before, after):
    def begin() -> tuple[State, Callable[[], Any]]:
        state = State()
        return state, functools.partial(change, state)

    seen = set()
    for state in interrupted_at_each_opcode(begin):
        callback = callback_of(state)
        levels = state.levels(callback)
        assert levels in (before, after)
        seen.add(tuple(levels))
        state.check()
        if change is replace_two:
            assert state.levels(state.former) == [event for event in ("a", "b") if event not in levels]
        if change is strengthen_one_and_add_one:
            weak = [handler.weak for handler in state.registry.handlers() if handler.callback == callback]
            assert weak == ([True] if levels == before else [False, False])
        # No lock stays taken.
        together(functools.partial(change, state))
        assert state.levels(callback) == after
        state.check()
    assert seen == {tuple(before), tuple(after)}


def test_an_exception_while_dead_handlers_are_dropped_leaves_them_to_the_next_call():
    def begin() -> tuple[State, Callable[[], Any]]:
        state = State()
        state.owner = None
        return state, functools.partial(state.registry.match, "s", "a")

    for state in interrupted_at_each_opcode(begin):
        assert len(state.registry.handlers()) == 5
        assert state.registry._dead == []
        state.check()


def test_an_exception_while_a_match_is_made_leaves_the_next_call_a_right_one(monkeypatch):
    # So small that halves change places.
    monkeypatch.setattr(registry_module, "_HALF_CACHE", len(KEYS))

    def begin() -> tuple[State, Callable[[], Any]]:
        state = State()
        return state, functools.partial(state.registry.match, "s", "new")

    for state in interrupted_at_each_opcode(begin):
        state.registry.register(first, "s")
        new = state.registry.match("s", "new")
        assert [handler.callback for handler in new.handlers] == [bystander, first]
        has_first = [first in [handler.callback for handler in match.handlers] for match in state.matches]
        assert has_first == [True, True, True, False]


def test_a_change_of_another_thread_just_before_the_exception_leaves_no_match_out_of_date():
    """The interrupted thread may have stored an earlier state after the other one had published its own."""

    def run(start: int, end: int) -> bool:
        """Whether the call ended before."""
        state, steps = State(), itertools.count()

        def see(frame: FrameType) -> None:
            if frame.f_code is Registry._refresh.__code__:
                step = next(steps)
                if step == start:
                    state.registry.register(second, "s", "other")
                if step == end:
                    raise Interrupted

        try:
            trace_opcodes(lambda: state.registry.register(first, "s", "other"), see)
        except Interrupted:
            state.check()
            return False
        return True

    for start in itertools.count():
        for end in itertools.count(start):
            if run(start, end):
                break
        if start == end:
            break
    assert start > 20


# --- re-entry by the same thread ---


def test_a_handler_of_warnings_may_register(monkeypatch):
    registry = Registry()
    registry.register(namesake(), "s", "e")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        monkeypatch.setattr(warnings, "showwarning", lambda *_, **__: registry.register(bystander, "s", "e"))
        registry.register(kept := lambda *_: None, "s", "e", weak=True)
        registry.unregister(bystander, "s", "e")
        registry.register(namesake(), "s", "e")
    names = [handler.name.rpartition(".")[2] for handler in registry.match("s", "e").handlers]
    assert names == ["namesake", kept.__name__, "bystander", "namesake"]


class Meddler:
    """Equal to nothing, and finds out by changing the registry."""

    def __init__(self, change: Callable[[Meddler], Any]) -> None:
        self.change = change
        self.depth = 0

    def __eq__(self, other: object) -> bool:
        if not self.depth:
            self.depth += 1
            self.change(self)
            self.depth -= 1
        return self is other

    __hash__ = None  # type: ignore[assignment]

    def __call__(self, data: Any, event: str, source: str, pid: int | None) -> None: ...


@pytest.mark.parametrize("call", ["register", "unregister"])
def test_a_comparison_of_callbacks_may_register_and_unregister(call):
    registry = Registry()

    def change(_: Meddler) -> None:
        registry.unregister(bystander, "s", "e")
        registry.register(second, "s", "e")
        registry.register(first, "s", "e")

    meddler = Meddler(change)
    match = registry.match("s", "e")
    registry.register(bystander, "s", "e")
    registry.register(meddler, "s", "e")
    getattr(registry, call)(first, "s", "e")
    left = [handler.callback for handler in match.handlers]
    assert sorted(map(id, left)) == sorted(map(id, [meddler, second, *([first] if call == "register" else [])]))


def test_a_comparison_that_registers_the_same_callback_registers_it_once():
    registry = Registry()
    registry.register(bystander, "s")
    meddler = Meddler(lambda own: registry.register(own, "s"))
    registry.register(meddler, "s")
    assert [handler.callback is meddler for handler in registry.match("s", "e").handlers] == [False, True]


def test_a_finalizer_of_a_removed_handler_may_register():
    registry = Registry()

    class Last:
        def __call__(self, data: Any, event: str, source: str, pid: int | None) -> None: ...

        def __del__(self) -> None:
            registry.register(first, "s")

    match = registry.match("s", "e")
    registry.register(last := Last(), "s")
    registry.unregister(last, "s")
    del last
    gc.collect()
    assert [handler.callback for handler in match.handlers] == [first]
