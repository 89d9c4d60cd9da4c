"""Decide which handlers get an event, and in what order. Calls none of them, and knows no thread and no clock.

One thread may register and unregister while another one matches, without a lock: a lock could be held by a thread that
a fork leaves behind, and would be paid for on every match. What makes it work under the GIL, in this order, always:

1. a change puts a handler into `_handlers`, or takes it out: one step of a dict;
2. it then sets a version that was never used before;
3. it then brings every Match that was given out up to date, in place.

Who builds a tuple notes the version first and looks at it again once the tuple can be seen. If it is still the same,
the change came earlier and is in the tuple, or it comes later and step 3 finds the Match.
"""

from __future__ import annotations

import warnings
import weakref
from collections import deque
from collections.abc import Callable, Iterable
from functools import partial
from inspect import iscoroutinefunction, ismethod, unwrap
from itertools import count
from types import CodeType, FunctionType
from typing import Any

from eventsh.errors import UsageError
from eventsh.event import check_name

__all__ = ["Call", "Handler", "Match", "Registry"]

Call = Callable[[Any, str, str, "int | None"], Any]
# A source and an event, None for "all of them".
_Level = tuple[str | None, str | None]

# A worker meets few kinds of events; the limit is there for names that are made up as they go, such as one an order.
# Two halves: when the young one is full, it takes the place of the old one. So a Match that is in use is always known,
# and is still brought up to date, even if 2,048 others are asked for during one run of events.
_HALF_CACHE = 2048

# How many timed calls of each handler are remembered: enough for a 99th percentile, and 8 KiB with their numbers.
_SAMPLE = 256


class Handler:
    """One registration of one callback at one level.

    `call` is what to call, always with (data, event, source, pid). It gives None and does nothing once the callback of
    a weak registration is gone. `active` is False from the moment that it is unregistered.
    """

    __slots__ = (
        "_referent",
        "_seconds",
        "active",
        "call",
        "calls",
        "errors",
        "event",
        "is_async",
        "location",
        "name",
        "number",
        "script",
        "source",
        "weak",
    )

    call: Call

    def __init__(
        self, number: int, callback: Call, level: _Level, *, weak: bool, on_death: Callable[[int], None]
    ) -> None:
        self.number = number
        self.source, self.event = level
        self.is_async = _is_async(callback)
        self.name = _name(callback)
        self.location = _location(callback)
        # The name of what brought it in from a shell; None for the program's own.
        self.script: str | None = None
        self.calls = 0
        self.errors = 0
        self._seconds: deque[float] = deque(maxlen=_SAMPLE)
        self.active = True
        self.weak = weak
        if weak:
            self._referent = _refer_weakly(callback, lambda _: on_death(number))
            self.call = _call_weakly(self._referent)
        else:
            self.strengthen(callback)

    def strengthen(self, callback: Call) -> None:
        """Hold the callback, as for one that was registered weakly and then again for good."""
        self.weak = False
        self._referent = lambda: callback
        self.call = callback

    @property
    def callback(self) -> Call | None:
        """What was registered; None once the callback of a weak registration is gone."""
        return self._referent()

    def note_seconds(self, seconds: float) -> None:
        """One call, of those that are timed, took so long."""
        self._seconds.append(seconds)

    @property
    def p99_s(self) -> float | None:
        """What 99 of 100 calls did not take longer than, of the last that were timed; None when none was."""
        ordered = sorted(self._seconds)
        return ordered[(len(ordered) * 99 + 99) // 100 - 1] if ordered else None

    def is_for(self, callback: Call, level: _Level) -> bool:
        """Whether this is the registration of `callback` at `level`."""
        if self.event != level[1] or self.source != level[0]:
            return False
        mine = self._referent()
        # A bound method is a new object each time that it is looked up; == knows.
        return mine is callback or bool(mine == callback)

    def __repr__(self) -> str:
        return f"<Handler {self.number} {self.name} ({self.location}) of {self.source or 'all'}/{self.event or 'all'}>"


class Match:
    """The handlers of one kind of event, in the order in which to call them. Changes in place when they change.

    So read `handlers` for each event. The tuple itself never changes: iterating over it skips nobody.
    """

    __slots__ = ("event", "handlers", "single", "source")

    def __init__(self, source: str, event: str) -> None:
        self.source = source
        self.event = event
        self.handlers: tuple[Handler, ...] = ()
        # The handler where it is the only one, and a sync one.
        self.single: Handler | None = None


class Registry:
    """Every handler of a process."""

    __slots__ = (
        "_dead",
        "_handlers",
        "_levels",
        "_numbers",
        "_old",
        "_versions",
        "ever_registered",
        "matches",
        "version",
    )

    def __init__(self) -> None:
        self.version = 0
        self.ever_registered = False
        self._versions = count(1)
        self._numbers = count(1)
        self._handlers: dict[int, Handler] = {}
        # Numbers of weak handlers whose callbacks are gone. Their callbacks die anywhere, in the midst of anything and
        # in any thread, so that is all that is done then.
        self._dead: list[int] = []
        # The handlers of each level, and the version that this was true at.
        self._levels: tuple[int, dict[_Level, tuple[Handler, ...]]] = (0, {})
        # The young half, by source and event. For `match`, and for whoever saves its call: to be looked up anew each
        # time, as halves change places.
        self.matches: dict[tuple[str, str], Match] = {}
        self._old: dict[tuple[str, str], Match] = {}

    def register(
        self, callback: Call, source: str | None = None, *events: str, weak: bool = False, stacklevel: int = 2
    ) -> bool:
        """Register `callback` for all events, for a source, or for events of a source. Gives True.

        What is registered already at a level stays as it is; one that was weak becomes strong if it is now. `weak`
        holds no reference, and warns when nothing else seems to. `stacklevel` is as warnings.warn takes it: 2 blames
        the caller of this, 3 the caller of that. Raises TypeError for what can't be called, and UsageError.
        """
        levels = _check(callback, source, events)
        if weak and isinstance(callback, FunctionType) and _is_local(callback):
            warnings.warn(
                f"{callback.__qualname__} ({_location(callback)}) is registered weakly, but nothing else may hold it:"
                " keep a reference to it for as long as it shall be called, or use register()",
                RuntimeWarning,
                stacklevel=stacklevel,
            )
        self.prune()
        # All of them first: a callback that can't be referred to weakly raises, and then none must be registered.
        known = list(self._handlers.values())
        missing = []
        for level in levels:
            present = next((handler for handler in known if handler.is_for(callback, level)), None)
            if present is None:
                missing.append(Handler(next(self._numbers), callback, level, weak=weak, on_death=self._dead.append))
            elif present.weak and not weak:
                present.strengthen(callback)
        for handler in missing:
            self._handlers[handler.number] = handler
        self.ever_registered = True
        if missing:
            self._publish(levels)
        return True

    def unregister(self, callback: Call, source: str | None = None, *events: str) -> bool:
        """Remove `callback` from just the level, or the events, named. False if it was at none of them.

        No call of it begins after this, but for the event that is being handled now. Raises as `register` does.
        """
        levels = _check(callback, source, events)
        self.prune()
        found = [
            handler
            for handler in list(self._handlers.values())
            if any(handler.is_for(callback, level) for level in levels)
        ]
        return self.remove(found)

    def match(self, source: str, event: str) -> Match:
        """The handlers for this kind of event: those of all events, of the source, of source and event."""
        self.prune()
        match = self.matches.get((source, event))
        return self._add_match(source, event) if match is None else match

    def handlers(self) -> list[Handler]:
        """Every handler that can still be called, in the order of registration."""
        self.prune()
        return sorted(self._handlers.values(), key=_number)

    def _add_match(self, source: str, event: str) -> Match:
        key = (source, event)
        match = self._old.get(key)
        if match is None:
            match = Match(source, event)
            # Filled before another thread can see it.
            self._refresh(match)
        if len(self.matches) >= _HALF_CACHE:
            self._old, self.matches = self.matches, {}
        match = self.matches.setdefault(key, match)
        # Once more, now that changes find it: the last one may have looked for it just before.
        self._refresh(match)
        return match

    def _refresh(self, match: Match) -> None:
        while True:
            version = self.version
            handlers = self._handlers_for(match.source, match.event)
            match.handlers = handlers
            match.single = handlers[0] if len(handlers) == 1 and not handlers[0].is_async else None
            if version == self.version:
                return

    def _handlers_for(self, source: str, event: str) -> tuple[Handler, ...]:
        levels = self._by_level()
        return levels.get((None, None), ()) + levels.get((source, None), ()) + levels.get((source, event), ())

    def _by_level(self) -> dict[_Level, tuple[Handler, ...]]:
        while True:
            version, levels = self._levels
            if version == self.version:
                return levels
            version = self.version
            grouped: dict[_Level, list[Handler]] = {}
            # Sorted, for two threads may have put theirs in other than in the order of their numbers.
            for handler in sorted(self._handlers.values(), key=_number):
                grouped.setdefault((handler.source, handler.event), []).append(handler)
            self._levels = (version, {level: tuple(handlers) for level, handlers in grouped.items()})

    def _publish(self, levels: Iterable[_Level]) -> None:
        self.version = next(self._versions)
        # The young half first: what leaves it meanwhile is then found in the old one.
        young = self.matches
        caches = (young, self._old)
        for source, event in levels:
            for cache in caches:
                for match in _matches_of(cache, source, event):
                    self._refresh(match)

    def prune(self) -> None:
        """Let go of weak handlers whose callbacks are gone."""
        if not self._dead:
            return
        dead = []
        while self._dead:
            try:
                dead.append(self._dead.pop())
            except IndexError:  # another thread took it
                break
        if dead:
            self.remove([handler for handler in map(self._handlers.get, dead) if handler is not None])

    def remove(self, handlers: list[Handler]) -> bool:
        """Remove these registrations. False if none of them was there any more."""
        removed = [handler for handler in handlers if self._handlers.pop(handler.number, None) is not None]
        for handler in removed:
            handler.active = False
        if removed:
            self._publish({(handler.source, handler.event) for handler in removed})
        return bool(removed)


def _number(handler: Handler) -> int:
    return handler.number


def _matches_of(cache: dict[tuple[str, str], Match], source: str | None, event: str | None) -> list[Match]:
    """Those that a change at this level concerns."""
    if source is None:
        return list(cache.values())
    if event is None:
        return [match for match in list(cache.values()) if match.source == source]
    match = cache.get((source, event))
    return [] if match is None else [match]


def _check(callback: object, source: object, events: tuple[object, ...]) -> list[_Level]:
    if not callable(callback):
        raise TypeError(f"a handler must be callable, not {type(callback).__name__}: {callback!r:.200}")
    if source is None:
        if events:
            raise UsageError(f"events {events!r:.200} need the source that they are of")
        return [(None, None)]
    plain = _plain(source, "source")
    # Each name once, in the order given.
    names = dict.fromkeys(_plain(event, "event") for event in events)
    return [(plain, name) for name in names] or [(plain, None)]


def _plain(value: object, word: str) -> str:
    check_name(value, word)
    # A subclass of str, such as an enum of strings, may have another hash than its value, and another text.
    return str.__str__(value)


def _refer_weakly(callback: Call, on_death: Callable[[Any], None]) -> Callable[[], Call | None]:
    # A plain weak reference to a bound method is dead at once, for nobody holds that object.
    return weakref.WeakMethod(callback, on_death) if ismethod(callback) else weakref.ref(callback, on_death)


def _call_weakly(referent: Callable[[], Call | None]) -> Call:
    def call(data: Any, event: str, source: str, pid: int | None) -> Any:
        callback = referent()
        return None if callback is None else callback(data, event, source, pid)

    return call


def _is_local(callback: FunctionType) -> bool:
    return "<locals>" in callback.__qualname__ or "<lambda>" in callback.__qualname__


def _innermost(callback: Any) -> Any:
    """What a functools.partial will call in the end."""
    while isinstance(callback, partial):
        callback = callback.func
    return callback


def _is_async(callback: Any) -> bool:
    callback = _innermost(callback)
    # `async def __call__` counts on the type alone, as calling looks it up there.
    return iscoroutinefunction(callback) or iscoroutinefunction(type(callback).__call__)


def _name(callback: Any) -> str:
    callback = _innermost(callback)
    name = getattr(callback, "__qualname__", None)
    return name if isinstance(name, str) else type(callback).__qualname__


def _location(callback: Any) -> str:
    """Where people find it: of what a decorator wraps, not of the decorator."""
    callback = _innermost(callback)
    if not hasattr(callback, "__code__") and not ismethod(callback):
        callback = vars(callback).get("__init__") if isinstance(callback, type) else type(callback).__call__
    try:
        code = unwrap(callback).__code__
    except (AttributeError, ValueError):
        return "unknown"
    return f"{code.co_filename}:{code.co_firstlineno}" if isinstance(code, CodeType) else "unknown"
