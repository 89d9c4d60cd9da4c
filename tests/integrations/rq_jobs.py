"""Jobs for RQ that post, and the worker classes that run them."""

from __future__ import annotations

import os
from typing import Any, ClassVar

from rq.worker import SimpleWorker, SpawnWorker, Worker

import eventsh
from eventsh.integrations.rq import EventsMixin


class _Addressed(EventsMixin):
    events_address = os.environ.get("APP_ADDRESS")
    events_options: ClassVar[dict[str, Any]] = {"timeout": 30.0, "linger": 0.5}


class Forking(_Addressed, Worker):
    """A process for each job, by `os.fork`."""


class Spawning(_Addressed, SpawnWorker):
    """A process for each job, by `posix_spawn`."""


class Simple(_Addressed, SimpleWorker):
    """All jobs in one process."""


def post_many(first: int, count: int) -> None:
    """Post numbers in one go."""
    for number in range(first, first + count):
        eventsh.post("app", "e", number)
