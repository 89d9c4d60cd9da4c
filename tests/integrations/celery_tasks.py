"""A Celery application whose tasks post."""

from __future__ import annotations

import os
import signal
from typing import Any

from celery import Celery
from celery.signals import task_postrun

import eventsh
from eventsh.integrations.celery import attach_workers
from tests.integrations.journal import record

app = Celery("tests", broker=os.environ["CELERY_BROKER"])
app.conf.update(worker_prefetch_multiplier=1, worker_hijack_root_logger=False)
OPTIONS: dict[str, Any] = {"timeout": 30.0, "linger": 0.5}
if os.environ.get("CONFIGURE_AT_IMPORT"):
    eventsh.configure(os.environ["APP_ADDRESS"], **OPTIONS)
    attach_workers()
else:
    attach_workers(os.environ["APP_ADDRESS"], **OPTIONS)
eventsh.register(record, "app", "to-workers")


@app.task(name="post_many")
def post_many(first: int, count: int) -> None:
    """Post numbers in one go."""
    for number in range(first, first + count):
        eventsh.post("app", "e", number)
    record(None, "posted", "task", None)


@app.task(name="post_many_and_end")
def post_many_and_end(first: int, count: int, end: str) -> None:
    """Post numbers in one go, and have the process ended in the task, or killed right after it."""
    post_many(first, count)
    if end == "terminated":
        os.kill(os.getpid(), signal.SIGTERM)
    else:
        task_postrun.connect(die, weak=False)


@app.task(name="post_to_workers")
def post_to_workers() -> None:
    eventsh.post("app", "to-workers")


def die(**_: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)
