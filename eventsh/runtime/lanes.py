"""Run async handlers: each handler's events one at a time and in order, the handlers beside each other.

A lane is a handler's queue, and a task that lives for as long as there is something in it. Everything here happens in
the loop's thread, but for `look`.

Theory of operation: a signal handler may raise between any two steps of the task, which then dies. So nothing leaves the
queue before it is finished, and how far the first share is is one tuple, replaced by one store. The coroutine of the event
under way is in that tuple: a new task sees by its state whether the handler has begun.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
from collections import deque
from collections.abc import Callable, Iterator
from contextvars import copy_context
from operator import length_hint
from types import CoroutineType
from typing import TYPE_CHECKING, Any

from eventsh.core.failure import traceback_of
from eventsh.runtime.replayed import REPLAYED, is_clean, new_context
from eventsh.runtime.report import is_from

if TYPE_CHECKING:
    from eventsh.core.delivery import Delivery
    from eventsh.core.registry import Handler
    from eventsh.runtime.report import Reporter

__all__ = ["Lanes", "Share", "is_new"]

# A handler that never really waits would keep the loop for its whole queue: after this long, others get their turn.
_TURN_S = 0.01


class Share:
    """The events of one run for one async handler, or one event with the coroutine that a sync handler returned.

    `state` is the index of the event under way, and a list that holds what the call returned once it was made.
    """

    __slots__ = ("datas", "delivery", "event", "handler", "source", "state")

    def __init__(
        self, handler: Handler, delivery: Delivery, source: str, event: str, datas: list[Any], index: int, *made: Any
    ) -> None:
        self.handler = handler
        self.delivery = delivery
        self.source = source
        self.event = event
        self.datas = datas
        self.state: tuple[int, list[Any]] = (index, [*made])

    @property
    def left(self) -> int:
        """How many events are not finished."""
        return len(self.datas) - self.state[0]

    def holds(self, made: Any) -> bool:
        """Whether its event under way is this coroutine."""
        return any(result is made for result in self.state[1])


class _Lane:
    __slots__ = ("call", "handler", "queue", "seen_ready", "task", "told")

    def __init__(self, handler: Handler) -> None:
        self.handler = handler
        self.queue: deque[Share] = deque()
        self.task: asyncio.Task[None] | None = None
        # Since when, source and event. A new tuple for each call, stored at once, so that another thread can read it.
        self.call: tuple[float, str, str] | None = None
        # The call that was already told to be slow.
        self.told: tuple[float, str, str] | None = None
        # What `ready_task` was for the last `rescue`.
        self.seen_ready: tuple[Any, Any] | None = None

    def ready_task(self) -> tuple[Any, Any] | None:
        """Return the task and its progress, if it waits for nothing but the loop, and for no handler that has begun."""
        if self.task is None or getattr(self.task, "_fut_waiter", self) is not None:
            return None
        state = self.queue[0].state
        is_begun = any(not is_new(made) for made in state[1])
        return None if is_begun else (self.task, state)


class Lanes:
    """The lanes of all async handlers. A delivery whose last share is finished is passed to `on_done`, unless `close` comes
    before; it may be passed twice after an exception in `on_done`."""

    def __init__(
        self,
        reporter: Reporter,
        *,
        timeout_s: float,
        on_done: Callable[[Delivery], None],
        clock: Callable[[], float],
    ) -> None:
        self.timeout_s = timeout_s
        self._reporter = reporter
        self._on_done = on_done
        self._clock = clock
        self._lanes: dict[Handler, _Lane] = {}
        self._closed = False

    @property
    def pending(self) -> int:
        """How many calls have not returned, begun or not."""
        return sum(share.left for lane in self._lanes.values() for share in list(lane.queue))

    @property
    def is_in_handler(self) -> bool:
        """Whether the current task is that of a handler."""
        task = asyncio.current_task()
        return task is not None and any(lane.task is task for lane in self._lanes.values())

    def put(self, share: Share, given: set[Handler] | None = None) -> None:
        """Have the handler called once it is done with what it was given before, and note it in `given`. Needs a running
        loop."""
        if self._closed:
            _abandon(share)
            share.delivery.add_share(share)
            return
        asyncio.get_running_loop()
        handler, delivery = share.handler, share.delivery
        lane = self._lanes.get(handler) or self._lanes.setdefault(handler, _Lane(handler))
        try:
            delivery.add_share(share)
            lane.queue.append(share)
            if given is not None:
                given.add(handler)
        except BaseException:
            if share not in lane.queue:
                delivery.end_share(share)
            elif given is not None:
                given.add(handler)
            raise
        self._start(lane)

    def rescue(self) -> None:
        """Start what an exception kept from being started, or from going on."""
        for lane in list(self._lanes.values()):
            if not lane.queue or self._closed:
                continue
            ready = lane.ready_task()
            if ready is not None and lane.seen_ready == ready:
                # Two calls ago it could have gone on: an exception in the loop itself has lost its next step.
                lane.task = None
            lane.seen_ready = ready
            self._start(lane)

    async def drain(self) -> None:
        """Wait until every lane is empty; but for the caller's own one, which could not end before this returns."""
        mine = asyncio.current_task()
        self.rescue()
        while tasks := [lane.task for lane in self._lanes.values() if lane.task is not None and lane.task is not mine]:
            await asyncio.wait(tasks)

    def close(self) -> None:
        """Cancel what runs, but for the caller, and forget what waits. `drain` then waits for the cancelled to end."""
        self._closed = True
        try:
            mine = asyncio.current_task()
        except RuntimeError:  # no loop is running
            mine = None
        for lane in self._lanes.values():
            waiting = list(lane.queue)
            lane.queue.clear()
            for share in waiting:
                # The first one's coroutine is its task's to end.
                if lane.call is None or share is not waiting[0]:
                    _abandon(share)
            if lane.task is not None and lane.task is not mine and not lane.task.get_loop().is_closed():
                lane.task.cancel()

    def look(self, now: float) -> None:
        """Warn of the calls that take too long. For another thread: it also sees one that blocks the loop."""
        for lane in list(self._lanes.values()):
            call = lane.call
            if call is not None:
                self._warn_if_slow(lane, call, now)

    def _start(self, lane: _Lane) -> None:
        if lane.task is not None and not lane.task.done():
            return
        create = asyncio.get_running_loop().create_task
        # Not by `create_task(context=...)`: a task factory of the program's own need not know of it.
        lane.task = new_context().run(create, self._serve(lane), name=f"eventsh {lane.handler.name}")
        # Not in a `finally` of the task: one that is cancelled before its first step never gets there.
        lane.task.add_done_callback(lambda task: self._ended(lane, task))

    def _ended(self, lane: _Lane, task: asyncio.Task[None]) -> None:
        if lane.task is not task:
            return
        if lane.queue and not self._closed:
            # Cancelled by the program, interrupted by an exception, or in need of a new context.
            self._start(lane)
        else:
            self._lanes.pop(lane.handler, None)

    async def _serve(self, lane: _Lane) -> None:
        me = asyncio.current_task()
        if lane.task is not me and lane.task is not None and not lane.task.done():
            # An exception kept `_start` from noting this one, and another was started since.
            return
        lane.task = me
        turn_ends = self._clock() + _TURN_S
        queue = lane.queue
        # After an event that has set a ContextVar, `_ended` goes on with a new task, which has a new context.
        while queue and lane.task is me and is_clean(copy_context()):
            share = queue[0]
            if not share.left:
                self._finish(lane, share)
                continue
            state = index, made = share.state
            data = iter(share.datas[index : index + 1])
            failure: BaseException | None = None
            try:
                self._begin(lane, share, data)
                # A weak handler whose object is gone gives None. Awaited here and in no function of its own, whose end by
                # an exception here would end the handler too.
                if made and made[0] is not None:
                    await made[0]
                share.state = (index + 1, [])
            except BaseException as error:  # noqa: BLE001 - sorted out there
                failure = error
                self._sort_out(lane, share, state, error, was_called=not length_hint(data))
                if issubclass(type(error), asyncio.CancelledError):
                    # Perhaps this task itself: `_ended` goes on.
                    return
            finally:
                self._end(lane, share, failure)
            if self._clock() >= turn_ends:
                await asyncio.sleep(0)
                turn_ends = self._clock() + _TURN_S

    def _begin(self, lane: _Lane, share: Share, data: Iterator[Any]) -> None:
        """Call the handler, unless that was done before."""
        handler, delivery, made = share.handler, share.delivery, share.state[1]
        if not made:
            if not handler.active:
                # Unregistered while this waited, perhaps by itself: it must not be called any more.
                return
            handler.calls += 1
            # One step: what the call returned can't be lost.
            made.extend(map(handler.call, data, (share.event,), (share.source,), (delivery.pid,)))
            if not made:
                # It ended the iteration.
                raise RuntimeError("the handler raised StopIteration")
        REPLAYED.set(delivery.is_replayed)
        lane.call = (self._clock(), share.source, share.event)

    def _end(self, lane: _Lane, share: Share, failure: BaseException | None) -> None:
        call, lane.call = lane.call, None
        if call is None:
            return
        now = self._clock()
        share.handler.note_seconds(now - call[0])
        if share.delivery.trace is not None:
            share.delivery.trace.note(share.handler, now - call[0], failure)
        self._warn_if_slow(lane, call, now)

    def _finish(self, lane: _Lane, share: Share) -> None:
        delivery = share.delivery
        delivery.end_share(share)
        if delivery.is_over:
            self._on_done(delivery)
        # Last, so that a task that begins anew repeats all of it.
        if lane.queue and lane.queue[0] is share:
            lane.queue.popleft()

    def _sort_out(
        self, lane: _Lane, share: Share, state: tuple[int, list[Any]], error: BaseException, *, was_called: bool
    ) -> None:
        """Report what the handler raised, and raise what was raised in the lane itself."""
        index, made = state
        if share.state is not state or not (made or was_called):
            # The event is finished or not begun.
            raise error
        is_own = True
        if made and type(coroutine := made[0]) is CoroutineType:
            progress = inspect.getcoroutinestate(coroutine)
            if is_new(coroutine):
                raise error
            if progress == inspect.CORO_CLOSED and not _is_raised_by(coroutine, error):
                # It had returned.
                share.state = (index + 1, [])
                raise error
            if issubclass(type(error), GeneratorExit) and not (
                lane.task is not None and lane.task.get_loop().is_running()
            ):
                # The loop is gone.
                raise error
            # One that waits for something can't be awaited again: the handler had begun, so that its event is reported.
            is_own = progress == inspect.CORO_CLOSED
            with contextlib.suppress(BaseException):
                coroutine.close()
        if self._closed and issubclass(type(error), asyncio.CancelledError):
            raise error
        try:
            exit_error = self._reporter.failure(share.handler, share.source, share.event, error)
        finally:
            share.state = (index + 1, [])
        if not is_own:
            raise error
        if exit_error is not None:
            # Not here: it would end this task in the midst of the event, and the loop with it.
            asyncio.get_running_loop().call_soon(self._reporter.on_exit, exit_error)

    def _warn_if_slow(self, lane: _Lane, call: tuple[float, str, str], now: float) -> None:
        started, source, event = call
        if now - started > self.timeout_s and lane.told is not call:
            lane.told = call
            self._reporter.slow(lane.handler, source, event, now - started, self.timeout_s)


def is_new(made: Any) -> bool:
    """Whether this is a coroutine that has not begun."""
    return type(made) is CoroutineType and inspect.getcoroutinestate(made) == inspect.CORO_CREATED


def _is_raised_by(coroutine: CoroutineType[Any, Any, Any], error: BaseException) -> bool:
    """Whether the calling function caught an exception of this coroutine, which it awaited."""
    if type(error) is RuntimeError and type(error.__cause__) is StopIteration:
        # The interpreter raises it in place of a StopIteration, once the coroutine's frame has ended.
        trace = traceback_of(error.__cause__)
        return trace is not None and trace.tb_frame.f_code is coroutine.cr_code
    return is_from(error, coroutine.cr_code)


def _abandon(share: Share) -> None:
    # A coroutine that nobody will await says so when it is collected, and the program can't help it.
    for made in share.state[1]:
        if type(made) is CoroutineType:
            made.close()
