"""Applications for ASGI servers, with and without a lifespan of their own, whose requests and shutdowns post.

/post?event=e&data=1[&unique=key]
/post-many?count=n, without waiting for the confirmation
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import parse_qs

from starlette.applications import Starlette
from starlette.routing import Mount

import eventsh
from eventsh.integrations.asgi import EventsMiddleware, lifespan
from tests.integrations.journal import record

OPTIONS: dict[str, Any] = {"timeout": 30.0, "linger": 0.5}

events = eventsh.AsyncEvents(os.environ["APP_ADDRESS"], **OPTIONS)
threaded = eventsh.Events(os.environ["APP_ADDRESS"], **OPTIONS)
for bus in (events, threaded, eventsh):
    bus.register(record, "app")
    bus.register(record, "eventsh", "gap", "stopping")

# The number of posts of a shutdown.
AT_SHUTDOWN = int(os.environ.get("AT_SHUTDOWN", "0"))


def post_at_shutdown(post: Any) -> None:
    for number in range(AT_SHUTDOWN):
        post("app", "e", number)
    record(None, "posted", "shutdown", None)


async def answer(scope: Any, receive: Any, send: Any) -> None:
    # It has no lifespan: it fails when it is asked for one.
    assert scope["type"] == "http"
    bus = scope["state"]["events"]
    query = {name: values[0] for name, values in parse_qs(scope["query_string"].decode()).items()}
    if scope["path"].endswith("/post-many"):
        for number in range(int(query["count"])):
            bus.post("app", "e", number)
    if scope["path"].endswith("/post"):
        bus.post("app", query["event"], query.get("data"), unique=query.get("unique"))
        if isinstance(bus, eventsh.AsyncEvents):
            await bus.flush(30)
        else:
            bus.flush(30)
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]})
    await send({"type": "http.response.body", "body": str(os.getpid()).encode()})


wrapped = EventsMiddleware(answer, events)
wrapped_thread = EventsMiddleware(answer, threaded)
# Starlette runs no lifespan of an application that is mounted.
mounted = Starlette(routes=[Mount("/sub", app=wrapped)])


@contextlib.asynccontextmanager
async def posting_at_shutdown(app: Starlette) -> AsyncIterator[dict[str, Any]]:
    async with lifespan(events)(app) as state:
        yield state
        post_at_shutdown(events.post)


starlette = Starlette(routes=[Mount("/", app=answer)], lifespan=posting_at_shutdown)


def with_shutdown(post: Any) -> Any:
    """An application that knows of no bus, and posts as it shuts down."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "lifespan":
            scope.setdefault("state", {}).setdefault("events", eventsh)
            await answer(scope, receive, send)
            return
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        post_at_shutdown(post)
        await send({"type": "lifespan.shutdown.complete"})

    return app


middleware = EventsMiddleware(with_shutdown(events.post), events)
middleware_thread = EventsMiddleware(with_shutdown(threaded.post), threaded)
# For a server that attaches the default bus, as gunicorn with its hooks does.
default = with_shutdown(eventsh.post)
