from __future__ import annotations

import asyncio
import errno
import fcntl
import gc
import os
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import pytest
import uvloop

from eventsh.address import Address
from eventsh.api import Events
from eventsh.errors import ConfigureError, TransportError
from eventsh.options import Options
from eventsh.protocol.frame import HEADER, HEADER_BYTES, PRE_HELLO_BODY_BYTES, Kind, encode_frame
from eventsh.testing import TransportConformance
from eventsh.testing.recorder import DEADLINE_S, Recorder, event_frame, numbers, turns
from eventsh.transport import Connection, Frame
from eventsh.transports import memory, shm
from eventsh.transports.memory import RingReader, RingWriter
from eventsh.transports.sharing import RELEASE, SPAN, SharingConnection
from eventsh.transports.shm import MAGIC, OFFER, ShmTransport
from eventsh.transports.unix import UnixTransport
from tests.transports.shm_connects import come_and_go, maps
from tests.transports.shm_victim import POSTS, fill

both_loops = pytest.mark.parametrize("run", [asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])

# The smallest ring, and frames of which two fit into it, one of them for one of several readers; and smaller ones, so that
# a reader may hold several.
OPTIONS = Options(ring_size=256 * 1024, hello_timeout=DEADLINE_S)
RING_BYTES = OPTIONS.ring_size
LARGE = 100_000
MEDIUM = 40_000


class TestConformance(TransportConformance):
    def make_address(self, directory: Path) -> str:
        return f"shm:{directory}/s"


@pytest.fixture
def address() -> Iterator[Address]:
    with tempfile.TemporaryDirectory(prefix="evsh-", dir="/tmp") as directory:
        yield Address("shm", f"{directory}/s")


class Listening:
    """A listener in the running loop, with a small ring, and all that it accepted."""

    def __init__(self, address: Address, options: Options = OPTIONS) -> None:
        self.address = address
        self.transport = ShmTransport(options)
        self.accepted: list[Recorder] = []

    async def __aenter__(self) -> Self:
        self.listener = await self.transport.listen(self.address, self.accept)
        return self

    def accept(self, connection: Connection) -> Recorder:
        connection.limit_body(4 * RING_BYTES)
        self.accepted.append(Recorder(connection=connection))
        return self.accepted[-1]

    async def __aexit__(self, *_: object) -> None:
        await self.listener.close()
        for recorder in self.accepted:
            connection_of(recorder).abort()
            await recorder.until(lambda recorder: recorder.lost)
        await turns(2)

    async def connect(self, recorder: Recorder) -> Connection:
        """A client; its other end is the last of `accepted` then."""
        count = len(self.accepted)

        def begin(connection: Connection) -> Recorder:
            connection.limit_body(4 * RING_BYTES)
            recorder.connection = connection
            return recorder

        connection = await self.transport.connect(self.address, begin)
        await self.until_accepted(count + 1)
        return connection

    async def until_accepted(self, count: int) -> Recorder:
        async with asyncio.timeout(DEADLINE_S):
            while len(self.accepted) < count:
                await asyncio.sleep(0.001)
        return self.accepted[-1]


def connection_of(recorder: Recorder) -> Connection:
    assert recorder.connection is not None
    return recorder.connection


async def until_released(recorder: Recorder) -> None:
    """Until the peer is known to be done with all that it was sent in the ring."""
    connection = connection_of(recorder)
    assert isinstance(connection, SharingConnection)
    async with asyncio.timeout(DEADLINE_S):
        while connection._lane:
            await asyncio.sleep(0.001)


async def end(connection: Connection, recorder: Recorder) -> None:
    connection.close()
    await recorder.until(lambda recorder: recorder.lost)


# What goes where.


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The steps of writing into rings that are taken from now on."""
    taken: list[str] = []
    monkeypatch.setattr(memory, "on_step", taken.append)
    return taken


@both_loops
def test_a_frame_for_several_clients_is_written_once(run, address, steps):
    async def main() -> None:
        async with Listening(address) as listening:
            recorders = [Recorder() for _ in range(3)]
            clients = [await listening.connect(recorder) for recorder in recorders]
            sent = event_frame(7, LARGE)
            for recorder in listening.accepted:
                connection_of(recorder).send([sent])
            for recorder in recorders:
                assert await recorder.until_frames(1) == [7]
            assert steps == ["begin", "half", "written", "sent", "sent", "sent"]
            for client, recorder in zip(clients, recorders, strict=True):
                await end(client, recorder)

    run(main())


def test_small_frames_and_those_without_room_keep_their_place_among_the_others(address, steps):
    async def main() -> None:
        async with Listening(address) as listening:
            recorder = Recorder()
            client = await listening.connect(recorder)
            to_server = listening.accepted[0]
            connection_of(to_server).pause_reading()
            sizes = [LARGE, 10, LARGE, LARGE, RING_BYTES + 1, 20, LARGE]
            client.send([event_frame(number, size) for number, size in enumerate(sizes)])
            assert steps.count("written") == 2
            connection_of(to_server).resume_reading()
            assert await to_server.until_frames(7) == list(range(7))
            await end(client, recorder)

    asyncio.run(main())


def test_a_ring_goes_round_as_its_reader_takes_frames(address, steps):
    async def main() -> None:
        async with Listening(address) as listening:
            recorder = Recorder()
            client = await listening.connect(recorder)
            to_server = listening.accepted[0]
            for number in range(30):
                client.send([event_frame(number, MEDIUM)])
                connection_of(to_server).send([event_frame(number, MEDIUM)])
                await to_server.until_frames(number + 1)
                await recorder.until_frames(number + 1)
                await until_released(recorder)
                await until_released(to_server)
            assert steps.count("written") == 60
            await end(client, recorder)

    asyncio.run(main())


def test_a_client_that_stands_still_does_not_keep_others_from_the_ring(address, steps):
    async def main() -> None:
        async with Listening(address) as listening:
            still, moving = Recorder(), Recorder()
            stopped = await listening.connect(still)
            stopped.pause_reading()
            client = await listening.connect(moving)
            for number in range(20):
                sent = event_frame(number, MEDIUM)
                for recorder in listening.accepted:
                    connection_of(recorder).send([sent])
                await moving.until_frames(number + 1)
                await until_released(listening.accepted[1])
            # What it was sent first stays where it is, and the others all fit behind that.
            assert steps.count("written") == 20
            stopped.resume_reading()
            assert await still.until_frames(20) == list(range(20))
            await end(stopped, still)
            await end(client, moving)

    asyncio.run(main())


def test_without_memory_frames_take_the_socket(address, steps, monkeypatch):
    def fail(*_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", fail)

    async def main() -> None:
        async with Listening(address) as listening:
            recorder = Recorder()
            client = await listening.connect(recorder)
            for number in range(5):
                client.send([event_frame(number, LARGE)])
            assert await listening.accepted[0].until_frames(5) == list(range(5))
            assert "begin" not in steps
            await end(client, recorder)

    asyncio.run(main())


# A reader is never shown other bytes than those that it was sent.


@contextmanager
def without_descriptors() -> Iterator[None]:
    """In this process, none is to be had."""
    free = os.dup(0)
    os.close(free)
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def fail_writing(connection: Connection) -> None:
    """As asyncio does where the kernel has no memory for a write."""
    assert isinstance(connection, SharingConnection)
    connection._transport._fatal_error(OSError(errno.ENOBUFS, os.strerror(errno.ENOBUFS)))


WAYS: dict[str, Callable[[Connection], None]] = {
    "close": lambda connection: connection.close(),
    "abort": lambda connection: connection.abort(),
    "no memory": fail_writing,
}


@pytest.mark.parametrize("has_descriptors", [True, False], ids=["", "out of descriptors"])
@pytest.mark.parametrize(
    ("run", "way"),
    [*((run, way) for run in (asyncio.run, uvloop.run) for way in ("close", "abort")), (asyncio.run, "no memory")],
    ids=["asyncio-close", "asyncio-abort", "uvloop-close", "uvloop-abort", "asyncio-no memory"],
)
def test_what_a_client_was_sent_stays_after_the_listener_has_ended_its_connection(run, address, way, has_descriptors):
    async def main() -> None:
        async with Listening(address) as listening:
            late, other = Recorder(), Recorder()
            client = await listening.connect(late)
            client.pause_reading()
            first = listening.accepted[0]
            connection_of(first).send([event_frame(1, LARGE)])
            # Until it has left.
            await turns()
            with nullcontext() if has_descriptors else without_descriptors():
                WAYS[way](connection_of(first))
                await first.until(lambda recorder: recorder.lost)
            second = await listening.connect(other)
            for number in range(100, 110):
                connection_of(listening.accepted[1]).send([event_frame(number, LARGE)])
                await other.until_frames(number - 99)
            client.resume_reading()
            assert await late.until_frames(1) == [1]
            await late.until(lambda recorder: recorder.lost)
            if has_descriptors:
                # And is used again once the client has ended its side too.
                await until_released(first)
            await end(second, other)

    run(main())


class Viewer(Recorder):
    """Takes views."""

    def views_received(self, frames: list[Frame]) -> None:
        self.frames_received(frames)  # type: ignore[arg-type]  # it reads them only


@both_loops
def test_a_client_may_look_at_frames_where_they_are_for_as_long_as_it_holds_them(run, address, steps):
    async def main() -> None:
        async with Listening(address) as listening:
            viewer = Viewer()
            client = await listening.connect(viewer)
            server = connection_of(listening.accepted[0])
            server.send([event_frame(0, LARGE), event_frame(1)])
            assert await viewer.until_frames(2) == [0, 1]
            kept: Any = viewer.frames[0]
            small = viewer.frames[1]
            assert (type(kept), kept.readonly) == (memoryview, True)
            assert type(small) is bytearray
            viewer.frames.clear()
            for number in range(2, 12):
                server.send([event_frame(number, LARGE)])
                await viewer.until_frames(1)
                viewer.frames.clear()
                # A word from the client takes the news of what is free along.
                client.send([event_frame(number)])
                await listening.accepted[0].until_frames(number - 1)
            # The first one stays, whatever comes behind it. Given back in order, none of them is free before it is.
            assert numbers([kept]) == [0]
            assert steps.count("written") == 1
            del kept
            client.send([event_frame(12)])
            await listening.accepted[0].until_frames(11)
            server.send([event_frame(13, LARGE)])
            await viewer.until_frames(1)
            assert steps.count("written") == 2
            await end(client, viewer)

    run(main())


def test_a_listener_has_frames_of_its_own_whatever_its_receivers_take(address):
    async def main() -> None:
        class Viewers(Listening):
            def accept(self, connection: Connection) -> Recorder:
                connection.limit_body(4 * RING_BYTES)
                self.accepted.append(Viewer(connection=connection))
                return self.accepted[-1]

        async with Viewers(address) as listening:
            recorder = Recorder()
            client = await listening.connect(recorder)
            client.send([event_frame(0, LARGE)])
            await listening.accepted[0].until_frames(1)
            assert type(listening.accepted[0].frames[0]) is bytearray
            await end(client, recorder)

    asyncio.run(main())


def test_events_that_wait_for_a_handler_survive_the_end_of_their_connection(address):
    options: dict[str, Any] = {"broker": "never", "ring_size": RING_BYTES, "timeout": 60.0}
    broker = start_broker(address, f"--ring-size={RING_BYTES}", "--timeout=60")
    late = Events(str(address), **options)
    late.configure()
    poster = Worker(address)
    try:
        for bus in (late, poster.bus):
            bus.wait_ready(DEADLINE_S)
        poster.bus.post("shm", "event", fill(0))
        poster.bus.flush(DEADLINE_S)
        client, loop = late._bus.client, late._bus.loop
        assert client is not None
        assert loop is not None
        first = client.attachment
        # No handler is registered yet: its frame still lies in the ring.
        assert first is not None
        assert first.connection is not None
        loop.call_soon_threadsafe(first.connection.abort)
        until(lambda: client.attachment not in (None, first) and client.is_attached, "attached again")
        for number in range(1, POSTS):
            poster.bus.post("shm", "event", fill(number))
            poster.bus.flush(DEADLINE_S)
        seen: list[object] = []
        late.register(lambda data, event, source, pid: seen.append(data), "shm")
        until(lambda: len(seen) == POSTS, "all were handled")
        assert seen == [fill(number) for number in range(POSTS)]
    finally:
        for bus in (late, poster.bus):
            bus.close(timeout=1.0)
        stop(broker)


# Peers that break the rules.


def make_ring(
    size: int = RING_BYTES, seals: int = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW, content: bytes = b""
) -> int:
    fd = os.memfd_create("test", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, size)
    os.pwrite(fd, content, 0)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
    return fd


def offer(size: int = RING_BYTES, version: int = 1) -> bytes:
    return OFFER.pack(MAGIC[:4], MAGIC[4], version, size)


def span(offset: int, length: int) -> bytes:
    return HEADER.pack(0, SPAN, 0, 0, 0, 0, 0, offset, length)


def release(count: int) -> bytes:
    return HEADER.pack(0, RELEASE, 0, 0, 0, 0, 0, count, 0)


GOOD = bytes(event_frame(5, 20))
CONTENT = GOOD + bytes(encode_frame(Kind.EVENTS, bytes(PRE_HELLO_BODY_BYTES + 1)))


@pytest.mark.parametrize(
    "message",
    [
        span(RING_BYTES, len(GOOD)),
        span(RING_BYTES - len(GOOD) + 1, len(GOOD)),
        span(2**64 - 1, len(GOOD)),
        span(2**63, 2**63),
        span(0, 0),
        span(0, 1),
        span(0, len(GOOD) - 1),
        span(0, len(GOOD) + 1),
        span(1, len(GOOD)),
        span(200_000, HEADER_BYTES),
        span(len(GOOD), len(CONTENT) - len(GOOD)),
        HEADER.pack(1, SPAN, 0, 0, 0, 0, 0, 0, len(GOOD)) + b"x",
        release(0),
        release(1),
        release(2**64 - 1),
        HEADER.pack(1, RELEASE, 0, 0, 0, 0, 0, 0, 0) + b"x",
        bytes(encode_frame(0xF2)),
    ],
    ids=[
        *(
            "beyond",
            "over the end",
            "far beyond",
            "both far",
            "no length",
            "a byte",
            "too short",
            "too long",
            "shifted",
        ),
        *("zeros", "over the limit", "with a body", "released nothing", "not given", "far too many"),
        *("release with a body", "unknown kind"),
    ],
)
def test_a_peer_whose_messages_are_wrong_loses_its_own_connection(address, message):
    async def main() -> None:
        async with Listening(address) as listening:
            recorder = Recorder()
            client = await listening.connect(recorder)
            with socket.socket(socket.AF_UNIX) as sock:
                sock.connect(address.path)
                fd = make_ring(content=CONTENT)
                socket.send_fds(sock, [offer()], [fd])
                os.close(fd)
                to_server = await listening.until_accepted(2)
                connection_of(to_server).limit_body(PRE_HELLO_BODY_BYTES)
                sock.sendall(GOOD + span(0, len(GOOD)) + message + span(0, len(GOOD)))
                await to_server.until(lambda recorder: recorder.refused)
                assert numbers(to_server.frames) == [5, 5]
                assert len(to_server.refused) == 1
            await to_server.until(lambda recorder: recorder.lost)
            client.send([event_frame(1, LARGE)])
            assert await listening.accepted[0].until_frames(1) == [1]
            await end(client, recorder)

    asyncio.run(main())


@pytest.mark.parametrize("has_said_hello", [False, True], ids=["before the hello", "after it"])
def test_a_peer_that_names_the_same_bytes_again_and_again_is_soon_refused(address, has_said_hello):
    large = bytes(event_frame(1, 32_000))

    class Greeted(Listening):
        def accept(self, connection: Connection) -> Recorder:
            self.accepted.append(Recorder(connection=connection))
            if has_said_hello:
                connection.limit_body(RING_BYTES)
            return self.accepted[-1]

    async def main() -> None:
        async with Greeted(address) as listening:
            with socket.socket(socket.AF_UNIX) as sock:
                sock.connect(address.path)
                fd = make_ring(content=large)
                socket.send_fds(sock, [offer()], [fd])
                os.close(fd)
                to_server = await listening.until_accepted(1)
                sock.sendall(span(0, len(large)) * 500)
                await to_server.until(lambda recorder: recorder.refused)
                allowed = RING_BYTES if has_said_hello else HEADER_BYTES + PRE_HELLO_BODY_BYTES
                assert len(to_server.frames) == allowed // len(large)

    asyncio.run(main())


def a_pipe() -> int:
    read_end, write_end = os.pipe()
    os.close(write_end)
    return read_end


def a_file() -> int:
    with tempfile.TemporaryFile() as file:
        file.truncate(RING_BYTES)
        return os.dup(file.fileno())


OFFERS: dict[str, tuple[bytes, Callable[[], list[int]]]] = {
    "no descriptor": (offer(), list),
    "two descriptors": (offer(), lambda: [make_ring(), make_ring()]),
    "not sealed": (offer(), lambda: [make_ring(seals=0)]),
    "can shrink": (offer(), lambda: [make_ring(seals=fcntl.F_SEAL_GROW)]),
    "can grow": (offer(), lambda: [make_ring(seals=fcntl.F_SEAL_SHRINK)]),
    "smaller than said": (offer(), lambda: [make_ring(RING_BYTES // 2)]),
    "larger than said": (offer(), lambda: [make_ring(RING_BYTES * 2)]),
    "empty": (offer(0), lambda: [make_ring(0)]),
    "huge": (offer(2**60), lambda: [make_ring()]),
    "too large": (offer(memory.MAX_RING_BYTES + 4096), lambda: [make_ring(memory.MAX_RING_BYTES + 4096)]),
    "a pipe": (offer(), lambda: [a_pipe()]),
    "a file": (offer(), lambda: [a_file()]),
    "another version": (offer(version=2), lambda: [make_ring()]),
    "cut short": (offer()[:10], lambda: [make_ring()]),
    "silence": (b"", list),
}


@pytest.mark.parametrize("name", OFFERS)
@both_loops
def test_an_offer_that_is_none_is_turned_away_and_leaves_nothing_behind(run, address, name, caplog):
    said, make = OFFERS[name]
    is_waited_for = name in ("silence", "cut short")
    # Time enough for the one that does make an offer, behind it.
    options = replace(OPTIONS, hello_timeout=1.0) if is_waited_for else OPTIONS

    async def main() -> None:
        async with Listening(address, options) as listening:
            await turns(2)
            before = len(os.listdir("/proc/self/fd")), maps()
            with socket.socket(socket.AF_UNIX) as sock:
                sock.setblocking(False)
                sock.connect(address.path)
                fds = make()
                if fds:
                    socket.send_fds(sock, [said], fds)
                elif said:
                    sock.send(said)
                for fd in fds:
                    os.close(fd)
                async with asyncio.timeout(DEADLINE_S):
                    assert await asyncio.get_running_loop().sock_recv(sock, 100) == b""
            assert listening.accepted == []
            await turns(2)
            assert (len(os.listdir("/proc/self/fd")), maps()) == before
            recorder = Recorder()
            await end(await listening.connect(recorder), recorder)

    run(main())
    assert "could not be connected" in caplog.text
    assert ("said nothing for 1 s (hello_timeout)" in caplog.text) == is_waited_for


def test_a_ring_can_be_written_by_nobody_but_its_maker():
    writer = RingWriter(RING_BYTES)
    try:
        with pytest.raises(PermissionError):
            os.pwrite(writer.fd, b"x", 0)
        with pytest.raises(PermissionError):
            os.ftruncate(writer.fd, 0)
        with pytest.raises(PermissionError):
            os.ftruncate(writer.fd, 2 * RING_BYTES)
        assert writer.allocate(100)
        writer.write(50, b"written")
        reader = RingReader(writer.fd, writer.size_bytes)
        assert bytes(reader.view(50, 7)) == b"written"
        reader.close()
    finally:
        writer.close()


# Other kinds of peers.


@both_loops
def test_a_client_without_a_ring_is_served_wherever_its_first_bytes_are_cut(run, address):
    stream = bytes(event_frame(1, 30) + event_frame(2, LARGE // 2))

    async def main() -> None:
        async with Listening(address) as listening:
            for cut in (*range(18), len(stream)):
                sock = listening.transport.dial(address, 5)
                assert sock is not None
                with sock:
                    if cut:
                        sock.sendall(stream[:cut])
                        await turns(2)
                    sock.sendall(stream[cut:])
                    recorder = await listening.until_accepted(1)
                    assert await recorder.until_frames(2) == [1, 2]
                    connection_of(recorder).send([event_frame(3, 40)])
                    sock.settimeout(DEADLINE_S)
                    assert sock.recv(1000) == bytes(event_frame(3, 40))
                await recorder.until(lambda recorder: recorder.lost)
                listening.accepted.clear()

    run(main())


def test_a_listener_that_knows_no_rings_is_named(address):
    async def main() -> None:
        recorder = Recorder()

        def on_connection(connection: Connection) -> Recorder:
            recorder.connection = connection
            return recorder

        listener = await UnixTransport().listen(address, on_connection)
        attempt = asyncio.ensure_future(ShmTransport().connect(address, lambda connection: Recorder()))
        await recorder.until(lambda recorder: recorder.refused)
        connection_of(recorder).send([encode_frame(Kind.ERROR, b'{"code":"protocol","message":"what?"}')])
        connection_of(recorder).close()
        with pytest.raises(TransportError, match=r"is its address one of unix:\?"):
            await attempt
        await listener.close()

    asyncio.run(main())


def test_a_listener_that_does_not_answer_is_given_up(address, monkeypatch):
    monkeypatch.setattr(shm, "CONNECT_TIMEOUT_S", 0.1)
    before = len(os.listdir("/proc/self/fd")), maps()
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(address.path)
        sock.listen()
        with pytest.raises(TransportError, match="did not answer"):
            asyncio.run(ShmTransport().connect(address, lambda connection: Recorder()))
    assert (len(os.listdir("/proc/self/fd")), maps()) == before


# Systems without it.


def test_without_memfd_the_address_is_refused_and_unix_is_named(address, monkeypatch):
    monkeypatch.delattr(os, "memfd_create")
    with pytest.raises(ConfigureError, match=f"use unix:{address.path}") as caught:
        ShmTransport().check_address(address)
    assert caught.value.option == "address"


def test_without_the_seal_listening_is_refused_and_unix_is_named(address, monkeypatch):
    monkeypatch.setattr(memory, "SEALS_OF_WRITERS", 1 << 30)
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(TransportError, match=r"Linux 5\.1.*unix:"):
        asyncio.run(ShmTransport().listen(address, lambda connection: Recorder()))
    assert len(os.listdir("/proc/self/fd")) == before
    assert not os.path.exists(address.path)


def test_the_size_of_rings_is_an_option(address):
    async def main() -> None:
        async with Listening(address) as listening:
            listening.transport = ShmTransport().with_options(OPTIONS)
            recorder = Recorder()
            client = await listening.connect(recorder)
            assert isinstance(client, SharingConnection)
            assert client._ring is not None
            assert client._ring.writer.size_bytes == RING_BYTES
            await end(client, recorder)

    asyncio.run(main())


# What is left behind.


def test_connections_leave_no_descriptors_maps_and_tasks_behind(address):
    gc.collect()
    others = maps()
    before, after, closed = asyncio.run(come_and_go(address.path, 120))
    assert after == before
    assert closed[1] <= others


FORKING = """
import asyncio, os, sys
from eventsh.address import Address
from eventsh.testing.recorder import Recorder, event_frame
from eventsh.transports.shm import ShmTransport
from tests.transports.shm_connects import maps

def rings():
    fds = [os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{fd}")]
    return maps() + sum("eventsh-ring" in fd for fd in fds)

async def main():
    recorder = Recorder()
    accepted = []
    def accept(connection):
        connection.limit_body(100000)
        accepted.append(Recorder(connection=connection))
        return accepted[-1]
    listener = await ShmTransport().listen(Address("shm", sys.argv[1]), accept)
    client = await ShmTransport().connect(Address("shm", sys.argv[1]), lambda connection: recorder)
    client.send([event_frame(1, 50000)])
    while not accepted: await asyncio.sleep(0.001)
    await accepted[0].until_frames(1)
    assert rings() > 4, rings()
    if (pid := os.fork()) == 0:
        os._exit(rings())
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    client.send([event_frame(2, 50000)])
    assert await accepted[0].until_frames(2) == [1, 2]
asyncio.run(main())
"""


def test_a_forked_child_has_no_rings(address):
    done = subprocess.run(
        [sys.executable, "-c", FORKING, address.path], capture_output=True, text=True, timeout=DEADLINE_S
    )
    assert (done.returncode, done.stderr) == (0, "")


# Killed in the midst of writing.


def start_victim(role: str, address: Address, step: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "tests.transports.shm_victim", role, str(address), step, "4"]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def start_broker(address: Address, *flags: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "eventsh.runtime.broker", "--address", str(address), "--linger=none", *flags]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def stop(*processes: subprocess.Popen[bytes]) -> None:
    for process in processes:
        process.kill()
        process.wait(DEADLINE_S)


def until(condition: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < end, f"not within {DEADLINE_S:g} s: {what}"
        time.sleep(0.005)


class Worker:
    """A bus in this process, and what its handlers were given."""

    def __init__(self, address: Address) -> None:
        self.seen: list[object] = []
        self.bus = Events(str(address), broker="never")
        self.bus.register(lambda data, event, source, pid: self.seen.append(data), "shm")
        self.bus.configure()

    def until_seen(self, last: object) -> None:
        until(lambda: last in self.seen[-1:], "the last event came")


STEPS = ["begin", "half", "written", "sent"]


@pytest.mark.parametrize("step", STEPS)
def test_a_broker_killed_at_any_step_of_a_write_loses_and_doubles_nothing(address, step):
    victim = start_victim("broker", address, step)
    workers = [Worker(address), Worker(address)]
    successor = None
    try:
        for worker in workers:
            worker.bus.wait_ready(DEADLINE_S)
        for number in range(POSTS):
            workers[0].bus.post("shm", "event", fill(number))
            if number % 2:
                time.sleep(0.01)
        assert victim.wait(DEADLINE_S) == -signal.SIGKILL
        successor = start_broker(address)
        workers[0].bus.flush(DEADLINE_S)
        for worker in workers:
            worker.until_seen(fill(POSTS - 1))
            assert worker.seen == [fill(number) for number in range(POSTS)]
    finally:
        for worker in workers:
            worker.bus.close(timeout=1.0)
        stop(victim, *([] if successor is None else [successor]))


@pytest.mark.parametrize("step", STEPS)
def test_of_a_poster_killed_at_any_step_of_a_write_whole_events_arrive(address, step):
    broker = start_broker(address)
    worker = Worker(address)
    victim = None
    try:
        worker.bus.wait_ready(DEADLINE_S)
        victim = start_victim("poster", address, step)
        assert victim.wait(DEADLINE_S) == -signal.SIGKILL
        worker.bus.post("shm", "event", "last")
        worker.until_seen("last")
        # Its fourth event is there whole, or not at all.
        assert len(worker.seen) == 4 or (len(worker.seen) == 5 and step == "sent")
        assert worker.seen[:-1] == [fill(number) for number in range(len(worker.seen) - 1)]
    finally:
        worker.bus.close(timeout=1.0)
        stop(broker, *([] if victim is None else [victim]))
