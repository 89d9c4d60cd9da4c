"""The lifespan and the middleware, seen from the server's side of ASGI."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from eventsh.api import AsyncEvents
from eventsh.errors import ConfigureError
from eventsh.integrations.asgi import EventsMiddleware, lifespan

STARTUP, SHUTDOWN = {"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}


def run_lifespan(middleware: EventsMiddleware, state: dict[str, Any] | None = None) -> list[str]:
    """Give an application its lifespan; what it sends, and whether the bus was configured then."""
    sent: list[str] = []
    messages = [STARTUP, SHUTDOWN]

    async def receive() -> Any:
        return messages.pop(0)

    async def send(message: Any) -> None:
        sent.append(f"{message['type'].removeprefix('lifespan.')} {middleware.events.configured()}")
        if message["type"].endswith("failed"):
            messages.clear()

    scope: dict[str, Any] = {"type": "lifespan", "state": {} if state is None else state}
    asyncio.run(asyncio.wait_for(middleware(scope, receive, send), 10))
    return sent


async def without_lifespan(scope: Any, receive: Any, send: Any) -> None:
    raise KeyError(scope["type"])


async def silent(scope: Any, receive: Any, send: Any) -> None:
    pass


async def with_lifespan(scope: Any, receive: Any, send: Any) -> None:
    assert scope["state"]["events"].configured()
    assert await receive() == STARTUP
    await send({"type": "lifespan.startup.complete"})
    assert await receive() == SHUTDOWN
    assert scope["state"]["events"].configured()
    await send({"type": "lifespan.shutdown.complete"})


async def failing(scope: Any, receive: Any, send: Any) -> None:
    await receive()
    await send({"type": "lifespan.startup.failed", "message": "no"})


async def raising(scope: Any, receive: Any, send: Any) -> None:
    await receive()
    raise ValueError("at startup")


@pytest.mark.parametrize("app", [without_lifespan, silent, with_lifespan])
def test_the_bus_is_configured_from_startup_to_shutdown(app: Any):
    state: dict[str, Any] = {}
    middleware = EventsMiddleware(app, "inproc:asgi")
    assert run_lifespan(middleware, state) == ["startup.complete True", "shutdown.complete False"]
    assert state["events"] is middleware.events


def test_an_application_that_fails_at_startup_leaves_no_bus():
    middleware = EventsMiddleware(failing, "inproc:asgi-failing")
    assert run_lifespan(middleware) == ["startup.failed False"]


def test_what_an_application_raises_at_startup_reaches_the_server():
    middleware = EventsMiddleware(raising, "inproc:asgi-raising")
    with pytest.raises(ValueError, match="at startup"):
        run_lifespan(middleware)
    assert not middleware.events.configured()


def test_a_bus_that_can_not_be_configured_fails_the_startup():
    assert run_lifespan(EventsMiddleware(without_lifespan, "nowhere:/x")) == ["startup.failed False"]


@pytest.mark.parametrize("make", [lifespan, lambda **options: EventsMiddleware(silent, **options)])
def test_wrong_options_are_refused_at_once(make: Any):
    with pytest.raises(ConfigureError, match="tiemout"):
        make(tiemout=1)


def test_the_bus_is_in_the_state_of_requests_also_where_the_server_has_none():
    scopes: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        scopes.append(scope)

    async def nothing(*_: Any) -> Any:
        raise AssertionError

    middleware = EventsMiddleware(app, "inproc:asgi-request")
    asyncio.run(middleware({"type": "http"}, nothing, nothing))
    asyncio.run(middleware({"type": "websocket", "state": {"own": 1}}, nothing, nothing))
    assert [scope["state"] for scope in scopes] == [
        {"events": middleware.events},
        {"own": 1, "events": middleware.events},
    ]


def test_lifespan_gives_the_bus_and_takes_one_with_handlers():
    events = AsyncEvents("inproc:asgi-lifespan")

    async def run() -> list[Any]:
        seen: list[Any] = []
        events.register(lambda data, event, source, pid: seen.append(data), "app")
        async with lifespan(events, timeout=7.0)(None) as state:
            assert state == {"events": events}
            events.post("app", "e", 1)
            await events.flush(10)
        assert not events.configured()
        async with lifespan("inproc:asgi-lifespan")(None) as state:
            assert state["events"] is not events
            assert state["events"].address == "inproc:asgi-lifespan"
        return seen

    assert asyncio.run(run()) == [1]
