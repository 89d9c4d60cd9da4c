"""Run async handlers: each handler's events one at a time and in order, the handlers beside each other.

A lane is a handler's queue, and a task that lives for as long as there is something in it. Everything here happens in
the loop's thread, but for `look`.
"""

from __future__ import annotations

import asyncio
import inspect
from collections import deque
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from eventsh.runtime.replayed import REPLAYED

if TYPE_CHECKING:
    from eventsh.core.delivery import Delivery
    from eventsh.core.registry import Handler
    from eventsh.runtime.report import Reporter

__all__ = ["Item", "Lanes"]

# A handler that never really waits would keep the loop for its whole queue: after this long, others get their turn.
_TURN_S = 0.01


class Item(NamedTuple):
    """One event for one handler. `begun` is what a call has given that is already made, and now waits to be awaited."""

    begun: Awaitable[Any] | None
    data: Any
    event: str
    source: str
    delivery: Delivery


class _Lane:
    __slots__ = ("call", "handler", "queue", "task", "told")

    def __init__(self, handler: Handler) -> None:
        self.handler = handler
        self.queue: deque[Item] = deque()
        self.task: asyncio.Task[None] | None = None
        # Since when, source and event. A new tuple for each call, stored at once, so that another thread can read it.
        self.call: tuple[float, str, str] | None = None
        # The call that was already told to be slow.
        self.told: tuple[float, str, str] | None = None


class Lanes:
    """The lanes of all async handlers. Each item put is told to `on_done` once, unless `close` comes before."""

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
        return sum(len(lane.queue) + (lane.call is not None) for lane in self._lanes.values())

    def put(self, handler: Handler, item: Item) -> None:
        """Have the handler called once it is done with what it was given before. Needs a running loop."""
        if self._closed:
            _abandon(item)
            return
        lane = self._lanes.get(handler)
        if lane is not None:
            lane.queue.append(item)
            return
        lane = self._lanes[handler] = _Lane(handler)
        lane.queue.append(item)
        self._start(lane)

    async def drain(self) -> None:
        """Wait until every lane is empty; but for the caller's own one, which could not end before this returns."""
        mine = asyncio.current_task()
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
            for item in lane.queue:
                _abandon(item)
            lane.queue.clear()
            if lane.task is not None and lane.task is not mine and not lane.task.get_loop().is_closed():
                lane.task.cancel()

    def look(self, now: float) -> None:
        """Warn of the calls that take too long. For another thread: it also sees one that blocks the loop."""
        for lane in list(self._lanes.values()):
            call = lane.call
            if call is not None:
                self._warn_if_slow(lane, call, now)

    def _start(self, lane: _Lane) -> None:
        lane.task = asyncio.get_running_loop().create_task(self._serve(lane), name=f"eventsh {lane.handler.name}")
        # Not in a `finally` of the task: one that is cancelled before its first step never gets there.
        lane.task.add_done_callback(lambda _: self._ended(lane))

    def _ended(self, lane: _Lane) -> None:
        if lane.queue and not self._closed:
            # It was cancelled by someone else than us. That is no reason to lose what waits behind.
            self._start(lane)
        else:
            del self._lanes[lane.handler]

    async def _serve(self, lane: _Lane) -> None:
        turn_ends = self._clock() + _TURN_S
        while lane.queue:
            item = lane.queue.popleft()
            is_cancelled = await self._call(lane, item)
            self._on_done(item.delivery)
            if is_cancelled:
                # Perhaps this task itself was; `_ended` goes on with a new one.
                return
            if self._clock() >= turn_ends:
                await asyncio.sleep(0)
                turn_ends = self._clock() + _TURN_S

    async def _call(self, lane: _Lane, item: Item) -> bool:
        """Call the handler and wait for it. True: it was cancelled, and not by us."""
        handler = lane.handler
        begun, data, event, source, delivery = item
        if begun is None:
            if not handler.active:
                # Unregistered while this waited, perhaps by itself: it must not be called any more.
                return False
            handler.calls += 1
        lane.call = call = (self._clock(), source, event)
        REPLAYED.set(delivery.is_replayed)
        try:
            # A weak handler whose object is gone gives None.
            result = handler.call(data, event, source, delivery.pid) if begun is None else begun
            if result is not None:
                await result
        except asyncio.CancelledError as error:
            if self._closed:
                raise
            self._reporter.failure(handler, source, event, error)
            return True
        except (KeyboardInterrupt, GeneratorExit):
            # The program is told to end, or the loop is gone.
            raise
        except BaseException as error:  # noqa: BLE001 - sys.exit in a handler must not end the loop either
            self._reporter.failure(handler, source, event, error)
        finally:
            lane.call = None
            self._warn_if_slow(lane, call, self._clock())
        return False

    def _warn_if_slow(self, lane: _Lane, call: tuple[float, str, str], now: float) -> None:
        started, source, event = call
        if now - started > self.timeout_s and lane.told is not call:
            lane.told = call
            self._reporter.slow(lane.handler, source, event, now - started, self.timeout_s)


def _abandon(item: Item) -> None:
    # A coroutine that nobody will await says so when it is collected, and the program can't help it.
    if inspect.iscoroutine(item.begun):
        item.begun.close()
