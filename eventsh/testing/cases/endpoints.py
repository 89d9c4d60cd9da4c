"""Where listeners are found, who may have an address, and what a killed one leaves behind."""

from __future__ import annotations

import asyncio
import os
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest

from eventsh.address import Address, parse_address
from eventsh.errors import ConfigureError, TransportError
from eventsh.testing.bench import Bench, case, open_descriptors
from eventsh.testing.recorder import DEADLINE_S, Recorder, event_frame, numbers
from eventsh.transport import Capabilities

if TYPE_CHECKING:
    import socket


__all__ = ["EndpointCases"]


def read_exactly(sock: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        piece = sock.recv(size - len(data))
        assert piece, "it was closed"
        data += piece
    return data


class EndpointCases:
    """Part of TransportConformance."""

    @case
    async def test_who_is_at_the_other_end_is_known(self, bench: Bench) -> None:
        async with bench.connected() as pair:
            for connection in (pair.client, pair.server):
                assert connection.peer.label
                if bench.transport.capabilities.peer_credentials:
                    assert connection.peer.pid is not None
                    assert connection.peer.uid is not None

    @case
    async def test_what_comes_is_counted_where_a_peer_can_vanish_without_a_word(self, bench: Bench) -> None:
        if not bench.transport.capabilities.crosses_hosts:
            pytest.skip("the transport does not leave its host")
        async with bench.connected() as pair:
            before = pair.server.received_bytes
            pair.client.send([event_frame(1, 1000)])
            await pair.to_server.until_frames(1)
            assert pair.server.received_bytes >= before + 1000

    @case
    async def test_many_clients_are_kept_apart(self, bench: Bench) -> None:
        async with bench.listening() as (_, accepted):
            recorders = [Recorder() for _ in range(50)]
            clients = [await bench.connect(recorder) for recorder in recorders]
            for n, client in enumerate(clients):
                client.send([event_frame(n)])
            async with asyncio.timeout(DEADLINE_S):
                while sum(len(recorder.frames) for recorder in accepted) < 50:
                    await asyncio.sleep(0.001)
            assert sorted(numbers(recorder.frames) for recorder in accepted) == [[n] for n in range(50)]
            for client in clients:
                client.close()
            for recorder in recorders:
                await recorder.until(lambda recorder: recorder.lost)

    @case
    async def test_where_nobody_listens_the_error_says_so(self, bench: Bench) -> None:
        with pytest.raises(TransportError) as caught:
            await bench.connect(Recorder())
        assert isinstance(caught.value.__cause__, FileNotFoundError | ConnectionRefusedError)
        assert str(bench.address) in str(caught.value)

    @case
    async def test_a_listener_tells_an_address_that_can_be_connected_to(self, bench: Bench) -> None:
        async with bench.listening() as (listener, _):
            recorder = Recorder()
            client = await bench.transport.connect(parse_address(listener.address), lambda connection: recorder)
            client.close()
            await recorder.until(lambda recorder: recorder.lost)

    @case
    async def test_a_stale_endpoint_is_taken_over(self, bench: Bench) -> None:
        await bench.leave_stale_endpoint()
        with pytest.raises(TransportError):
            await bench.connect(Recorder())
        async with bench.connected() as pair:
            pair.client.send([event_frame(1)])
            assert await pair.to_server.until_frames(1) == [1]

    @case
    async def test_an_endpoint_that_accepts_connections_is_not_displaced(self, bench: Bench) -> None:
        """Nor by who holds the lock of the address: the lock's file may have been removed."""
        async with bench.listening() as (listener, accepted):
            with pytest.raises(TransportError):
                await bench.transport.listen(bench.address, lambda connection: Recorder())
            assert listener.keep()
            recorder = Recorder()
            client = await bench.connect(recorder)
            await bench.until_count(accepted, 1)
            client.close()
            await recorder.until(lambda recorder: recorder.lost)
            await accepted[0].until(lambda recorder: recorder.lost)

    @case
    async def test_an_address_can_be_listened_at_again(self, bench: Bench) -> None:
        for _ in range(3):
            async with bench.connected() as pair:
                pair.client.send([event_frame(1)])
                assert await pair.to_server.until_frames(1) == [1]

    @case
    async def test_connecting_in_vain_leaves_nothing_behind(self, bench: Bench) -> None:
        for _ in range(3):
            with pytest.raises(TransportError):
                await bench.connect(Recorder())
        before = open_descriptors()
        for _ in range(50):
            with pytest.raises(TransportError):
                await bench.connect(Recorder())
        assert open_descriptors() == before

    @case
    async def test_the_address_and_the_transport_name_each_other(self, bench: Bench) -> None:
        assert bench.transport.scheme == bench.address.scheme
        assert parse_address(str(bench.address)) == bench.address
        assert isinstance(bench.transport.capabilities, Capabilities)
        bench.transport.check_address(bench.address)

    @case
    async def test_an_address_that_can_not_be_one_is_refused_everywhere(self, bench: Bench) -> None:
        """One with next to nothing in it, or one with something of everything."""
        scheme, transport = bench.transport.scheme, bench.transport
        everything = Address(scheme, "/path", "127.0.0.1", 1, {"no_option_of_eventsh": "1"})
        refused = []
        for address in (Address(scheme, "/"), everything):
            with suppress(ConfigureError):
                transport.check_address(address)
                continue
            refused.append(address)
        assert refused, "check_address takes all that there is"
        for address in refused:
            with pytest.raises(ConfigureError):
                transport.prepare(address)
            with pytest.raises(ConfigureError):
                await transport.listen(address, lambda connection: Recorder())
            with pytest.raises(ConfigureError):
                await transport.connect(address, lambda connection: Recorder())
            with suppress(ConfigureError):
                assert transport.dial(address, DEADLINE_S) is None

    @case
    async def test_what_the_lock_of_the_address_needs_is_prepared(self, bench: Bench) -> None:
        bench.transport.prepare(bench.address)
        bench.transport.prepare(bench.address)
        path = bench.transport.lock_path(bench.address)
        if path is None:
            pytest.skip("the transport has no lock: a broker is never started there automatically")
        assert os.path.isabs(path)
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        os.unlink(path)

    @case
    async def test_a_plain_socket_is_a_connection_too(self, bench: Bench) -> None:
        async with bench.listening() as (_, accepted):
            sock = await asyncio.to_thread(bench.transport.dial, bench.address, DEADLINE_S)
            if sock is None:
                pytest.skip("the transport has no dial")
            with sock:
                assert sock.gettimeout() == DEADLINE_S
                sock.setblocking(False)
                with pytest.raises(BlockingIOError):
                    sock.recv(1)
                sock.settimeout(DEADLINE_S)
                await asyncio.to_thread(sock.sendall, event_frame(1) + event_frame(2))
                await bench.until_count(accepted, 1)
                assert await accepted[0].until_frames(2) == [1, 2]
                connection = accepted[0].connection
                assert connection is not None
                connection.send([event_frame(3)])
                size = len(event_frame(3))
                assert await asyncio.to_thread(read_exactly, sock, size) == event_frame(3)
            await accepted[0].until_lost()

    @case
    async def test_where_nobody_listens_a_plain_socket_says_so_too(self, bench: Bench) -> None:
        failure: TransportError | None = None
        try:
            sock = await asyncio.to_thread(bench.transport.dial, bench.address, DEADLINE_S)
        except TransportError as error:
            failure = error
        if failure is None:
            assert sock is None
            pytest.skip("the transport has no dial")
        assert isinstance(failure.__cause__, FileNotFoundError | ConnectionRefusedError)
