"""Registry: which handlers get an event, and in what order. Calls no handler, and knows no thread and no clock.

Theory of operation. `register` and `unregister` may be called anywhere: in several threads, in a `__del__`, in a signal
handler that interrupts a call of them in the same thread. An exception may end a call between any two opcodes. So there
is no lock: it would deadlock in the second case and stay locked in the third, as the end of a `with` block has opcodes
of its own.

1. A snapshot holds all handlers at one moment and never changes. A change derives a snapshot from the newest one and
   appends it there by one `dict.setdefault`, which is one step for other threads and for signal handlers alike. That is
   the commit: before it nothing has changed, after it everything has. If the place is taken, the change starts over
   from the snapshot that took it, so no change overwrites another one and no handler is registered twice.
2. Publishing brings the matches that were handed out up to date, in place, so that the hot path reads one attribute.
   It derives everything from the snapshots since the last one that was published in full, and can be repeated. Where an
   exception ends it early, the next call of any method publishes; dispatching calls `prune` for each delivery.
3. A match is stored first and then compared with the newest snapshot, and a new match is made visible first. Either the
   publishing call finds the match, or the one that fills it finds the snapshot.
"""

from __future__ import annotations

import warnings
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from operator import attrgetter
from types import FunctionType, MethodType
from typing import Any

from eventsh.core.signature import (
    check_signature,
    find_definition,
    is_async,
    is_local,
    is_redefinition,
    locate,
    qualified_name,
)
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

# A handler's place in the order of calls.
_number = attrgetter("number")


class Handler:
    """One registration of one callback at one level.

    `call` takes (data, event, source, pid). It returns None and does nothing once the callback of a weak registration is
    gone. `active` is False from the moment that it is unregistered; one that was replaced stays active, for the events
    that it got before. `number` is its place in the order of calls: a handler that replaces another one has its number.
    """

    __slots__ = (
        "_definition",
        "_referent",
        "_seconds",
        "active",
        "call",
        "calls",
        "errors",
        "event",
        "is_async",
        "key",
        "location",
        "number",
        "script",
        "source",
        "weak",
    )

    call: Call

    def __init__(self, callback: Call, level: _Level, *, weak: bool, on_death: Callable[[object], None]) -> None:
        self.number = 0
        self.source, self.event = level
        self.is_async = is_async(callback)
        # Module and qualified name.
        self.key = qualified_name(callback)
        self.location = locate(callback)
        # Found once for each handler: a registration compares itself with all of its name.
        definition = find_definition(callback)
        self._definition = None if definition is None else weakref.ref(definition)
        # The name of the script that brought it in from a shell; None for the program's own.
        self.script: str | None = None
        self.calls = 0
        self.errors = 0
        self._seconds: deque[float] = deque(maxlen=_SAMPLE)
        self.active = True
        self.weak = True
        if weak:
            self._referent = _refer_weakly(callback, on_death)
            self.call = _call_weakly(self._referent)
        else:
            self.strengthen(callback)

    def take_number(self, number: int) -> None:
        """Take a place in the order of calls."""
        self.number = number

    def deactivate(self) -> None:
        """Note that it is unregistered."""
        self.active = False

    def strengthen(self, callback: Call) -> None:
        """Hold the callback from now on. Idempotent."""
        if self.weak:
            self._referent = lambda: callback
            self.call = callback
            # Last: until here an interrupted call is repeated.
            self.weak = False

    @property
    def name(self) -> str:
        """The qualified name of the callback."""
        return self.key[1]

    @property
    def callback(self) -> Call | None:
        """The registered callable; None once that of a weak registration is gone."""
        return self._referent()

    def definition(self) -> FunctionType | None:
        """The function that the source defines, as `find_definition`; None once it is gone."""
        return None if self._definition is None else self._definition()

    def note_seconds(self, seconds: float) -> None:
        """One call, of those that are timed, took so long."""
        self._seconds.append(seconds)

    @property
    def p99_s(self) -> float | None:
        """What 99 of 100 calls did not take longer than, of the last that were timed; None when none was."""
        ordered = sorted(self._seconds)
        return ordered[(len(ordered) * 99 + 99) // 100 - 1] if ordered else None

    @property
    def level(self) -> _Level:
        """The source and the event that it is registered for; None for all of them."""
        return self.source, self.event

    def is_of(self, callback: Call) -> bool:
        """Whether this is a registration of `callback`."""
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

    def set_handlers(self, handlers: tuple[Handler, ...]) -> None:
        self.handlers = handlers
        self.single = handlers[0] if len(handlers) == 1 and not handlers[0].is_async else None


@dataclass(slots=True, eq=False)
class _Snapshot:
    """All handlers at one moment, by level and in the order of calls, and how they differ from those before."""

    levels: dict[_Level, tuple[Handler, ...]] = field(default_factory=dict)
    # The largest number that a handler has ever had.
    last: int = 0
    changed: Iterable[_Level] = ()
    # Emptied once these handlers are inactive, or hold these callbacks: a snapshot must not keep them alive.
    removed: Iterable[Handler] = ()
    strengthened: Iterable[tuple[Handler, Call]] = ()
    # The next snapshot, under the key None. A dict, as its `setdefault` compares and stores in one step.
    later: dict[None, _Snapshot] = field(default_factory=dict)

    def settle(self) -> None:
        """Let go of the handlers that differ: they are inactive, or hold their callbacks."""
        self.strengthened = self.removed = ()

    def handlers(self) -> list[Handler]:
        return sorted((handler for level in self.levels.values() for handler in level), key=_number)

    def handlers_for(self, source: str, event: str) -> tuple[Handler, ...]:
        find = self.levels.get
        return find((None, None), ()) + find((source, None), ()) + find((source, event), ())


class _Change:
    """A snapshot in the making, on top of `base`."""

    def __init__(self, base: _Snapshot) -> None:
        self._base = base
        self._last = base.last
        self._levels: dict[_Level, tuple[Handler, ...]] = {}
        self._removed: list[Handler] = []
        self._strengthened: list[tuple[Handler, Call]] = []

    def __bool__(self) -> bool:
        return bool(self._levels or self._strengthened)

    def handlers_at(self, level: _Level) -> tuple[Handler, ...]:
        return self._levels.get(level, self._base.levels.get(level, ()))

    def add(self, handler: Handler, replaced: Sequence[Handler]) -> None:
        """Put `handler` at the place of those that it replaces, else at the end."""
        # No other thread knows it before the commit, so it can be numbered again in the next attempt.
        handler.take_number(min((former.number for former in replaced), default=self._last + 1))
        self._last = max(self._last, handler.number)
        self.drop(handler.level, replaced)
        self._levels[handler.level] = tuple(sorted((*self.handlers_at(handler.level), handler), key=_number))

    def drop(self, level: _Level, handlers: Sequence[Handler]) -> None:
        """Take handlers out that stay active for the events that they have got."""
        if handlers:
            self._levels[level] = tuple(other for other in self.handlers_at(level) if other not in handlers)

    def remove(self, handlers: Sequence[Handler]) -> None:
        for handler in handlers:
            if handler in self.handlers_at(handler.level):
                self.drop(handler.level, [handler])
                self._removed.append(handler)

    def strengthen(self, handler: Handler, callback: Call) -> None:
        self._strengthened.append((handler, callback))

    def commit(self) -> bool:
        """Make it the next snapshot. False, and nothing has changed, if another change came first."""
        levels = self._base.levels | self._levels
        for level in self._levels:
            if not levels[level]:
                del levels[level]
        snapshot = _Snapshot(levels, self._last, self._levels, self._removed, self._strengthened)
        return self._base.later.setdefault(None, snapshot) is snapshot


class Registry:
    """Every handler of a process. Safe to call anywhere; see the top of this file."""

    __slots__ = ("_dead", "_old", "_published", "matches")

    def __init__(self) -> None:
        # The last snapshot that all matches are up to date with, or later ones.
        self._published = _Snapshot()
        # An entry for each weak handler whose callback is gone. Callbacks die anywhere and in any thread, so a weak
        # reference only calls the `append` of this list.
        self._dead: list[object] = []
        # The young half, by source and event. For `match`, and for callers that save its call. They look this attribute
        # up each time, as halves change places.
        self.matches: dict[tuple[str, str], Match] = {}
        self._old: dict[tuple[str, str], Match] = {}

    @property
    def ever_registered(self) -> bool:
        """Whether a handler was ever registered."""
        return self._newest().last > 0

    def register(
        self,
        callback: Call,
        source: str | None = None,
        *events: str,
        weak: bool = False,
        replace: bool = False,
        stacklevel: int = 2,
    ) -> bool:
        """Register `callback` for all events, for a source, or for events of a source: for all of them or for none.

        A callback that is registered at a level already stays as it is; one that was weak becomes strong if it is now.

        Args:
            weak: Hold no reference to the callback; warn when nothing else holds one.
            replace: At each level put it in the place of those of the same module and qualified name.
            stacklevel: As of `warnings.warn`: 2 blames the caller of this method.

        Returns:
            True.

        Raises:
            TypeError: It can't be called as a handler, or not be held weakly.
            UsageError: A name is wrong, or `replace` has no name to go by.
        """
        held = [callback]
        del callback
        return self.register_held(held, source, events, weak=weak, replace=replace, stacklevel=stacklevel + 1)

    def register_held(
        self,
        held: list[Call],
        source: str | None,
        events: tuple[str, ...],
        *,
        weak: bool,
        replace: bool,
        stacklevel: int,
    ) -> bool:
        """As `register`, of a callback in a list, which this empties.

        A caller that keeps no other reference lets this see whether anything else holds a weak callback: counting
        references would depend on the interpreter's version.
        """
        callback = held.pop()
        levels = _check(callback, source, events)
        check_signature(callback)
        key = qualified_name(callback)
        if replace and key[1].endswith("<lambda>"):
            raise UsageError("replace=True goes by the qualified name, and a lambda has none: write a def")
        if weak:
            what = f"{key[1]} ({locate(callback)}) is registered weakly, but nothing else "
            local, referent = is_local(callback), _refer_weakly(callback, None)
            del callback
            found = referent()
            if found is None or local:
                what += "holds it, so it is gone already" if found is None else "may hold it"
                advice = ": keep a reference to it for as long as it shall be called, or use register()"
                warnings.warn(what + advice, RuntimeWarning, stacklevel=stacklevel)
            if found is None:
                return True
            callback = found
        self._register(callback, levels, weak=weak, replace=replace, stacklevel=stacklevel + 1)
        return True

    def _register(self, callback: Call, levels: list[_Level], *, weak: bool, replace: bool, stacklevel: int) -> None:
        self.prune()
        # Made once, however many attempts it takes.
        new = [Handler(callback, level, weak=weak, on_death=self._dead.append) for level in levels]
        warned = False
        while True:
            change = _Change(self._newest())
            for handler in new:
                known = change.handlers_at(handler.level)
                present = _registration_of(callback, known)
                is_sought = replace or handler.definition() is not None
                namesakes = [h for h in known if h.key == handler.key and h is not present] if is_sought else []
                replaced = namesakes if replace else []
                if present is None:
                    # Before the commit: a warning can be turned into an error, and then nothing is registered.
                    warned = warned or replace or _warn_of_redefinition(handler, namesakes, stacklevel + 1)
                    change.add(handler, replaced)
                else:
                    change.drop(handler.level, replaced)
                    if present.weak and not weak:
                        change.strengthen(present, callback)
            if not change:
                return
            if change.commit():
                self._publish()
                return

    def unregister(self, callback: Call, source: str | None = None, *events: str) -> bool:
        """Remove `callback` from just the level, or the events, named: from all of them or from none.

        No call of it begins after this, but for the event that is being handled now.

        Returns:
            False if it was at none of them.

        Raises:
            TypeError: It can't be called.
            UsageError: A name is wrong.
        """
        levels = _check(callback, source, events)
        self.prune()

        def find(change: _Change) -> list[Handler]:
            return [handler for level in levels for handler in change.handlers_at(level) if handler.is_of(callback)]

        return self._remove(find)

    def remove(self, handlers: Sequence[Handler]) -> bool:
        """Remove these registrations. False if none of them was there any more."""
        return self._remove(lambda _: handlers)

    def _remove(self, find: Callable[[_Change], Sequence[Handler]]) -> bool:
        while True:
            change = _Change(self._newest())
            change.remove(find(change))
            if not change:
                return False
            if change.commit():
                self._publish()
                return True

    def match(self, source: str, event: str) -> Match:
        """The handlers for this kind of event: those of all events, of the source, of source and event."""
        self.prune()
        match = self.matches.get((source, event))
        return self._add_match(source, event) if match is None else match

    def handlers(self) -> list[Handler]:
        """Every handler that can still be called, in the order of registration."""
        self.prune()
        return self._newest().handlers()

    def prune(self) -> None:
        """Finish an interrupted change, and drop weak handlers whose callbacks are gone."""
        if self._published.later:
            self._publish()
        if self._dead:
            noticed = list(self._dead)
            self.remove([handler for handler in self._newest().handlers() if handler.callback is None])
            # Only now, and only these: an interrupted call is repeated, and other callbacks die meanwhile.
            for notice in noticed:
                with suppress(ValueError):  # another thread dropped it
                    self._dead.remove(notice)

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
        # Again, now that a publishing call finds it: the last one may have looked for it just before.
        self._refresh(match)
        return match

    def _newest(self) -> _Snapshot:
        snapshot = self._published
        while (later := snapshot.later.get(None)) is not None:
            snapshot = later
        return snapshot

    def _publish(self) -> None:
        """Bring every match up to date with all changes that were committed before. Can be repeated at any time."""
        snapshot = self._published
        changed: dict[_Level, None] = {}
        while (later := snapshot.later.get(None)) is not None:
            snapshot = later
            for handler, callback in snapshot.strengthened:
                handler.strengthen(callback)
            for handler in snapshot.removed:
                handler.deactivate()
            snapshot.settle()
            changed |= dict.fromkeys(snapshot.changed)
        # The young half first: a match that leaves it meanwhile is then found in the old one.
        young = self.matches
        caches = (young, self._old)
        for source, event in changed:
            for cache in caches:
                for match in _matches_of(cache, source, event):
                    self._refresh(match)
        # Last. A slower thread may store an earlier snapshot after this: then more is published again than need be.
        self._published = snapshot

    def _refresh(self, match: Match) -> None:
        try:
            while True:
                snapshot = self._newest()
                handlers = snapshot.handlers_for(match.source, match.event)
                match.set_handlers(handlers)
                if not snapshot.later:
                    return
        except BaseException:
            # Interrupted between the store and the comparison: another thread may have stored and published a later
            # snapshot in between, and would not look at this match again.
            self._refresh(match)
            raise


def _registration_of(callback: Call, handlers: Iterable[Handler]) -> Handler | None:
    # A generator that next() leaves unfinished would end in its finalizer, where Python drops exceptions.
    for handler in handlers:
        if handler.is_of(callback):
            return handler
    return None


def _warn_of_redefinition(handler: Handler, namesakes: list[Handler], stacklevel: int) -> bool:
    definition = handler.definition()
    if definition is None:
        return False
    for namesake in namesakes:
        former = namesake.definition()
        if former is not None and is_redefinition(definition, former):
            break
    else:
        return False
    warnings.warn(
        f"{handler.name} is registered twice for {handler.source or 'all'}/{handler.event or 'all'}, as"
        f" {namesake.location} and now as {handler.location}, and each event will run both: if its module was reloaded or"
        " its cell ran again, pass replace=True",
        RuntimeWarning,
        stacklevel=stacklevel,
    )
    return True


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


def _refer_weakly(callback: Call, on_death: Callable[[Any], None] | None) -> Callable[[], Call | None]:
    try:
        # A plain weak reference to a bound method is dead at once, for nothing holds that object.
        return (
            weakref.WeakMethod(callback, on_death) if type(callback) is MethodType else weakref.ref(callback, on_death)
        )
    except TypeError as error:
        raise TypeError(f"{qualified_name(callback)[1]} can't be registered weakly: {error}: use register()") from None


def _call_weakly(referent: Callable[[], Call | None]) -> Call:
    def call(data: Any, event: str, source: str, pid: int | None) -> Any:
        callback = referent()
        return None if callback is None else callback(data, event, source, pid)

    return call
