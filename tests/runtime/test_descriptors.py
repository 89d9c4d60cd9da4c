"""Descriptors run out: while a broker starts, while it serves, and where a process is started again."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from threading import Thread

import pytest

from eventsh.commands.status import status
from eventsh.errors import EventError
from eventsh.protocol.messages import Hello
from eventsh.runtime.backoff import MAX_RESTARTS, Backoff
from eventsh.runtime.interpreter import python_command, python_environment
from eventsh.runtime.process import Process, Program
from tests.cli.pool import DEADLINE_S, Pool, wait_until

CROWD = 100
LIMIT = 64
# A quarter of the limit.
RESERVE = 16


def count_descriptors(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextmanager
def limited_broker(address: str, log: Path, *flags: str) -> Iterator[subprocess.Popen[bytes]]:
    """A broker with a low limit of descriptors, which this process does not have."""
    command = [*python_command("eventsh.runtime.broker"), "--address", address, "--linger=60", *flags]
    with log.open("wb") as stderr:
        broker = subprocess.Popen(
            ["sh", "-c", f'ulimit -n {LIMIT}; exec "$0" "$@"', *command], stderr=stderr, env=python_environment()
        )
    try:
        yield broker
    finally:
        broker.terminate()
        broker.wait(DEADLINE_S)


class Crowd:
    """Clients that connect from the first moment on, say hello, and stay."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._sockets: list[socket.socket] = []
        self._is_over = False
        self._thread = Thread(target=self._come)
        self._thread.start()

    def _come(self) -> None:
        while len(self._sockets) < CROWD and not self._is_over:
            sock = socket.socket(socket.AF_UNIX)
            try:
                sock.connect(self._path)
                number = len(self._sockets) + 1
                hello = Hello(f"client {number}", number, os.getpid(), "observer", None, False, 0, 0, 0, [], False)
                sock.sendall(hello.encode())
                self._sockets.append(sock)
            except OSError:
                sock.close()
                time.sleep(0.0005)

    def wait(self) -> None:
        self._thread.join()

    def leave(self) -> None:
        self._is_over = True
        self._thread.join()
        for sock in self._sockets:
            sock.close()


def answers(address: str) -> bool:
    try:
        return bool(status(address, timeout_s=5.0))
    except EventError:
        return False


@pytest.mark.parametrize("attempt", range(3))
@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts descriptors by /proc")
def test_a_broker_that_a_crowd_leaves_no_descriptor_for_starts_and_serves(attempt):
    with ExitStack() as stack:
        # Not tmp_path: a socket's path has to be short.
        directory = stack.enter_context(
            tempfile.TemporaryDirectory(prefix="evsh-", dir="/tmp", ignore_cleanup_errors=True)
        )
        address, log = f"unix:{directory}/a.sock", Path(directory) / "log"
        crowd = Crowd(f"{directory}/a.sock")
        stack.callback(crowd.leave)
        flags = ("--flight-recorder=65536", f"--flight-dir={directory}")
        pid = stack.enter_context(limited_broker(address, log, *flags)).pid
        crowd.wait()
        # Connections come up to the reserve, and no further.
        wait_until(lambda: count_descriptors(pid) >= LIMIT - RESERVE, "the broker has taken what it may")
        wait_until(lambda: "kept for files" in log.read_text(), "the log says so")
        began, used_s = time.monotonic(), cpu_s(pid)
        # What it opens meanwhile: the file of a flight recorder, in a thread of its own.
        os.kill(pid, signal.SIGUSR2)
        wait_until(lambda: "events are in" in log.read_text(), "the flight recorder is written")
        wait_until(lambda: time.monotonic() - began >= 2.0, "it rests")
        # Files of its own may be open beside the connections.
        assert count_descriptors(pid) <= LIMIT - RESERVE // 2
        assert cpu_s(pid) - used_s < 0.5 * (time.monotonic() - began)
        crowd.leave()
        wait_until(lambda: answers(address), "newcomers are served")
        assert "Traceback" not in log.read_text()
        assert "plugin" not in log.read_text()


def test_a_supervisor_without_descriptors_goes_on_trying_and_leaks_none(tmp_path: Path):
    pool = Pool(tmp_path, workers=2)
    try:
        supervisor = pool.process.pid
        before = count_descriptors(supervisor)
        soft, hard = resource.prlimit(supervisor, resource.RLIMIT_NOFILE)
        # Room for one of the pipes. What the dead worker had is free again.
        highest = max(map(int, os.listdir(f"/proc/{supervisor}/fd")))
        resource.prlimit(supervisor, resource.RLIMIT_NOFILE, (min(highest, before) - 1, hard))
        victims = [row["pid"] for row in pool.status()["workers"]]
        for pid in victims:
            os.kill(pid, signal.SIGKILL)
        wait_until(
            lambda: pool.err.count("can't be started: [Errno 24]") > 2 * (MAX_RESTARTS + 1), "it has tried often"
        )
        assert pool.process.poll() is None
        resource.prlimit(supervisor, resource.RLIMIT_NOFILE, (soft, hard))
        wait_until(
            lambda: all(row["state"] == "attached" and row["pid"] not in victims for row in pool.status()["workers"]),
            "the workers are back",
        )
        assert count_descriptors(supervisor) == before
        assert "Traceback" not in pool.err
    finally:
        pool.stop()


def test_a_start_that_fails_leaks_no_descriptor():
    asyncio.run(fail_to_start(Program(("/bin/true",))))


async def fail_to_start(program: Program) -> None:
    """Start a program with room for no descriptor, for one, two, and so on up to both pipes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 30, hard))
    taken: list[int] = []
    try:
        fill(taken)
        for room in range(4):
            for descriptor in taken[:room]:
                os.close(descriptor)
            del taken[:room]
            with pytest.raises(OSError, match="Too many"):
                await Process.start("it", program)
            assert fill(taken) == room
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for descriptor in taken:
            os.close(descriptor)


def fill(taken: list[int]) -> int:
    """Take every descriptor that is left; give their number."""
    before = len(taken)
    with suppress(OSError):
        while True:
            taken.append(os.open(os.devnull, os.O_RDONLY))
    return len(taken) - before


def test_a_start_for_which_there_was_no_room_is_no_reason_to_give_up():
    backoff = Backoff()
    for number in range(3 * MAX_RESTARTS):
        backoff.delay_s(float(number), None, is_short=True)
    assert not backoff.exhausted
    for number in range(MAX_RESTARTS + 1):
        backoff.delay_s(100.0 + number, None)
    assert backoff.exhausted
