"""A directory for each server, and its end."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.integrations.servers import Server


@pytest.fixture
def directory() -> Iterator[Path]:
    # Not tmp_path: a socket's path has to be short.
    with tempfile.TemporaryDirectory(prefix="evsh-", dir="/tmp", ignore_cleanup_errors=True) as name:
        yield Path(name)


@pytest.fixture
def start(directory: Path) -> Iterator[Callable[..., Server]]:
    """Start a server by one of the functions of servers.py."""
    servers: list[Server] = []

    def start(server: Callable[..., Server], *arguments: str, **rest: str) -> Server:
        servers.append(server(directory, *arguments, **rest))
        return servers[-1]

    yield start
    for server in servers:
        server.stop()
