"""`eventsh tail`: watch the events that cross a broker, as an observer for whom nobody waits."""

from __future__ import annotations

import asyncio
import select
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from eventsh.commands.observer import new_observer
from eventsh.event import LIFECYCLE_SOURCE
from eventsh.runtime.loop import new_event_loop

if TYPE_CHECKING:
    from eventsh.commands.patterns import Pattern
    from eventsh.core.delivery import Delivery

__all__ = ["Seen", "tail"]

_READER_CHECK_S = 0.2


@dataclass(frozen=True, slots=True)
class Seen:
    """An event as an observer sees it. `seq` is its number at this broker and `time_ns` when it crossed it, in
    nanoseconds since 1970; both are 0 for what eventsh tells this observer alone (a gap)."""

    source: str
    event: str
    data: Any
    pid: int | None
    seq: int
    time_ns: int


class _Watcher:
    """Takes the place of the dispatcher: sees deliveries with their numbers, which handlers do not get."""

    pending = 0

    def __init__(self, pattern: Pattern, on_event: Callable[[Seen], bool]) -> None:
        self._pattern = pattern
        self._on_event = on_event
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def finish(self, error: BaseException | None = None) -> None:
        if self.done.done():
            return
        if error is None:
            self.done.set_result(None)
        else:
            self.done.set_exception(error)

    def dispatch(self, delivery: Delivery) -> bool:
        seq = delivery.first_seq
        for source, event, datas in delivery.runs:
            is_wanted = self._pattern.matches(source, event)
            # What a process tells itself of its own life is nothing that crossed the broker; a gap is.
            is_wanted = is_wanted and (bool(seq) or (source == LIFECYCLE_SOURCE and event == "gap"))
            for data in datas:
                if is_wanted and not self.done.done():
                    self._show(Seen(source, event, data, delivery.pid, seq, delivery.time_ns))
                seq += bool(seq)
        return True

    def _show(self, seen: Seen) -> None:
        try:
            if not self._on_event(seen):
                self.finish()
        except Exception as error:  # noqa: BLE001 - it is raised where the caller of `tail` can see it, not in the loop
            self.finish(error)

    def abandon(self) -> None:
        pass

    def close(self) -> None:
        pass


def tail(
    address: str | None,
    pattern: Pattern,
    on_event: Callable[[Seen], bool],
    *,
    on_state: Callable[[bool], None],
    timeout_s: float,
    output: int | None = None,
) -> None:
    """Call `on_event` for each event that matches, until it gives False or the caller is interrupted.

    `on_state` is told when the observer is attached, and when it no longer is; it attaches again by itself. What it
    was too slow for is seen as an `eventsh` `gap` event. `output` is the writing end of a pipe: when nobody reads it
    any more, the watch ends, not only with the next event. Raises TransportError when no broker listens at the start,
    NotConnected when it does not answer, and what `on_event` raises.
    """
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        runner.run(_watch(address, pattern, on_event, on_state, timeout_s, output))


async def _watch(
    address: str | None,
    pattern: Pattern,
    on_event: Callable[[Seen], bool],
    on_state: Callable[[bool], None],
    timeout_s: float,
    output: int | None,
) -> None:
    watcher = _Watcher(pattern, on_event)

    def tell(attached: bool) -> None:
        # Our own leaving is no news.
        if not watcher.done.done():
            on_state(attached)

    client = new_observer(address, watcher, tell)
    client.start()
    checking = asyncio.create_task(_finish_without_reader(output, watcher)) if output is not None else None
    try:
        await client.waiters.wait_first_attempt(timeout_s)
        await watcher.done
    finally:
        watcher.done.cancel()
        if checking is not None:
            checking.cancel()
        await client.close(leave=True, timeout=1.0)


async def _finish_without_reader(output: int, watcher: _Watcher) -> None:
    """Finish once the pipe `output` has no reader."""
    # Not loop.add_reader: uvloop makes the descriptor non-blocking there, for every process that shares the pipe. A
    # full pipe then tears lines, ours and theirs.
    poll = select.poll()
    poll.register(output, 0)
    while not poll.poll(0):  # noqa: ASYNC110 - nothing else reports the end of a reader without changing the descriptor
        await asyncio.sleep(_READER_CHECK_S)
    watcher.finish()
