"""An application for gunicorn whose requests post, freeze their worker, and tell who answers.

/post?event=e&data=1[&unique=key]
/post-many?count=n, without waiting for the confirmation
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import eventsh
from tests.integrations.journal import record

frozen = threading.Event()

if gate := os.environ.get("IMPORT_GATE"):
    # An application that takes long to load, and has some of its handlers already.
    eventsh.register(record, "early")
    while Path(gate).exists():
        Path(gate + ".reached").touch()
        time.sleep(0.05)

eventsh.register(record, "app")
eventsh.register(record, "eventsh", "gap", "stopping")


@eventsh.on("app", "freeze")
def freeze(data: Any, event: str, source: str, pid: int | None) -> None:
    """Do what was asked for, but never return in the first process, whose requests then hang too."""
    try:
        os.close(os.open(data, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return
    frozen.set()
    time.sleep(600)


if os.environ.get("CONFIGURE_AT_IMPORT"):
    eventsh.configure(os.environ["APP_ADDRESS"], timeout=30.0, linger=0.5)


def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    if frozen.is_set():
        Path(os.environ["JOURNAL"] + ".met").touch()
        time.sleep(600)
    query = {name: values[0] for name, values in parse_qs(environ["QUERY_STRING"]).items()}
    if environ["PATH_INFO"] == "/post-many":
        for number in range(int(query["count"])):
            eventsh.post("app", "e", number)
    if environ["PATH_INFO"] in ("/post", "/post-and-go"):
        eventsh.post("app", query["event"], query.get("data"), unique=query.get("unique"))
    if environ["PATH_INFO"] == "/post":
        # Answered only when it is sure, so that what was answered must be in the journals.
        eventsh.flush(30)
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [str(os.getpid()).encode()]
