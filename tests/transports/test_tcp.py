from __future__ import annotations

import asyncio
import os
import resource
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import uvloop

from eventsh.address import Address, parse_address
from eventsh.api import Events
from eventsh.errors import ConfigureError, TransportError
from eventsh.runtime.election import lock_address, unlock_address
from eventsh.testing import TransportConformance
from eventsh.testing.addresses import free_port
from eventsh.testing.recorder import DEADLINE_S, Recorder, event_frame, turns
from eventsh.transport import Connection
from eventsh.transports import tcp
from eventsh.transports.tcp import TcpTransport, is_loopback
from tests.cli.pool import COMMAND, environment

both_loops = pytest.mark.parametrize("run", [asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])


class TestConformance(TransportConformance):
    def make_address(self, directory: Path) -> str:
        return f"tcp://127.0.0.1:{free_port()}"


@pytest.fixture
def address() -> Address:
    return Address("tcp", host="127.0.0.1", port=free_port())


# Addresses


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("tcp:/path", "has no host"),
        ("tcp://127.0.0.1", "has no port"),
        ("tcp://127.0.0.1:7878/path", "has something behind the port"),
        ("tcp://127.0.0.1:7878?a=b", "has something behind the port"),
    ],
)
def test_what_can_be_no_address_is_refused(text, why):
    with pytest.raises(ConfigureError, match=rf"{why}; write tcp://127.0.0.1:7878") as caught:
        TcpTransport().check_address(parse_address(text))
    assert caught.value.option == "address"


def test_port_0_is_for_listening_alone():
    for attempt in (
        lambda: TcpTransport().dial(parse_address("tcp://127.0.0.1:0"), 1),
        lambda: asyncio.run(TcpTransport().connect(parse_address("tcp://127.0.0.1:0"), lambda _: Recorder())),
    ):
        with pytest.raises(ConfigureError, match="is for listening: connect to the port that the broker tells"):
            attempt()


@pytest.mark.parametrize(
    ("host", "is_it"),
    [
        *[(host, True) for host in ("127.0.0.1", "127.255.0.9", "::1", "::ffff:127.0.0.1")],
        *[(host, False) for host in ("0.0.0.0", "::", "10.0.0.1", "128.0.0.1", "::2", "fe80::1%lo", "::ffff:10.0.0.1")],
    ],
)
def test_loopback_is_what_only_this_host_can_reach(host, is_it):
    assert is_loopback(host) is is_it


def test_a_host_that_is_not_known_is_told():
    # A name of this domain never exists.
    with pytest.raises(TransportError, match=r"the host 'nowhere.invalid' can't be found") as caught:
        TcpTransport().dial(parse_address("tcp://nowhere.invalid:1"), 5)
    assert isinstance(caught.value.__cause__, OSError)


@both_loops
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1"])
def test_a_host_can_be_given_in_every_way(run, host):
    async def main() -> None:
        accepted: list[Recorder] = []

        def on_connection(connection: Connection) -> Recorder:
            accepted.append(Recorder(connection=connection))
            return accepted[-1]

        listener = await TcpTransport().listen(Address("tcp", host=host, port=0), on_connection)
        found = parse_address(listener.address)
        assert found.host == host
        assert found.port
        recorder = Recorder()
        client = await TcpTransport().connect(found, lambda connection: recorder)
        sock = await asyncio.to_thread(TcpTransport().dial, found, DEADLINE_S)
        assert sock is not None
        sock.close()
        client.send([event_frame(1)])
        async with asyncio.timeout(DEADLINE_S):
            while len(accepted) < 2:
                await asyncio.sleep(0.001)
        assert await accepted[0].until_frames(1) == [1]
        assert str(found.port) in client.peer.label
        assert client.received_bytes == 0
        assert accepted[0].connection is not None
        assert accepted[0].connection.received_bytes == len(event_frame(1))
        client.close()
        await recorder.until_lost()
        await listener.close()

    run(main())


# Sockets


def test_what_is_sent_leaves_at_once_and_a_dead_way_is_noticed(address):
    async def main() -> None:
        accepted: list[Any] = []

        def on_connection(connection: Any) -> Recorder:
            accepted.append(connection)
            return Recorder()

        listener = await TcpTransport().listen(address, on_connection)
        client: Any = await TcpTransport().connect(address, lambda connection: Recorder())
        dialed = await asyncio.to_thread(TcpTransport().dial, address, DEADLINE_S)
        assert dialed is not None
        async with asyncio.timeout(DEADLINE_S):
            while not accepted:
                await asyncio.sleep(0.001)
        ends = [connection._transport.get_extra_info("socket") for connection in (client, accepted[0])]
        for sock in (*ends, dialed):
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        dialed.close()
        client.abort()
        await listener.close()
        await turns()

    asyncio.run(main())


def test_a_socket_that_met_itself_is_not_taken_for_a_broker():
    """A port that nobody listens at can be the one from which the kernel has us connect."""
    port = free_port()
    for _ in range(3):
        with socket.socket() as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(("127.0.0.1", port))
            sock.connect(("127.0.0.1", port))
            with pytest.raises(ConnectionRefusedError):
                tcp._other_end(sock)


@both_loops
def test_without_descriptors_accepting_rests_and_goes_on_later(run, address, caplog):
    async def main() -> None:
        accepted: list[Recorder] = []

        def on_connection(connection: Connection) -> Recorder:
            accepted.append(Recorder(connection=connection))
            return accepted[-1]

        listener = await TcpTransport().listen(address, on_connection)
        clients = [socket.socket() for _ in range(5)]
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(sock.fileno() for sock in clients) + 1, hard))
        fillers: list[int] = []
        try:
            while True:
                try:
                    fillers.append(os.open(os.devnull, os.O_RDONLY))
                except OSError:
                    break
            for sock in clients:
                sock.connect((address.host, address.port))
            async with asyncio.timeout(DEADLINE_S):
                while not caplog.records:
                    await asyncio.sleep(0.01)
            # Resting, it takes no time.
            before, started = time.process_time(), time.monotonic()
            await asyncio.sleep(0.4)
            assert time.process_time() - before < (time.monotonic() - started) / 2
            assert accepted == []
        finally:
            for descriptor in fillers:
                os.close(descriptor)
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        async with asyncio.timeout(DEADLINE_S):
            while len(accepted) < 5:
                await asyncio.sleep(0.01)
        for sock in clients:
            sock.close()
        for recorder in accepted:
            await recorder.until_lost()
        await listener.close()

    run(main())
    assert "Too many open files" in caplog.text


# One broker


@pytest.fixture
def runtime_dir(tmp_path: Path, monkeypatch) -> Path:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    return tmp_path / "eventsh"


def test_the_lock_is_in_a_directory_of_the_user_s_own(address, runtime_dir):
    transport = TcpTransport()
    lock = lock_address(transport, address)
    assert lock is not None
    assert transport.lock_path(address) == f"{runtime_dir}/tcp-127.0.0.1-{address.port}.lock"
    assert stat.S_IMODE(runtime_dir.stat().st_mode) == 0o700
    assert lock_address(transport, address) is None
    unlock_address(transport, address, lock)
    assert os.listdir(runtime_dir) == []


def test_listeners_at_port_0_keep_nobody_away():
    any_port = Address("tcp", host="127.0.0.1", port=0)
    path = TcpTransport().lock_path(any_port)
    assert path is not None
    assert str(os.getpid()) in path


def test_a_pool_at_port_0_leaves_no_lock_behind_when_it_is_killed(runtime_dir):
    command = [*COMMAND, "serve", "--workers", "0", "--listen", "tcp://127.0.0.1:0"]
    pool = subprocess.Popen(command, stdout=subprocess.PIPE, env=environment("unix:/nowhere"))
    try:
        assert pool.stdout is not None
        assert pool.stdout.readline().startswith(b"listening at tcp://127.0.0.1:")
    finally:
        pool.kill()
        pool.communicate()
    assert os.listdir(runtime_dir) == []


def test_a_directory_that_others_can_use_is_no_place_for_the_lock(address, runtime_dir):
    runtime_dir.mkdir(mode=0o777)
    runtime_dir.chmod(0o777)
    with pytest.raises(TransportError, match="there is no place for its lock"):
        TcpTransport().prepare(address)


def test_a_port_that_somebody_listens_at_is_never_taken_away(address):
    with socket.create_server((address.host, address.port)) as other:
        with pytest.raises(TransportError, match="another process listens there: stop it, or choose another port"):
            asyncio.run(TcpTransport().listen(address, lambda connection: Recorder()))
        with socket.create_connection((address.host, address.port)) as client:
            accepted, _ = other.accept()
            accepted.sendall(b"x")
            assert client.recv(1) == b"x"
            accepted.close()


def test_a_broker_starts_by_itself_and_leaves_nothing_behind(address, runtime_dir):
    with Events(str(address), linger=0.0, timeout=2.0) as first, Events(str(address), timeout=2.0) as second:
        for events in (first, second):
            events.wait_ready(DEADLINE_S)
        handled: list[Any] = []
        second.register(lambda data, *_: handled.append(data), "test")
        first.post_and_wait("test", "event", 1, timeout=DEADLINE_S)
        assert handled == [1]
    deadline = time.monotonic() + DEADLINE_S
    while os.listdir(runtime_dir):
        assert time.monotonic() < deadline, os.listdir(runtime_dir)
        time.sleep(0.02)


def test_importing_it_imports_no_asyncio_and_no_ssl():
    code = "import eventsh.transports.tcp, sys; print(sorted({'asyncio', 'ssl'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
