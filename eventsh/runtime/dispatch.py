"""Call the handlers of what a client was given: sync ones here and now, async ones in their lanes.

Knows no connection and no ack. Everything happens in the thread that runs the loop, but for the watchdog's looks.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from itertools import islice
from operator import length_hint
from typing import TYPE_CHECKING, Any

from eventsh.core.registry import Handler, Match, Registry
from eventsh.runtime.lanes import Item, Lanes
from eventsh.runtime.replayed import REPLAYED
from eventsh.runtime.report import HandlerFailure, Reporter
from eventsh.runtime.watchdog import Stall, Watchdog, look_period

if TYPE_CHECKING:
    from eventsh.core.delivery import Delivery

__all__ = ["Dispatcher", "HandlerFailure"]

# So often is a delivery's first event timed, for the statistics of its handlers: all of those that come seldom, and of
# very many too few to be felt.
_SAMPLE_EACH_S = 0.05

# What tells one call of a sync handler from every other: the number of the delivery, how many runs of it are left and how
# many events of the run, the handler; and for the warning, the source and the event.
_Call = tuple[int, int, int, Handler, str, str]


class Dispatcher:
    """Hands deliveries to handlers, one delivery after the other. Its owner must call `close` in the end.

    A handler that raises, or calls sys.exit, stops nothing: it is logged, counted and told to `on_failure`. A handler
    that takes longer than `timeout_s` is warned of, once a call, also while it still hangs.
    """

    __slots__ = (
        "_clock",
        "_closed",
        "_data",
        "_delivery_number",
        "_forked_in",
        "_handler",
        "_lanes",
        "_match",
        "_on_complete",
        "_registry",
        "_reporter",
        "_runs",
        "_sample_at",
        "_stall",
        "_thread",
        "_timeout_s",
        "_told_delivery",
        "_watchdog",
        "handled",
    )

    def __init__(
        self,
        registry: Registry,
        *,
        timeout_s: float,
        on_failure: Callable[[HandlerFailure], None],
        on_complete: Callable[[Delivery], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.handled = 0
        self._registry = registry
        self._on_complete = on_complete
        self._clock = clock
        self._closed = False
        self._thread = threading.get_ident()
        # In a child that was forked by a sync handler: that handler.
        self._forked_in: Handler | None = None
        self._timeout_s = timeout_s
        self._reporter = Reporter(on_failure)
        self._lanes = Lanes(self._reporter, timeout_s=timeout_s, on_done=self._done, clock=clock)
        self._watchdog: Watchdog | None = None
        self._stall: Stall[_Call] = Stall()
        # What is being called, for the watchdog to read. How far it is say the iterators over the delivery's runs and over a
        # run's data: that costs an event nothing.
        self._handler: Handler | None = None
        self._match: Match | None = None
        self._delivery_number = 0
        self._runs: Iterator[Any] = iter(())
        self._data: Iterator[Any] = iter(())
        # The last delivery in which a call was told to be slow.
        self._told_delivery = 0
        self._sample_at = clock() + _SAMPLE_EACH_S

    @property
    def failed(self) -> int:
        """How many calls of handlers have failed."""
        return self._reporter.failed

    @property
    def pending(self) -> int:
        """How many calls of async handlers have not returned, begun or not."""
        return self._lanes.pending

    @property
    def timeout_s(self) -> float:
        """How long a handler may take before it is warned of. Can be set at any time."""
        return self._timeout_s

    @timeout_s.setter
    def timeout_s(self, timeout_s: float) -> None:
        self._timeout_s = self._lanes.timeout_s = timeout_s
        if self._watchdog is not None and not self._closed:
            # The next dispatch starts one that looks as often as the new timeout asks for.
            self._watchdog.stop()
            self._watchdog = None

    def dispatch(self, delivery: Delivery) -> bool:
        """Call every handler of every event, in order. Needs a running loop where a handler is async.

        True: all of them have returned. False: some are async; `on_complete` is called when the last has returned.
        After `close` nothing is called, and False is the answer. KeyboardInterrupt in a handler is raised.
        """
        if self._closed:
            return False
        if self._watchdog is None:
            self._watchdog = Watchdog(self._look, look_period(self._timeout_s))
            self._watchdog.start()
        started = self._clock()
        # One for this call itself: a loop that starts tasks eagerly may have them done before the last one is put.
        delivery.pending = 1
        self._delivery_number += 1
        self._registry.prune()
        mark = REPLAYED.set(True) if delivery.is_replayed else None
        try:
            if delivery.trace is not None:
                self._call_all(delivery, None)
            elif started >= self._sample_at:
                self._sample_at = started + _SAMPLE_EACH_S
                self._call_all(delivery, 1)
            else:
                self._call_all(delivery, 0)
        finally:
            last_handler, self._handler = self._handler, None
            if mark is not None:
                REPLAYED.reset(mark)
            if self._forked_in is not None:
                self._end_child(self._forked_in)
        seconds = self._clock() - started
        if seconds > self._timeout_s and self._told_delivery != self._delivery_number and last_handler is not None:
            self._warn_of_delivery(delivery, last_handler, seconds)
        delivery.pending -= 1
        if delivery.pending:
            return False
        self.handled += delivery.count
        return True

    async def drain(self) -> None:
        """Wait until no async handler has anything left, but for the caller if it is one."""
        await self._lanes.drain()

    def close(self) -> None:
        """Stop watching, cancel the async handlers that run and forget what waits for them; nothing is completed then.

        Await `drain` before it to let them finish, and after it to wait for the cancelled ones. Idempotent.
        """
        self._closed = True
        if self._watchdog is not None:
            self._watchdog.stop()
        self._lanes.close()

    def abandon(self) -> None:
        """In a forked child: call nothing more, for the rest is the parent's to handle. A sync handler that forked may go
        on in the child, but the child ends when it returns: there is nothing for it to return to."""
        self._closed = True
        if self._handler is not None and self._thread == threading.get_ident():
            self._forked_in = self._handler
            match = self._match
            assert match is not None
            # Another tuple of the same: it ends the turn after this event, at no cost to every other.
            match.handlers = (*match.handlers,)

    def _end_child(self, handler: Handler) -> None:
        self._reporter.forked(handler)
        # Nothing of the parent's may be flushed or closed a second time.
        os._exit(1)

    def _call_all(self, delivery: Delivery, noted: int | None) -> None:
        """Call the handlers of each run, with a note of each call for its first `noted` events; None: for all."""
        registry, pid = self._registry, delivery.pid
        self._runs = runs = iter(delivery.runs)
        for source, event, datas in runs:
            match = registry.matches.get((source, event)) or registry.match(source, event)
            handler = match.single
            if handler is None or len(datas) != 1 or noted != 0:
                if match.handlers:
                    self._match = match
                    self._data = rest = iter(datas)
                    if noted != 0:
                        self._call_noting(match, islice(rest, noted), delivery)
                    self._call(match, rest, delivery)
                continue
            # As `_call`, for one event and one sync handler: where sources alternate, most runs are such.
            if self._closed:
                return
            self._match = match
            self._handler = handler
            call = handler.call
            try:
                result = call(datas[0], event, source, pid)
                if result is not None:
                    self._take_result(handler, result, datas[0], match, delivery)
            except KeyboardInterrupt:
                raise
            except BaseException as error:  # noqa: BLE001 - sys.exit in a handler must not end the loop either
                self._reporter.failure(handler, source, event, error)
            handler.calls += 1

    def _call(self, match: Match, rest: Iterator[Any], delivery: Delivery) -> None:
        """Call the handlers of the events that are left of a run."""
        left = length_hint(rest)
        # Each turn goes on for as long as the handlers stay the same. When one registers or unregisters something,
        # that holds from the next event on.
        while left and not self._closed and (handlers := match.handlers):
            if len(handlers) == 1 and not handlers[0].is_async:
                self._call_single(match, handlers, rest, delivery)
            else:
                self._call_several(match, handlers, rest, delivery)
            before, left = left, length_hint(rest)
            for handler in handlers:
                # An async one counts when its turn comes.
                if not handler.is_async:
                    handler.calls += before - left

    def _call_single(
        self, match: Match, handlers: tuple[Handler, ...], rest: Iterator[Any], delivery: Delivery
    ) -> None:
        """As `_call_several`, for what is most common: one sync handler."""
        source, event, pid = match.source, match.event, delivery.pid
        handler = self._handler = handlers[0]
        # A local name, for called as an attribute the interpreter would take it for a method, which is slower. One that was
        # weak and becomes strong can still be called as it was.
        call = handler.call
        for data in rest:
            try:
                result = call(data, event, source, pid)
                if result is not None:
                    self._take_result(handler, result, data, match, delivery)
            except KeyboardInterrupt:
                raise
            except BaseException as error:  # noqa: BLE001 - as above
                self._reporter.failure(handler, source, event, error)
            if match.handlers is not handlers:
                return

    def _call_several(
        self, match: Match, handlers: tuple[Handler, ...], rest: Iterator[Any], delivery: Delivery
    ) -> None:
        """Give the events that are left to these handlers, until others match."""
        source, event, pid = match.source, match.event, delivery.pid
        for data in rest:
            for handler in handlers:
                self._handler = handler
                if handler.is_async:
                    self._put(handler, Item(None, data, event, source, delivery))
                    continue
                call = handler.call
                try:
                    result = call(data, event, source, pid)
                    if result is not None:
                        self._take_result(handler, result, data, match, delivery)
                except KeyboardInterrupt:
                    raise
                except BaseException as error:  # noqa: BLE001 - as above
                    self._reporter.failure(handler, source, event, error)
            if match.handlers is not handlers:
                return

    def _call_noting(self, match: Match, rest: Iterator[Any], delivery: Delivery) -> None:
        """As `_call`, with a note of each call. Apart, for to measure costs as much as most calls take."""
        for data in rest:
            if self._closed:
                break
            for handler in match.handlers:
                self._handler = handler
                if handler.is_async:
                    later = self._call_later(handler, data, match, delivery)
                    self._put(handler, Item(later, data, match.event, match.source, delivery))
                else:
                    self._call_timed(handler, data, match, delivery)

    def _call_timed(self, handler: Handler, data: Any, match: Match, delivery: Delivery) -> None:
        source, event = match.source, match.event
        failure: BaseException | None = None
        handler.calls += 1
        started = self._clock()
        try:
            result = handler.call(data, event, source, delivery.pid)
            if hasattr(result, "__await__") and isinstance(result, Coroutine):
                if delivery.trace is not None:
                    begun: Coroutine[Any, Any, Any] = result
                    result = self._time(handler, delivery, lambda: begun)
                self._put(handler, Item(result, data, event, source, delivery))
                return
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # noqa: BLE001 - as above
            failure = error
            self._reporter.failure(handler, source, event, error)
        self._note(handler, delivery, self._clock() - started, failure)

    async def _call_later(self, handler: Handler, data: Any, match: Match, delivery: Delivery) -> None:
        """In the place of its lane, which takes this for a call that is made already."""
        if handler.active:
            handler.calls += 1
            await self._time(handler, delivery, lambda: handler.call(data, match.event, match.source, delivery.pid))

    async def _time(self, handler: Handler, delivery: Delivery, begin: Callable[[], Any]) -> None:
        """Call an async handler, wait for it, and note how that went."""
        failure: BaseException | None = None
        started = self._clock()
        try:
            # A weak handler whose object is gone gives None.
            result = begin()
            if result is not None:
                await result
        except BaseException as error:
            failure = error
            raise
        finally:
            self._note(handler, delivery, self._clock() - started, failure)

    def _note(self, handler: Handler, delivery: Delivery, seconds: float, failure: BaseException | None) -> None:
        handler.note_seconds(seconds)
        if delivery.trace is not None:
            delivery.trace.note(handler, seconds, failure)

    def _take_result(self, handler: Handler, result: Any, data: Any, match: Match, delivery: Delivery) -> None:
        # A lambda, or a decorator's wrapper, may give a coroutine without being `async def`. hasattr goes first, for
        # isinstance with an abstract class takes longer than most handlers do.
        if hasattr(result, "__await__") and isinstance(result, Coroutine):
            self._put(handler, Item(result, data, match.event, match.source, delivery))

    def _put(self, handler: Handler, item: Item) -> None:
        item.delivery.pending += 1
        self._lanes.put(handler, item)

    def _done(self, delivery: Delivery) -> None:
        delivery.pending -= 1
        if not delivery.pending:
            self.handled += delivery.count
            self._on_complete(delivery)

    # --- slow handlers ---

    def _look(self) -> None:
        """In the watchdog's thread: warn of what has hung for too long."""
        now = self._clock()
        call = self._call_now()
        seconds = self._stall.look(call, now, self._timeout_s)
        if call is not None and seconds is not None:
            self._told_delivery, _, _, handler, source, event = call
            self._reporter.slow(handler, source, event, seconds, self._timeout_s)
        self._lanes.look(now)

    def _call_now(self) -> _Call | None:
        # The loop's thread goes on between these reads. How far the delivery is is read on both sides: if it is still the
        # same, so was the run, and within a run a place never comes again. Then what is seen twice has stood still.
        number, runs_left = self._delivery_number, length_hint(self._runs)
        left, handler, match = length_hint(self._data), self._handler, self._match
        if handler is None or match is None or handler.is_async:
            return None
        if (number, runs_left) != (self._delivery_number, length_hint(self._runs)):
            return None
        return number, runs_left, left, handler, match.source, match.event

    def _warn_of_delivery(self, delivery: Delivery, last_handler: Handler, seconds: float) -> None:
        handlers: dict[Handler, None] = {}
        events = 0
        for source, event, datas in delivery.runs:
            events += len(datas)
            handlers |= dict.fromkeys(self._registry.match(source, event).handlers)
        # None at all: it has unregistered itself.
        called = [handler for handler in handlers if not handler.is_async] or [last_handler]
        if events == 1 and len(called) == 1:
            source, event, _ = delivery.runs[0]
            self._reporter.slow(called[0], source, event, seconds, self._timeout_s)
        else:
            self._reporter.slow_delivery(events, called, seconds, self._timeout_s)
