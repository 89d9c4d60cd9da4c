"""Forks while a broker is being started: the child holds nothing of it, and can fork and start brokers itself."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent

import pytest

ROOT = str(Path(__file__).parents[2])


@pytest.fixture
def address() -> Iterator[str]:
    # Not tmp_path: a socket's path has to be short.
    with tempfile.TemporaryDirectory(prefix="evsh-", dir="/tmp", ignore_cleanup_errors=True) as directory:
        yield f"unix://{directory}/broker"


# A thread starts a broker and stops in the midst of it, with the guard and three descriptors; the main thread forks.
PROGRAM = """
    import ctypes, os, signal, sys, threading
    from eventsh.address import parse_address
    from eventsh.options import Options
    from eventsh.runtime import election
    from eventsh.transports.unix import UnixTransport

    text, act = sys.argv[1:]
    started, may_go_on = threading.Event(), threading.Event()
    spawn = election._spawn

    def spawn_later(*arguments):
        started.set()
        assert may_go_on.wait(60)
        return spawn(*arguments)

    def start(at):
        return election.start_broker(UnixTransport(), parse_address(at), Options())

    def in_child():
        own = os.pipe()
        if act != "fork" and act != "start":
            election.forget_starts()
            election.forget_starts()
            lock = os.path.realpath(text.removeprefix("unix://"))
            for name in os.listdir("/proc/self/fd"):
                try:
                    target = os.readlink(f"/proc/self/fd/{name}")
                except FileNotFoundError:
                    continue
                assert not target.startswith(lock), target
        if act == "start":
            election._spawn = spawn
            assert start(text + "2")
        pid = os.fork()
        if pid == 0:
            os._exit(7)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
        for descriptor in own:
            os.fstat(descriptor)

    election._spawn = spawn_later
    starter = threading.Thread(target=start, args=[text])
    starter.start()
    assert started.wait(60)
    pid = ctypes.PyDLL(None).fork()
    if pid == 0:
        # A child that hangs ends by this.
        signal.alarm(20)
        try:
            in_child()
        except BaseException:
            sys.excepthook(*sys.exc_info())
            os._exit(1)
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    # In the process that starts it: nothing is closed.
    election.forget_starts()
    may_go_on.set()
    starter.join(60)
    assert election.is_locked(UnixTransport(), parse_address(text))
    sys.exit(status)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("act", ["fork", "start", "forget"])
def test_a_child_that_python_does_not_see_forked_while_a_broker_is_started(address: str, act: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", dedent(PROGRAM), address, act],
        env={**os.environ, "PYTHONPATH": ROOT},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
