"""`eventsh status`: what a broker and its workers are doing."""

from __future__ import annotations

from typing import Any

from eventsh.escape import expressible
from eventsh.runtime.blocking import BlockingClient
from eventsh.runtime.endpoint import find_endpoint

__all__ = ["status"]


def status(address: str | None, *, timeout_s: float) -> dict[str, Any]:
    """The broker's own account, as `{"broker": {...}, "workers": [{...}, ...]}`.

    Raises TransportError when no broker answers, NotConnected when it does not answer in time.
    """
    transport, found = find_endpoint(address)
    with BlockingClient(transport, found, timeout_s=timeout_s) as client:
        answer: dict[str, Any] = client.ask("status")
    # A path can hold bytes that are no UTF-8, which JSON can't express.
    answer["broker"]["address"] = expressible(str(found))
    # The question itself is asked over a connection that is gone when the answer is read.
    answer["broker"]["connections"] -= 1
    return answer
