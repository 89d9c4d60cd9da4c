"""The shell's own connection: an observer that sees every event, runs the shell's local handlers, and asks.

It lives in a thread of its own, so the prompt never waits for it and it never waits for the prompt. It is this process's
default bus: what handlers that are loaded here do with `eventsh` reaches the same broker.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from eventsh.api import default_events
from eventsh.errors import EventError
from eventsh.runtime.bus import default_bus
from eventsh.runtime.scripts import Scripts
from eventsh.shell.watch import Tap, Watcher

__all__ = ["Figures", "Link"]

_ATTACH_TIMEOUT_S = 10.0
# Longer than the broker gives its workers to answer.
_ASK_TIMEOUT_S = 5.0
_LOOK_EACH_S = 1.0
_LIVE = ("attached", "resyncing")


@dataclass(frozen=True, slots=True)
class Figures:
    """What the bar shows: as of the last look."""

    is_attached: bool = False
    workers: int = 0
    slots: int = 0
    events_per_s: float = 0.0
    dropped: int = 0
    failed: int = 0


class Link:
    """One attachment to one address, until `close`. `on_state` is told, in the connection's thread, when the connection is
    lost and when there is another; `on_look` is called there each second."""

    def __init__(
        self, address: str, watcher: Watcher, *, on_state: Callable[[bool], None], on_look: Callable[[], None]
    ) -> None:
        self.address = address
        self.figures = Figures()
        self.workers: list[dict[str, Any]] = []
        self._watcher = watcher
        self._events = default_events()
        self._bus = default_bus()
        # A handler that was typed here and exits is reported; it must not end the shell.
        self._bus.on_exit = lambda error: None
        self._on_state = on_state
        self._on_look = on_look
        self._looking: Any = None
        self._scripts: Scripts | None = None
        self._last: tuple[int, int, float] | None = None

    def open(self) -> None:
        """Attach. Raises EventError."""
        self._bus.tap = lambda inner: Tap(inner, self._watcher)
        self._events.configure(self.address, role="observer", broker="never")
        # Nobody is going to register a first handler, that events would wait for.
        self._bus.session.inbox.release()
        try:
            self._events.wait_ready(_ATTACH_TIMEOUT_S)
        except BaseException:
            self._events.close(timeout=0)
            raise
        assert self._bus.loop is not None
        self._bus.working_client().on_state = self._on_state
        self._looking = asyncio.run_coroutine_threadsafe(self._look(), self._bus.loop)

    def ask(self, what: str, arguments: dict[str, Any] | None = None) -> Any:
        """Ask the broker, and wait for its answer. Not in the connection's own thread. Raises EventError."""
        thread = self._bus.thread
        assert thread is not None
        waiters = self._bus.working_client().waiters
        return thread.run(lambda: waiters.ask(what, arguments or {}, _ASK_TIMEOUT_S))

    def take_script(self, what: str, arguments: dict[str, Any], write: Callable[[str, str], None]) -> dict[str, Any]:
        """Add or remove a handler in this process. `write` gets what those handlers print, in the connection's thread."""
        if self._scripts is None:
            self._scripts = Scripts(self._bus.registry, write)
        scripts = self._scripts

        async def take() -> dict[str, Any]:
            # Where handlers run: none of them is called half registered.
            return scripts.take(what, arguments)

        thread = self._bus.thread
        assert thread is not None
        return thread.run(take)

    def settle(self) -> None:
        """Wait until what the broker had for this shell before now has arrived and is handled, as far as that is soon."""
        with contextlib.suppress(EventError):
            self.ask("status")
            thread = self._bus.thread
            assert thread is not None
            client, inbox = self._bus.working_client(), self._bus.session.inbox
            thread.run(lambda: client.waiters.wait_until(lambda: inbox.is_idle, 1.0, "not handled"))

    def close(self) -> None:
        """Detach."""
        if self._looking is not None:
            self._looking.cancel()
        self._events.close(timeout=1.0)

    async def _look(self) -> None:
        """Ask for the figures, every now and then."""
        loop = asyncio.get_running_loop()
        client = self._bus.working_client()
        while True:
            try:
                self._take_status(await client.waiters.ask("status", {}, _ASK_TIMEOUT_S), loop.time())
            except EventError:
                self.figures = replace(self.figures, is_attached=False, events_per_s=0.0)
                self._last = None
            self._on_look()
            await asyncio.sleep(_LOOK_EACH_S)

    def _take_status(self, status: dict[str, Any], now: float) -> None:
        broker, self.workers = status["broker"], status["workers"]
        rate = 0.0
        if self._last is not None and self._last[0] == broker["epoch"] and now > self._last[2]:
            rate = max(0, broker["events"] - self._last[1]) / (now - self._last[2])
        self._last = (broker["epoch"], broker["events"], now)
        self.figures = Figures(
            is_attached=True,
            workers=sum(worker["state"] in _LIVE for worker in self.workers),
            slots=len(self.workers),
            events_per_s=rate,
            dropped=sum(worker["dropped"] for worker in self.workers),
            failed=sum(worker["failed"] for worker in self.workers),
        )
