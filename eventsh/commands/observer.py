"""A client that watches a broker, for the commands that do: nobody waits for it, and it takes no unique event."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from eventsh.core.outbox import Outbox
from eventsh.core.registry import Registry
from eventsh.core.session import Session
from eventsh.runtime.client import Client
from eventsh.runtime.endpoint import check_reachable, complete_options, find_endpoint
from eventsh.runtime.host import pid_space
from eventsh.runtime.token import client_proofs

if TYPE_CHECKING:
    from eventsh.runtime.client import Deliveries

__all__ = ["new_observer"]


def new_observer(
    address: str | None, dispatcher: Deliveries, on_state: Callable[[bool], None], *, reads_whole: bool = False
) -> Client:
    """A client to be started, in the running loop. With `reads_whole` it gives frames as they came."""
    options = complete_options({"role": "observer", "broker": "never"})
    transport, found = find_endpoint(address, options)
    check_reachable(transport, found)
    outbox = Outbox(
        origin=int.from_bytes(os.urandom(4), "little") or 1,
        pid=os.getpid(),
        max_queue_len=options.max_queue_len,
        max_payload_len=options.max_payload_len,
    )
    registry = Registry()
    session = Session(
        outbox,
        registry,
        identity=os.urandom(16).hex(),
        clock=time.monotonic,
        role="observer",
        take_unique=False,
        reads_whole=reads_whole,
        host=pid_space(),
    )
    session.new_proof = client_proofs(options.token_file)
    session.inbox.release()
    return Client(transport, found, options, session, registry, dispatcher=dispatcher, on_state=on_state)
