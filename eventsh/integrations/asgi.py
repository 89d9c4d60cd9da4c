"""ASGI: a bus attached from the lifespan's startup to its shutdown.

For Starlette and FastAPI, `lifespan`; for any other application, `EventsMiddleware`. Both put the bus at
`state["events"]`. An `AsyncEvents` runs its handlers in the application's own loop; an `Events` runs them in a thread, and
so works under trio too. At shutdown the worker's place is kept for `timeout` seconds, so that a successor misses nothing.
Knows ASGI only by its messages.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, MutableMapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from typing import Any, TypeAlias

from eventsh.api import AsyncEvents, Events
from eventsh.errors import EventError

__all__ = ["EventsMiddleware", "lifespan"]

Scope: TypeAlias = MutableMapping[str, Any]
Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
Application: TypeAlias = Callable[[Scope, Receive, Send], Awaitable[None]]

_log = logging.getLogger("eventsh")

_KEY = "events"
# After these the application's own part of the lifespan is over.
_LAST_MESSAGES = ("lifespan.startup.failed", "lifespan.shutdown.complete", "lifespan.shutdown.failed")


def lifespan(
    events: AsyncEvents | Events | str | None = None, **options: Any
) -> Callable[[Any], AbstractAsyncContextManager[dict[str, AsyncEvents | Events]]]:
    """Make the `lifespan` argument of Starlette and FastAPI; `request.state.events` is then the bus.

    Args:
        events: a bus, or the address of an `AsyncEvents` that is made here.
        **options: as for `configure`.

    Raises:
        ConfigureError: an option is wrong.
    """
    bus, changes = _bus_of(events, options)

    @asynccontextmanager
    async def attached(app: Any) -> AsyncIterator[dict[str, AsyncEvents | Events]]:
        bus.configure(**changes)
        try:
            yield {_KEY: bus}
        finally:
            await _close(bus)

    return attached


class EventsMiddleware:
    """Wraps an ASGI application, with a lifespan of its own or without. `scope["state"]["events"]` is the bus.

    Attached before the application's startup, and closed after its shutdown. Where the server runs no lifespan, attached
    at the first request, with a WARNING.

    Args:
        app: the application.
        events: a bus, or the address of an `AsyncEvents` that is made here.
        **options: as for `configure`.

    Raises:
        ConfigureError: an option is wrong.
    """

    def __init__(self, app: Application, events: AsyncEvents | Events | str | None = None, **options: Any) -> None:
        self.app = app
        self.events, self._changes = _bus_of(events, options)
        self._had_lifespan = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the application for one scope."""
        scope.setdefault("state", {})[_KEY] = self.events
        if scope["type"] != "lifespan":
            if not self._had_lifespan:
                self._attach_without_lifespan()
            await self.app(scope, receive, send)
            return
        self._had_lifespan = True
        startup = await receive()
        failure = None
        try:
            self.events.configure(**self._changes)
        except EventError as error:
            failure = str(error)
        if failure is not None:
            # Raised, it would be taken for an application without a lifespan.
            await send({"type": "lifespan.startup.failed", "message": failure})
            return
        try:
            await self._pass_lifespan(startup, scope, receive, send)
        finally:
            await _close(self.events)

    def _attach_without_lifespan(self) -> None:
        # An application that configures the bus elsewhere, as in the lifespan of the one that this is mounted in, closes
        # it there.
        if not self.events.configured():
            self.events.configure(**self._changes)
            _log.warning(
                "%s: attached at the first request, because the server ran no lifespan for this application. Events "
                "that came before have passed it by, and posts that are not confirmed when the server ends are lost: "
                "wrap the outermost application in EventsMiddleware, and don't turn the lifespan off",
                self.events.address,
            )
        self._had_lifespan = True

    async def _pass_lifespan(self, startup: Message, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the lifespan to the application, and if it has none, answer in its place."""
        unread = [startup]

        async def receive_all() -> Message:
            return unread.pop() if unread else await receive()

        async def send_closed(message: Message) -> None:
            # The server may end the process as soon as it has the last message.
            if message["type"] in _LAST_MESSAGES:
                await _close(self.events)
            await send(message)

        try:
            await self.app(scope, receive_all, send_closed)
        except Exception:
            # To have no lifespan, an application raises whatever it likes, without a look at what there is.
            if not unread:
                raise
        if unread:
            await send_closed({"type": "lifespan.startup.complete"})
            await receive()
            await send_closed({"type": "lifespan.shutdown.complete"})


def _bus_of(
    events: AsyncEvents | Events | str | None, options: dict[str, Any]
) -> tuple[AsyncEvents | Events, dict[str, Any]]:
    """The bus, and the options that it does not have yet."""
    if isinstance(events, AsyncEvents | Events):
        return events, options
    return AsyncEvents(events, **options), {}


async def _close(events: AsyncEvents | Events) -> None:
    with _holding_back_sigterm():
        if isinstance(events, AsyncEvents):
            await events.close(leave=False)
        elif asyncio._get_running_loop() is not None:
            # Not in the loop: a handler may wait for something there.
            await asyncio.to_thread(events.close, leave=False)
        else:
            # Under trio, where a thread can't be awaited without trio. No request is left that this could hold up.
            events.close(leave=False)


@contextmanager
def _holding_back_sigterm() -> Iterator[None]:
    """Have a SIGTERM that would kill this process do so after the block.

    hypercorn sends one to the workers that still shut down, as soon as the first has ended.
    """
    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    received: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: received.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        if received:
            signal.raise_signal(signal.SIGTERM)
