"""Call the handlers of what a client was given: sync ones here and now, async ones in their lanes.

Knows no connection and no ack. Everything happens in the thread that runs the loop, but for the watchdog's looks.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Coroutine
from operator import length_hint
from typing import TYPE_CHECKING, Any

from eventsh.core.delivery import Delivery
from eventsh.core.registry import Call, Handler, Match, Registry
from eventsh.runtime.exits import raise_exit
from eventsh.runtime.lanes import Lanes, Share, is_new
from eventsh.runtime.replayed import CLEAN_LEN, is_clean, new_context
from eventsh.runtime.report import HandlerFailure, Reporter
from eventsh.runtime.turns import Loop, Stage, Turn
from eventsh.runtime.watchdog import Stall, Watchdog, look_period

if TYPE_CHECKING:
    from contextvars import Context

__all__ = ["Dispatcher", "HandlerFailure"]

# So often is a delivery's first event timed, for the statistics of its handlers: all of those that come seldom, and of
# very many too few to be felt.
_SAMPLE_EACH_S = 0.05

# Under way between two dispatches.
_IDLE = Delivery(0, 0, None, [])
# As many events as there may be.
_ALL = 1 << 32

# A call that may have been interrupted: the handler, its result, the data, the match, the delivery.
_Interrupted = tuple[Handler, Any, Any, Match, Delivery]

# What tells one call of a sync handler from every other: the number of the delivery, how many runs of it and how many
# events of the run were handled, the handler; and for the warning, the source and the event.
_Call = tuple[int, int, int, Handler, str, str]


class Dispatcher:
    """Hands deliveries to handlers, one delivery after the other. Its owner must call `close` in the end.

    A handler that raises stops nothing, whatever it raises: that is logged, counted and passed to `on_failure`. A handler
    that takes longer than `timeout_s` is warned of, once a call, also while it still hangs.

    Args:
        on_exit: Receives each KeyboardInterrupt and SystemExit out of a handler once the event is complete, in any thread.
            It may raise it.
    """

    __slots__ = (
        "_clock",
        "_closed",
        "_delivery",
        "_delivery_number",
        "_forked_in",
        "_handler",
        "_lanes",
        "_match",
        "_on_complete",
        "_registry",
        "_reporter",
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
        on_exit: Callable[[BaseException], None] = raise_exit,
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
        self._reporter = Reporter(on_failure, on_exit)
        self._lanes = Lanes(self._reporter, timeout_s=timeout_s, on_done=self._done, clock=clock)
        self._watchdog: Watchdog | None = None
        self._stall: Stall[_Call] = Stall()
        # What is being called, for the watchdog to read. The delivery says how far it is: that costs an event nothing.
        self._handler: Handler | None = None
        self._match: Match | None = None
        self._delivery_number = 0
        self._delivery = _IDLE
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

        An exception that was not a handler's, such as one that a signal handler raises between two calls, leaves the
        delivery where it is: call this again to resume it, unless it `is_over`. So does what `on_exit` raises.

        Returns:
            True: all of them have returned. False: some are async; `on_complete` is called when the last has returned.
            After `close` nothing is called, and False is the answer.
        """
        if self._closed:
            return False
        if self._watchdog is None:
            self._watchdog = Watchdog(self._look, look_period(self._timeout_s))
            self._watchdog.start()
        started = self._clock()
        self._delivery_number += 1
        self._delivery = delivery
        self._registry.prune()
        noted = _ALL if delivery.trace is not None else 0
        if not noted and started >= self._sample_at:
            self._sample_at = started + _SAMPLE_EACH_S
            noted = 1
        try:
            while not self._closed:
                context = new_context(delivery.is_replayed)
                if context.run(self._go_on, delivery, context, noted):
                    break
                noted = _after_first(noted)
        finally:
            last_handler, self._handler = self._handler, None
            # Let go before the next batch is decoded: with the containers of both the garbage collector runs in each.
            self._delivery = _IDLE
            if self._forked_in is not None:
                self._end_child(self._forked_in)
        seconds = self._clock() - started
        if seconds > self._timeout_s and self._told_delivery != self._delivery_number and last_handler is not None:
            self._warn_of_delivery(delivery, last_handler, seconds)
        # As `is_over`, whose call takes a twentieth of the dispatch of one event.
        if delivery.shares or delivery.at != len(delivery.runs):
            return False
        self.handled += delivery.count
        return True

    @property
    def is_in_handler(self) -> bool:
        """Whether a handler calls this, a sync one or the task of an async one. In the loop's thread only."""
        return self._handler is not None or self._lanes.is_in_handler

    @property
    def under_way(self) -> Delivery:
        """The delivery whose handlers are being called, or one without events."""
        return self._delivery

    def rescue(self) -> None:
        """Start the async handlers that an exception kept from being started. Call it from time to time."""
        self._lanes.rescue()

    async def drain(self) -> None:
        """Wait until no async handler has anything left, but for the caller if it is one."""
        await self._lanes.drain()

    def close(self) -> None:
        """Stop watching, cancel the async handlers that run and forget what waits for them; nothing is completed then.

        Await `drain` before it to let them finish, and after it to wait for the cancelled ones. Idempotent.
        """
        self._closed = True
        self.stop_watching()
        self._lanes.close()

    def stop_watching(self) -> None:
        """End the thread that looks for slow handlers. In any thread."""
        if self._watchdog is not None:
            self._watchdog.stop()

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

    def _go_on(self, delivery: Delivery, context: Context, noted: int) -> bool:
        """Call the handlers of the runs that are left, with a note of each call for the first `noted` events.

        False: it stopped after an event that has changed the context, or because of `close`.
        """
        registry, pid, runs = self._registry, delivery.pid, delivery.runs
        handler: Handler | None = None
        call: Call = _call_nothing
        result: Any = None
        start = delivery.at
        at = start - 1
        while True:
            try:
                for at in range(start, len(runs)):
                    source, event, datas = runs[at]
                    match = registry.matches.get((source, event)) or registry.match(source, event)
                    handler = match.single
                    if handler is None or len(datas) != 1 or noted or delivery.turn is not None:
                        if not self._give_run(delivery, at, match, context, noted):
                            return False
                        noted = _after_first(noted)
                        if len(context) != CLEAN_LEN or self._closed:
                            return False
                        continue
                    # As `_give_single`, for one event: where sources alternate, most runs are such.
                    self._match = match
                    self._handler = handler
                    call = handler.call
                    result = call(datas[0], event, source, pid)
                    handler.calls += 1
                    if result is not None:
                        self._take_result(handler, result, datas[0], match, delivery)
                    delivery.at = at + 1
                    if len(context) != CLEAN_LEN or self._closed:
                        return False
            except BaseException as error:
                stage = _RUNS_LOOP.stage_of(error, call)
                if stage < Stage.CALLED or handler is None:
                    raise
                start = delivery.at = at + 1
                exit_error = self._settle(stage, error, (handler, result, datas[0], match, delivery))
                handler.calls += 1
                if exit_error is not None:
                    self._reporter.on_exit(exit_error)
                if not is_clean(context) or self._closed:
                    return False
            else:
                return True

    def _give_run(self, delivery: Delivery, at: int, match: Match, context: Context, noted: int) -> bool:
        """Call the handlers of the events that are left of a run. False as `_go_on`."""
        datas: list[Any] = delivery.runs[at][2]
        turn: Turn | None = delivery.turn
        if turn is None or turn.at != at:
            turn = delivery.turn = Turn(at, match, datas, 0, noted, set())
        while True:
            self._match = match
            for handler in turn.later:
                if handler not in turn.given:
                    share = Share(handler, delivery, match.source, match.event, datas, turn.start)
                    self._lanes.put(share, turn.given)
            if turn.is_single:
                self._give_single(turn, delivery, context)
            elif turn.now and not turn.is_stale:
                self._give_several(turn, delivery, context, datas)
            reached = turn.reached
            if reached == len(datas):
                delivery.at = at + 1
                delivery.turn = None
            if turn.exit is not None:
                error, turn.exit = turn.exit, None
                self._reporter.on_exit(error)
            if reached == len(datas):
                return True
            if self._closed or not is_clean(context):
                return False
            # The handlers have changed: that holds from this event on. Or only the first events were to be noted.
            turn = delivery.turn = Turn(at, match, datas, reached, _after_first(noted), turn.given)

    def _give_single(self, turn: Turn, delivery: Delivery, context: Context) -> None:
        """Call the one sync handler of a turn, for each event that is left, until the handlers or the context change."""
        match, handlers, rest = turn.match, turn.handlers, turn.rest
        source, event, pid = match.source, match.event, delivery.pid
        handler = self._handler = handlers[0]
        # A local name, for called as an attribute the interpreter would take it for a method, which is slower. One that was
        # weak and becomes strong can still be called as it was.
        call = handler.call
        clean_len = CLEAN_LEN
        result: Any = None
        data: Any = None
        left = length_hint(rest)
        try:
            while left and match.handlers is handlers:
                try:
                    for data in rest:
                        result = call(data, event, source, pid)
                        if result is not None:
                            self._take_result(handler, result, data, match, delivery)
                        if match.handlers is not handlers or len(context) != clean_len:
                            return
                    return
                except BaseException as error:  # noqa: BLE001 - sorted out there
                    stage = _SINGLE_LOOP.stage_of(error, call)
                    turn.exit = self._settle(stage, error, (handler, result, data, match, delivery))
                    if turn.exit is not None or not is_clean(context):
                        return
        finally:
            handler.calls += left - length_hint(rest)

    def _give_several(self, turn: Turn, delivery: Delivery, context: Context, datas: list[Any]) -> None:
        """As `_give_single`, for several sync handlers, or with notes. Stops only once all of them have had the event."""
        match, now, noted = turn.match, turn.now, turn.noted
        source, event, pid = match.source, match.event, delivery.pid
        result: Any = None
        data: Any = None
        handler, call = now[0], now[0].call
        started = 0.0
        while True:
            try:
                while turn.under_way[0] < turn.stop:
                    index, left = turn.under_way
                    data = datas[index]
                    for handler in left:
                        self._handler = handler
                        call = handler.call
                        if noted:
                            started = self._clock()
                        result = call(data, event, source, pid)
                        handler.calls += 1
                        if result is not None and self._take_result(handler, result, data, match, delivery):
                            continue
                        if noted:
                            self._note(handler, delivery, self._clock() - started, None)
                    turn.under_way = (index + 1, iter(now))
                    if match.handlers is not turn.handlers or len(context) != CLEAN_LEN or turn.exit is not None:
                        return
                return
            except BaseException as error:  # noqa: BLE001 - sorted out there
                stage = _SEVERAL_LOOP.stage_of(error, call)
                exit_error = self._settle(stage, error, (handler, result, data, match, delivery))
                handler.calls += 1
                if turn.exit is None:
                    turn.exit = exit_error
                if noted:
                    self._note(handler, delivery, self._clock() - started, error)

    def _note(self, handler: Handler, delivery: Delivery, seconds: float, failure: BaseException | None) -> None:
        handler.note_seconds(seconds)
        if delivery.trace is not None:
            delivery.trace.note(handler, seconds, failure)

    def _take_result(self, handler: Handler, result: Any, data: Any, match: Match, delivery: Delivery) -> bool:
        """Have a coroutine awaited. False: the result is none."""
        # A lambda, or a decorator's wrapper, may give a coroutine without being `async def`. The type is asked, for a proxy
        # may raise for any attribute. hasattr goes first: a check for an abstract class takes longer than most handlers do.
        kind = type(result)
        if not (hasattr(kind, "__await__") and issubclass(kind, Coroutine)):
            return False
        self._lanes.put(Share(handler, delivery, match.source, match.event, [data], 0, result))
        return True

    def _settle(self, stage: Stage, error: BaseException, call: _Interrupted) -> BaseException | None:
        """Report what a handler raised. Raise `error` again if it came from anything else, once the loop can be resumed.

        Returns:
            The error for `on_exit`, once the event is complete.
        """
        handler, result, data, match, delivery = call
        if stage is Stage.CALLED:
            return self._reporter.failure(handler, match.source, match.event, error)
        if stage is Stage.TAKEN:
            delivery.turn.put_back()
        elif stage is Stage.UNSTORED:
            # It may have been a coroutine, which is lost: then the event is reported.
            self._reporter.failure(handler, match.source, match.event, error)
        elif stage is Stage.RETURNED and is_new(result) and not any(share.holds(result) for share in delivery.shares):
            # The exception may have interrupted `_take_result`.
            self._take_result(handler, result, data, match, delivery)
        raise error

    def _done(self, delivery: Delivery) -> None:
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
        number, delivery = self._delivery_number, self._delivery
        at = delivery.at
        turn, handler, match = delivery.turn, self._handler, self._match
        reached = 0 if turn is None else turn.reached
        if handler is None or match is None or handler.is_async:
            return None
        if (number, at) != (self._delivery_number, delivery.at):
            return None
        return number, at, reached, handler, match.source, match.event

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


def _call_nothing(data: Any, event: str, source: str, pid: int | None) -> None:
    """Stand for the handler before a loop has one."""


def _after_first(noted: int) -> int:
    """How many of the events after the first one are noted."""
    return noted if noted == _ALL else 0


_RUNS_LOOP = Loop(Dispatcher._go_on)
_SINGLE_LOOP = Loop(Dispatcher._give_single)
_SEVERAL_LOOP = Loop(Dispatcher._give_several)
