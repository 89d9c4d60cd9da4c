"""A bus meets a form of posts that its broker or itself does not know: the log, the handlers and the status have it."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from typing import Any

from eventsh.api import Events
from eventsh.commands.status import status

DEADLINE_S = 30.0


def wait_until(condition: Callable[[], object]) -> None:
    end = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_posts_in_a_form_that_the_broker_does_not_know_are_logged_and_are_a_gap_in_their_place(caplog):
    seen: list[Any] = []

    def handle(data: Any, event: str, source: str, pid: int | None) -> None:
        if event in ("e", "gap"):
            seen.append(data if event == "e" else data["missed"])

    # Not tmp_path: a socket's path has to be short.
    with tempfile.TemporaryDirectory(prefix="evsh-", dir="/tmp", ignore_cleanup_errors=True) as directory:
        address = f"unix:{directory}/a.sock"
        events = Events(address, linger=0.2)
        events.register(handle)
        events.post("app", "e", "before")
        # As a bus would that was attached to a broker of a later version.
        events._bus.outbox.post_body(b"a later form", 2, pid=os.getpid(), flags=64)
        events.post("app", "e", "behind")
        with events:
            events.flush(DEADLINE_S)
            wait_until(lambda: len(seen) == 3)
            assert seen == ["before", 2, "behind"]
            wait_until(lambda: status(address, timeout_s=DEADLINE_S)["workers"][0]["unread"] == 2)
    warnings = [record.getMessage() for record in caplog.records]
    assert any("2 posts are in a form that this broker does not know" in text for text in warnings)
    assert any("missed 2 events: a batch said to hold 2 events holds 0" in text for text in warnings)
