"""Row 10 of FAULTS.md with the whole program. Its cases one by one are in tests/transports/test_unix.py and
tests/conformance/test_life.py (F5), and many that start at once in tests/runtime/test_client.py."""

from __future__ import annotations

import os
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from eventsh.commands.status import status
from eventsh.errors import EventError
from tests.faults.campaign import directory
from tests.faults.processes import DEADLINE_S, Served, ask, environment, wait_until

OTHER_UID = 65534
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user")


@pytest.fixture
def path() -> Iterator[Path]:
    with directory() as path:
        yield path


@contextmanager
def serving(path: Path) -> Iterator[Served]:
    pool = Served(path, f"unix:{path}/run/e.sock", 1)
    try:
        yield pool
    finally:
        assert pool.stop() == 0


def refusal(path: Path, address: str) -> tuple[int, str]:
    """What `eventsh serve` says there, in one line, and with which status."""
    done = subprocess.run(
        [sys.executable, "-m", "eventsh", "serve", "--workers", "1", "--listen", address],
        capture_output=True,
        text=True,
        env=environment(path),
        timeout=DEADLINE_S,
        check=False,
    )
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1, done.stderr
    return done.returncode, done.stderr


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_with_umask_0_nobody_else_can_read_or_write_anything(path: Path) -> None:
    before = os.umask(0)
    try:
        with serving(path) as pool:
            modes = {entry.name: mode(entry) for entry in (path / "run").iterdir()}
            assert modes == {"e.sock": 0o600, "e.sock.lock": 0o600}
            assert mode(path / "run") == 0o700
            assert ask(pool.address) is not None
    finally:
        os.umask(before)


def test_a_symbolic_link_in_place_of_the_socket_is_refused_and_left_alone(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path / "target"))
    (path / "e.sock").symlink_to("target")
    code, error = refusal(path, f"unix:{path}/e.sock")
    assert code == 1
    assert "symbolic link" in error
    assert os.readlink(path / "e.sock") == "target"
    assert (path / "target").is_socket()


def test_a_path_that_is_too_long_is_refused_before_anything_starts(path: Path) -> None:
    code, error = refusal(path, f"unix:{path}/{'x' * 107}")
    assert code == 2
    assert "at most 107" in error
    assert list(path.iterdir()) == []


@as_root
def test_another_user_is_turned_away_with_a_reason_and_the_pool_goes_on(path: Path) -> None:
    with serving(path) as pool:
        before = ask(pool.address)
        # As if somebody had opened the way to it.
        for opened in (path, path / "run"):
            opened.chmod(0o755)
        (path / "run" / "e.sock").chmod(0o666)
        answer = ask_as_other_user(pool.address)
        assert "user 0" in answer, answer
        wait_until(lambda: f"belongs to user {OTHER_UID}" in pool.log, "it is warned about")
        after = ask(pool.address)
        assert before is not None
        assert after is not None
        assert after["broker"]["epoch"] == before["broker"]["epoch"]


def ask_as_other_user(address: str) -> str:
    """What `eventsh status` tells another user of this host."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.setresuid(OTHER_UID, OTHER_UID, OTHER_UID)
            try:
                answer = f"served: {status(address, timeout_s=5.0)}"
            except EventError as error:
                answer = f"refused: {error}"
            os.write(writing, answer.encode())
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        answer = pipe.read()
    os.waitpid(pid, 0)
    return answer
