"""Applications for uvicorn, one with a lifespan of its own and one without, whose requests post.

/post?event=e&data=1[&unique=key]
"""

from __future__ import annotations

import os
from typing import Any
from urllib.parse import parse_qs

import eventsh
from eventsh.integrations.asgi import EventsMiddleware, lifespan
from tests.integrations.journal import record

events = eventsh.AsyncEvents(os.environ["APP_ADDRESS"], timeout=30.0, linger=0.5)
events.register(record, "app")
events.register(record, "eventsh", "gap", "stopping")


async def answer(scope: Any, receive: Any, send: Any) -> None:
    assert scope["type"] == "http"
    bus = scope["state"]["events"]
    query = {name: values[0] for name, values in parse_qs(scope["query_string"].decode()).items()}
    if scope["path"] == "/post":
        bus.post("app", query["event"], query.get("data"), unique=query.get("unique"))
        await bus.flush(30)
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]})
    await send({"type": "http.response.body", "body": str(os.getpid()).encode()})


# It has no lifespan: it fails when it is asked for one.
wrapped = EventsMiddleware(answer, events)


async def starlette_like(scope: Any, receive: Any, send: Any) -> None:
    """What Starlette does with its argument `lifespan`."""
    if scope["type"] != "lifespan":
        await answer(scope, receive, send)
        return
    await receive()
    async with lifespan(events)(starlette_like) as state:
        scope["state"].update(state)
        await send({"type": "lifespan.startup.complete"})
        await receive()
    await send({"type": "lifespan.shutdown.complete"})
