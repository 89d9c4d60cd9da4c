"""`eventsh handlers`: what is registered in each worker."""

from __future__ import annotations

from collections import Counter
from typing import Any

from eventsh.runtime.blocking import BlockingClient
from eventsh.runtime.endpoint import find_endpoint

__all__ = ["handlers"]

# What makes two handlers of two workers the same one.
_SAME = ("source", "event", "name", "location", "weak", "async")


def handlers(address: str | None, *, timeout_s: float) -> list[dict[str, Any]]:
    """Every attached worker with its `handlers`, or with an `error` where it did not answer.

    A handler `differs` where not every worker that answered has it, just as often. Raises TransportError when no broker
    answers, NotConnected when it does not answer in time.
    """
    transport, found = find_endpoint(address)
    with BlockingClient(transport, found, timeout_s=timeout_s) as client:
        answer = client.ask("handlers")
    workers = [
        {
            "worker_id": row["worker_id"],
            "pid": row["pid"],
            "error": row["error"],
            "handlers": [dict(handler) for handler in row["data"] or []],
        }
        for row in answer["workers"]
    ]
    _mark([worker["handlers"] for worker in workers if worker["error"] is None])
    return workers


def _mark(pools: list[list[dict[str, Any]]]) -> None:
    counts = [Counter(_identity(handler) for handler in pool) for pool in pools]
    for pool in pools:
        for handler in pool:
            identity = _identity(handler)
            handler["differs"] = len({count[identity] for count in counts}) > 1


def _identity(handler: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(handler[name] for name in _SAME)
