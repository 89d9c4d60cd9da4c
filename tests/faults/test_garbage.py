"""Row 7 of FAULTS.md, briefly: nobody is disturbed by what others send. The long form is `python -m tests.faults --row 7`."""

from __future__ import annotations

import os
import random
import select
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress

import pytest

from eventsh.protocol.frame import FrameDecoder, Kind, encode_frame
from eventsh.protocol.messages import Error, Request
from tests.faults.campaign import directory
from tests.faults.garbage import Storm, draw_frame, hello_frame, storm_broker, storm_session
from tests.faults.processes import TRANSPORTS, Program, Served, ask, dial, endpoint, wait_until
from tests.faults.stops import rss_bytes

SEED = 7
HELLO_TIMEOUT_S = 2.0
SILENT = 1000
MIB = 1024 * 1024


@pytest.fixture(scope="module", params=TRANSPORTS)
def pool(request) -> Iterator[Served]:
    with directory() as path:
        pool = Served(path, endpoint(request.param, path), 2)
        yield pool
        assert pool.stop() == 0


@pytest.fixture
def address(pool: Served) -> Iterator[str]:
    """The address of a pool that has done all its work, by the same broker and workers, when the test is over."""
    before = pids(pool)
    yield pool.address
    with Program(pool.directory, pool.address, 1, 200.0, 0.0, SEED, role="observer", broker="never") as program:
        program.tell("post")
        program.tell("stop")
        assert program.hear().startswith("flushed")
    assert pids(pool) == before
    # What was in a log of warnings must be harmless too.
    assert "Traceback" not in pool.log


def pids(pool: Served) -> set[int]:
    state = ask(pool.address)
    assert state is not None
    return {state["broker"]["pid"], *(worker["pid"] for worker in state["workers"])}


def last_words(sock: socket.socket) -> Error | None:
    """What the broker said last before it closed the connection."""
    decoder, frames = FrameDecoder(), []
    with suppress(ConnectionResetError):
        while data := sock.recv(65536):
            frames += decoder.receive_data(data)
    return Error.decode(frames[-1]) if frames and frames[-1][4] == Kind.ERROR else None


def test_wrong_frames_disturb_neither_the_router_nor_those_who_behave() -> None:
    storm = Storm(SEED)
    report = storm.run(5000)
    assert report.refused > 1000
    assert report.handled == list(range(1, report.posted + 1))
    assert len(storm.router.connections) == 2
    assert not storm.router.slots.observers


def test_a_client_refuses_what_a_broker_does_not_send_with_a_protocol_error_alone() -> None:
    assert storm_session(SEED, 5000) > 500


def test_wrong_frames_and_noise_end_their_own_connection_alone(address: str) -> None:
    report = storm_broker(address, SEED, 1500, print)
    assert report.refused > 50


@pytest.mark.parametrize("kind", [Kind.HELLO, Kind.EVENTS])
def test_a_length_of_4_gib_is_refused_at_its_fifth_byte(address: str, kind: Kind) -> None:
    with dial(address) as sock:
        sock.sendall(struct.pack("<IB", 2**32 - 1, kind))
        error = last_words(sock)
    assert error is not None
    assert error.code == "protocol"
    assert "4294967295" in error.message


def test_a_connection_may_end_at_every_byte_of_what_it_says(address: str) -> None:
    draw = random.Random(SEED)
    stream = hello_frame(draw) + draw_frame(draw)
    for size in range(len(stream)):
        with dial(address) as sock:
            sock.sendall(stream[:size])


def test_a_hello_that_comes_byte_by_byte_is_cut_off_by_the_clock(address: str) -> None:
    started = time.monotonic()
    with dial(address) as sock:
        for byte in hello_frame(random.Random(SEED)):
            try:
                sock.sendall(bytes([byte]))
            except (BrokenPipeError, ConnectionResetError):
                break
            time.sleep(0.1)
        error = last_words(sock)
    assert error is not None
    assert error.code == "slow_hello"
    assert HELLO_TIMEOUT_S <= time.monotonic() - started < HELLO_TIMEOUT_S + 30.0


def test_a_thousand_silent_connections_are_closed_in_time_and_held_in_little_memory(pool: Served, address: str):
    state = ask(pool.address)
    assert state is not None
    broker = state["broker"]["pid"]
    before = rss_bytes(broker)
    with ExitStack() as stack:
        for _ in range(SILENT):
            stack.enter_context(dial(address))
        # Somebody who does say hello is served all the same.
        state = ask(pool.address)
        assert state is not None
        # Over shm the silent do not come as far as the rules: the transport bounds how many it waits for.
        assert state["broker"]["connections"] > SILENT / 2 or address.startswith("shm:")
        wait_until(lambda: (ask(pool.address) or state)["broker"]["connections"] < 10, "they are closed", 30.0)
        wait_until(lambda: len(os.listdir(f"/proc/{broker}/fd")) < 50, "their descriptors are closed", 30.0)
        assert rss_bytes(broker) - before < 64 * 1024 * 1024


@pytest.mark.parametrize("frame", [encode_frame(Kind.PING), Request(1, "status", {}).encode()], ids=["ping", "request"])
def test_who_asks_and_never_reads_is_cut_off_and_others_are_served(pool: Served, address: str, frame: bytearray):
    state = ask(pool.address)
    assert state is not None
    broker, connections = state["broker"]["pid"], state["broker"]["connections"]
    before, grew = rss_bytes(broker), 0
    asked, said = memoryview(bytes(frame) * 4096), 0
    with dial(address) as sock:
        sock.sendall(hello_frame(random.Random(SEED)))
        sock.setblocking(False)
        poll = select.poll()
        poll.register(sock, select.POLLOUT)
        end, look_at = time.monotonic() + 100.0, 0.0
        with suppress(BrokenPipeError, ConnectionResetError):
            while True:
                assert time.monotonic() < end
                poll.poll(100)
                with suppress(BlockingIOError):
                    said = (said + sock.send(asked[said:])) % len(asked)
                if time.monotonic() > look_at:
                    look_at = time.monotonic() + 0.2
                    grew = max(grew, rss_bytes(broker) - before)
                    assert grew < 64 * MIB
                    assert ask(pool.address, 40.0) is not None
    wait_until(lambda: (ask(pool.address) or state)["broker"]["connections"] == connections, "its connection is gone")
    assert "reads nothing of what it asks for" in pool.log
