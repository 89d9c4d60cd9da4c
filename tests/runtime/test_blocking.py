"""A program that posts without a loop, at a broker that does not let it in."""

from __future__ import annotations

import socket
import tempfile
import threading
import time
from pathlib import Path

import pytest

from eventsh.errors import EventError
from eventsh.options import Options
from eventsh.runtime.blocking import BlockingClient
from eventsh.runtime.endpoint import find_endpoint
from eventsh.testing.recorder import DEADLINE_S

CONNECTIONS = 20


@pytest.mark.parametrize("with_token", [False, True])
def test_a_broker_that_closes_at_once_is_not_asked_as_often_as_the_processor_allows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, with_token: bool
) -> None:
    if with_token:
        token = tmp_path / "token"
        token.write_text("0123456789abcdef" * 4)
        token.chmod(0o600)
        monkeypatch.setenv("EVENTSH_TOKEN_FILE", str(token))
    times: list[float] = []
    with (
        tempfile.TemporaryDirectory(prefix="evsh-", dir="/tmp") as directory,
        socket.socket(socket.AF_UNIX) as listener,
    ):
        listener.bind(f"{directory}/a.sock")
        listener.listen()

        def turn_away() -> None:
            while len(times) < CONNECTIONS:
                connection, _ = listener.accept()
                times.append(time.monotonic())
                connection.close()
            # Nobody listens any more, and the client gives up at once.
            listener.close()

        thread = threading.Thread(target=turn_away, daemon=True)
        thread.start()
        transport, address = find_endpoint(f"unix:{directory}/a.sock", Options())
        with pytest.raises(EventError), BlockingClient(transport, address, timeout_s=DEADLINE_S):
            pass
        thread.join(DEADLINE_S)
    assert len(times) == CONNECTIONS
    # A busy machine makes the pauses longer only.
    assert times[-1] - times[0] >= 0.015 * (CONNECTIONS - 1)
