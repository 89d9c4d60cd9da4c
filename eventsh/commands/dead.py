"""`eventsh dead`: the dead letters of a broker."""

from __future__ import annotations

from typing import Any

from eventsh.runtime.blocking import BlockingClient
from eventsh.runtime.endpoint import find_endpoint

__all__ = ["dead"]


def dead(address: str | None, action: str, number: int | None, *, timeout_s: float) -> dict[str, Any]:
    """Ask a broker for its dead letters, or have it retry or drop some.

    Args:
        address: Of the broker; None: the default one.
        action: "list", "show", "retry" or "drop".
        number: The id of one dead letter; None: all of them.

    Returns:
        For list, `{"dead": [...], "discarded": n}`; for show, the dead letter; for retry and drop, `{"ids": [...]}`.

    Raises:
        EventError: There is no dead letter with this id, or no worker that lacks it.
        TransportError: No broker answers.
        NotConnected: The broker does not answer in time.
    """
    transport, found = find_endpoint(address)
    arguments = {} if number is None else {"id": number}
    with BlockingClient(transport, found, timeout_s=timeout_s) as client:
        answer: dict[str, Any] = client.ask(f"dead_{action}", arguments)
    return answer
