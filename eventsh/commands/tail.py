"""`eventsh tail`: watch the events that cross a broker, as an observer for whom nobody waits."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from eventsh.core.outbox import Outbox
from eventsh.core.registry import Registry
from eventsh.core.session import Session
from eventsh.event import LIFECYCLE_SOURCE
from eventsh.options import Options
from eventsh.runtime.client import Client
from eventsh.runtime.endpoint import find_endpoint
from eventsh.runtime.loop import new_event_loop

if TYPE_CHECKING:
    from eventsh.commands.patterns import Pattern
    from eventsh.core.delivery import Delivery

__all__ = ["Seen", "tail"]


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
        self.done = asyncio.Event()

    def dispatch(self, delivery: Delivery) -> bool:
        seq = delivery.first_seq
        for source, event, datas in delivery.runs:
            is_wanted = self._pattern.matches(source, event)
            # What a process tells itself of its own life is nothing that crossed the broker; a gap is.
            is_wanted = is_wanted and (bool(seq) or (source == LIFECYCLE_SOURCE and event == "gap"))
            for data in datas:
                if is_wanted and not self.done.is_set():
                    if not self._on_event(Seen(source, event, data, delivery.pid, seq, delivery.time_ns)):
                        self.done.set()
                seq += bool(seq)
        return True

    def close(self) -> None:
        pass


def tail(
    address: str | None,
    pattern: Pattern,
    on_event: Callable[[Seen], bool],
    *,
    on_state: Callable[[bool], None],
    timeout_s: float,
) -> None:
    """Call `on_event` for each event that matches, until it gives False or the caller is interrupted.

    `on_state` is told when the observer is attached, and when it no longer is; it attaches again by itself. What it
    was too slow for is seen as an `eventsh` `gap` event. Raises TransportError when no broker answers at the start.
    """
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        runner.run(_watch(address, pattern, on_event, on_state, timeout_s))


async def _watch(
    address: str | None,
    pattern: Pattern,
    on_event: Callable[[Seen], bool],
    on_state: Callable[[bool], None],
    timeout_s: float,
) -> None:
    transport, found = find_endpoint(address)
    options = Options(role="observer", broker="never")
    watcher = _Watcher(pattern, on_event)
    outbox = Outbox(
        origin=int.from_bytes(os.urandom(4), "little") or 1,
        pid=os.getpid(),
        max_queue_len=options.max_queue_len,
        max_payload_len=options.max_payload_len,
        on_batch=lambda: None,
    )
    registry = Registry()
    session = Session(outbox, registry, identity=os.urandom(16).hex(), role="observer", take_unique=False)
    session.release()
    client = Client(transport, found, options, session, registry, dispatcher=watcher, on_state=on_state)
    client.start()
    try:
        await client.wait_first_attempt(timeout_s)
        await watcher.done.wait()
    finally:
        await client.close(leave=True, timeout=1.0)
