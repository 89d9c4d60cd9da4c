"""A program that posts without a loop, at a broker that does not let it in."""

from __future__ import annotations

import socket
import tempfile
import threading
from pathlib import Path

import pytest

from eventsh.errors import EventError
from eventsh.options import Options
from eventsh.runtime.blocking import BlockingClient
from eventsh.runtime.endpoint import find_endpoint


@pytest.mark.parametrize("with_token", [False, True])
def test_a_broker_that_closes_at_once_is_not_asked_as_often_as_the_processor_allows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, with_token: bool
) -> None:
    if with_token:
        token = tmp_path / "token"
        token.write_text("0123456789abcdef" * 4)
        token.chmod(0o600)
        monkeypatch.setenv("EVENTSH_TOKEN_FILE", str(token))
    connections = 0
    with (
        tempfile.TemporaryDirectory(prefix="evsh-", dir="/tmp") as directory,
        socket.socket(socket.AF_UNIX) as listener,
    ):
        listener.bind(f"{directory}/a.sock")
        listener.listen()

        def turn_away() -> None:
            nonlocal connections
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                connections += 1
                connection.close()

        thread = threading.Thread(target=turn_away)
        thread.start()
        try:
            transport, address = find_endpoint(f"unix:{directory}/a.sock", Options())
            with pytest.raises(EventError), BlockingClient(transport, address, timeout_s=0.4):
                pass
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()
    assert 1 < connections <= 25
