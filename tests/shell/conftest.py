"""A directory whose path is short enough for sockets, and shells in terminals that are gone in the end."""

from __future__ import annotations

import socket
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.shell.terminal import Terminal


@pytest.fixture
def directory() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="evsh-", dir="/tmp", ignore_cleanup_errors=True) as name:
        yield Path(name)


@pytest.fixture
def open_shell(directory: Path) -> Iterator[Callable[..., Terminal]]:
    opened: list[Terminal] = []

    def open_shell(*arguments: str, **variables: str) -> Terminal:
        opened.append(Terminal(directory, *arguments, **variables))
        return opened[-1]

    yield open_shell
    for terminal in opened:
        terminal.kill()


@pytest.fixture
def free_port() -> Callable[[], int]:
    def find() -> int:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            return int(probe.getsockname()[1])

    return find
