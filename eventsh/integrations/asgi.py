"""ASGI: a bus in the application's own loop, attached from the lifespan's startup to its shutdown.

For Starlette and FastAPI, `lifespan`; for any other application, `EventsMiddleware`. Both take an `AsyncEvents` whose
handlers are already registered, and put it at `state["events"]`. At shutdown the worker's place is kept for `timeout`
seconds, so that a successor misses nothing. Knows ASGI only by its messages.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, TypeAlias

from eventsh.api import AsyncEvents
from eventsh.errors import EventError

__all__ = ["EventsMiddleware", "lifespan"]

Scope: TypeAlias = MutableMapping[str, Any]
Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
Application: TypeAlias = Callable[[Scope, Receive, Send], Awaitable[None]]

_KEY = "events"
# After these the application's own part of the lifespan is over.
_LAST_MESSAGES = ("lifespan.startup.failed", "lifespan.shutdown.complete", "lifespan.shutdown.failed")


def lifespan(
    events: AsyncEvents | str | None = None, **options: Any
) -> Callable[[Any], AbstractAsyncContextManager[dict[str, AsyncEvents]]]:
    """The `lifespan` argument of Starlette and FastAPI; `request.state.events` is then the bus.

    `events` is a bus, or the address of one that is made here. Raises ConfigureError for a wrong option.
    """
    bus = events if isinstance(events, AsyncEvents) else AsyncEvents(events, **options)
    changes = options if bus is events else {}

    @asynccontextmanager
    async def attached(app: Any) -> AsyncIterator[dict[str, AsyncEvents]]:
        bus.configure(**changes)
        try:
            yield {_KEY: bus}
        finally:
            await bus.close(leave=False)

    return attached


class EventsMiddleware:
    """Wraps an ASGI application, with a lifespan of its own or without. `scope["state"]["events"]` is the bus.

    Attached before the application's startup, and closed after its shutdown. Raises ConfigureError for a wrong option.
    """

    def __init__(self, app: Application, events: AsyncEvents | str | None = None, **options: Any) -> None:
        self.app = app
        self.events = events if isinstance(events, AsyncEvents) else AsyncEvents(events, **options)
        self._changes = options if self.events is events else {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope.setdefault("state", {})[_KEY] = self.events
        if scope["type"] != "lifespan":
            await self.app(scope, receive, send)
            return
        startup = await receive()
        try:
            self.events.configure(**self._changes)
        except EventError as error:
            # Raised, it would be taken for an application without a lifespan.
            await send({"type": "lifespan.startup.failed", "message": str(error)})
            return
        try:
            await self._pass_lifespan(startup, scope, receive, send)
        finally:
            await self.events.close(leave=False)

    async def _pass_lifespan(self, startup: Message, scope: Scope, receive: Receive, send: Send) -> None:
        """Give the lifespan to the application, and if it knows none, answer in its place."""
        unread = [startup]

        async def receive_all() -> Message:
            return unread.pop() if unread else await receive()

        async def send_closed(message: Message) -> None:
            # The server may end the process as soon as it has the last message.
            if message["type"] in _LAST_MESSAGES:
                await self.events.close(leave=False)
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
