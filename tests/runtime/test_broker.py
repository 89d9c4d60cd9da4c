from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from eventsh.api import AsyncEvents
from eventsh.options import Options
from eventsh.protocol.frame import MAX_BODY_BYTES, FrameDecoder, Kind, decode_header
from eventsh.protocol.messages import Hello
from eventsh.runtime.broker import Broker, Clock
from eventsh.runtime.endpoint import find_endpoint
from tests.cli.pool import COMMAND, environment, run, wait_until
from tests.container import CONTAINER, needs_container

DEADLINE_S = 30.0


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


def test_what_waits_for_a_slow_reader_comes_whole_and_in_order_and_before_the_end(tmp_path):
    hello = Hello("slow", 5, 1, "observer", None, False, 0, 0, 0, [], False).encode()
    path = tmp_path / "e.sock"

    async def main() -> None:
        options = Options.from_values(linger=None)
        broker = Broker(*find_endpoint(f"unix:{path}", options), options)
        await broker.start()
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(str(path))
            sock.sendall(hello)
            async with asyncio.timeout(DEADLINE_S), AsyncEvents(f"unix:{path}", broker="never") as events:
                await events.wait_ready()
                for number in range(150):
                    events.post("app", "e", [number, "x" * 10_000])
                await events.flush()
            # Nothing was read, and it is neither dropped nor cut off.
            (link,) = (link for link in broker.router.connections if link.label.startswith("the observer"))
            assert link.unsent() > 0
            assert link.output
            # It is read while the broker stops, which does not wait for long.
            reading = asyncio.create_task(asyncio.to_thread(read_all, sock))
            await broker.close()
            # A worker came and posted; whether it left before the end is a matter of moments.
            assert (await reading)[:151] == list(range(1, 152))

    asyncio.run(main())


def read_all(sock: socket.socket) -> list[int]:
    """The places of all events that come, to the end."""
    decoder, seqs = FrameDecoder(MAX_BODY_BYTES), list[int]()
    while data := sock.recv(65536):
        for frame in decoder.receive_data(data):
            header = decode_header(frame)
            if header.kind == Kind.EVENTS:
                seqs += range(header.seq, header.seq + header.count)
    return seqs
