from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from eventsh.runtime.broker import Clock
from tests.cli.pool import COMMAND, environment, run, wait_until
from tests.container import CONTAINER, needs_container


def clock_at(times: list[float]) -> Clock:
    return Clock(0.5, iter(times).__next__)


def test_the_brokers_clock_is_the_monotonic_one_while_its_loop_turns():
    clock = clock_at([100.0, 100.25, 100.25, 100.75])
    assert [clock(), clock(), clock()] == [100.25, 100.25, 100.75]


def test_of_a_pause_in_which_the_broker_stood_still_only_the_longest_turn_counts():
    clock = clock_at([100.0, 160.0, 160.25, 260.25])
    assert [clock(), clock(), clock()] == [100.5, 100.75, 101.25]


# Loses its connection while it handles an event, and attaches again. Its pid is one that the other container has not.
FOREIGN = """
import os, sys
import eventsh
from eventsh.api import default_events

for _ in range(500):
    if (child := os.fork()) == 0:
        os._exit(0)
    os.waitpid(child, 0)
if (child := os.fork()) != 0:
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))

@eventsh.on("test", "once")
def once(data, event, source, pid):
    print(data, flush=True)
    default_events()._bus.working_client().attachment.connection.abort()

eventsh.configure(broker="never")
eventsh.wait_ready()
print("ready", flush=True)
sys.stdin.read()
"""


@needs_container
@pytest.mark.skipif(os.geteuid() != 0, reason="in another user namespace, everybody is another user")
def test_a_worker_of_another_container_is_not_taken_for_dead_because_its_pid_is_nobodys_here(tmp_path: Path):
    def contain(*command: str) -> subprocess.Popen[bytes]:
        pipe = subprocess.PIPE
        return subprocess.Popen([*CONTAINER, *command], stdin=pipe, stdout=pipe, stderr=pipe, env=environment(address))

    address = f"unix:{tmp_path}/run/e.sock"
    (tmp_path / "handlers.py").write_text(
        "import eventsh\n"
        "@eventsh.on('test', 'once')\n"
        "def once(data, event, source, pid):\n"
        f"    print(data, file=open({str(tmp_path / 'here')!r}, 'a'), flush=True)\n"
    )
    broker = contain(*COMMAND, "serve", "--workers", "1", "--handlers", str(tmp_path / "handlers.py"))
    try:
        wait_until(lambda: run(address, "post", "a", "b", "--wait").status == 0, "it serves")
        foreign = contain(sys.executable, "-c", FOREIGN)
        try:
            assert foreign.stdout is not None
            assert foreign.stdout.readline() == b"ready\n"
            for number in range(6):
                assert run(address, "post", "test", "once", str(number), "--unique", f"k{number}").status == 0
            here = (tmp_path / "here").read_text().split()
        finally:
            foreign.kill()
            there = foreign.communicate()[0].decode().split()
        assert there
        assert sorted(here + there) == [str(number) for number in range(6)]
    finally:
        broker.kill()
        broker.communicate()
