"""What every transport must do, as a pytest class: subclass it as Test…, and say what to test and where."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import uvloop

from eventsh.address import Address
from eventsh.errors import ProtocolError, TransportError
from eventsh.protocol.frame import HEADER_BYTES, PRE_HELLO_BODY_BYTES, Kind, decode_header, encode_frame
from eventsh.transport import Connection, Listener, Transport

__all__ = ["Pair", "Recorder", "TransportConformance", "event_frame", "numbers"]

DEADLINE_S = 20.0
LARGE_BYTES = 1024 * 1024


def event_frame(number: int, size: int = 20) -> bytearray:
    return encode_frame(Kind.EVENTS, number.to_bytes(8, "little") * (size // 8 + 1), origin_seq=number)


def numbers(frames: list[bytearray]) -> list[int]:
    """The numbers of frames, each of which is checked to be whole and unharmed."""
    for frame in frames:
        header = decode_header(frame)
        body = bytes(memoryview(frame)[HEADER_BYTES:])
        assert header.length == len(body)
        assert body == header.origin_seq.to_bytes(8, "little") * (len(body) // 8)
    return [decode_header(frame).origin_seq for frame in frames]


@dataclass
class Recorder:
    """A receiver that keeps what it is told."""

    frames: list[bytearray] = field(default_factory=list)
    refused: list[ProtocolError] = field(default_factory=list)
    lost: list[Exception | None] = field(default_factory=list)
    pauses: list[str] = field(default_factory=list)
    told_after_end: list[str] = field(default_factory=list)
    connection: Connection | None = None
    on_frames: Callable[[list[bytearray]], None] = lambda frames: None
    _changed: asyncio.Event = field(default_factory=asyncio.Event)

    def frames_received(self, frames: list[bytearray]) -> None:
        self._note("frames")
        assert frames, "told of no frames"
        self.frames += frames
        self.on_frames(frames)

    def frames_refused(self, error: ProtocolError) -> None:
        self._note("refused")
        self.refused.append(error)

    def writing_paused(self) -> None:
        self._note("paused")
        self.pauses.append("paused")

    def writing_resumed(self) -> None:
        self._note("resumed")
        self.pauses.append("resumed")

    def connection_lost(self, error: Exception | None) -> None:
        self._note("lost")
        self.lost.append(error)

    def _note(self, what: str) -> None:
        if self.lost:
            self.told_after_end.append(what)
        self._changed.set()

    async def until(self, condition: Callable[[Recorder], object]) -> None:
        async with asyncio.timeout(DEADLINE_S):
            while not condition(self):
                self._changed.clear()
                await self._changed.wait()

    async def until_frames(self, count: int) -> list[int]:
        await self.until(lambda recorder: len(recorder.frames) >= count or recorder.lost)
        return numbers(self.frames)


@dataclass
class Pair:
    """Both ends of one connection, and who was told of it."""

    listener: Listener
    client: Connection
    server: Connection
    to_client: Recorder
    to_server: Recorder

    def raise_limits(self) -> None:
        for connection in (self.client, self.server):
            connection.limit_body(4 * LARGE_BYTES)

    async def until_lost(self) -> None:
        for recorder in (self.to_client, self.to_server):
            await recorder.until(lambda recorder: recorder.lost)
        await turns()
        for recorder in (self.to_client, self.to_server):
            assert len(recorder.lost) == 1
            assert recorder.told_after_end == []


async def turns(count: int = 20) -> None:
    """Let whatever is already under way in this loop happen."""
    for _ in range(count):
        await asyncio.sleep(0.001)


class TransportConformance:
    """Subclasses give `make_transport`, `make_address` and `leave_stale_endpoint`."""

    def make_transport(self) -> Transport:
        raise NotImplementedError

    def make_address(self, tmp_path: Path) -> Address:
        raise NotImplementedError

    async def leave_stale_endpoint(self, address: Address) -> None:
        """Leave behind what a listener leaves that was killed."""
        raise NotImplementedError

    @pytest.fixture
    def transport(self) -> Transport:
        return self.make_transport()

    @pytest.fixture
    def address(self, tmp_path: Path) -> Address:
        return self.make_address(tmp_path)

    @pytest.fixture(params=["asyncio", "uvloop"])
    def run(self, request: pytest.FixtureRequest) -> Callable[[Coroutine[Any, Any, None]], None]:
        return asyncio.run if request.param == "asyncio" else uvloop.run

    @asynccontextmanager
    async def listening(self, transport: Transport, address: Address) -> AsyncIterator[tuple[Listener, list[Recorder]]]:
        accepted: list[Recorder] = []

        def on_connection(connection: Connection) -> Recorder:
            accepted.append(Recorder(connection=connection))
            return accepted[-1]

        listener = await transport.listen(address, on_connection)
        try:
            yield listener, accepted
        finally:
            await listener.close()
            for recorder in accepted:
                assert recorder.connection is not None
                recorder.connection.abort()
            for recorder in accepted:
                await recorder.until(lambda recorder: recorder.lost)
            await turns(2)

    @asynccontextmanager
    async def connected(self, transport: Transport, address: Address) -> AsyncIterator[Pair]:
        async with self.listening(transport, address) as (listener, accepted):
            to_client = Recorder()
            client = await transport.connect(address, lambda connection: to_client)
            async with asyncio.timeout(DEADLINE_S):
                while not accepted:
                    await asyncio.sleep(0.001)
            server = accepted[0].connection
            assert server is not None
            try:
                yield Pair(listener, client, server, to_client, accepted[0])
            finally:
                client.abort()
                await to_client.until(lambda recorder: recorder.lost)

    # Frames.

    def test_frames_keep_their_boundaries_and_their_order(self, run, transport, address):
        async def main() -> None:
            async with self.connected(transport, address) as pair:
                pair.client.send([event_frame(n, size) for n, size in enumerate((0, 1, 100, 5000, 60000, 8, 9))])
                for n in range(7, 5000):
                    pair.client.send([event_frame(n)])
                assert await pair.to_server.until_frames(5000) == list(range(5000))

        run(main())

    def test_many_frames_in_one_call_arrive(self, run, transport, address):
        async def main() -> None:
            async with self.connected(transport, address) as pair:
                # More than one writev takes, and more than is joined.
                pair.client.send([event_frame(n, 200) for n in range(5000)])
                assert await pair.to_server.until_frames(5000) == list(range(5000))

        run(main())

    def test_large_frames_arrive_both_ways_at_once(self, run, transport, address):
        async def main() -> None:
            async with self.connected(transport, address) as pair:
                pair.raise_limits()
                for n in range(16):
                    pair.client.send([event_frame(n, LARGE_BYTES)])
                    pair.server.send([event_frame(n, LARGE_BYTES), event_frame(100 + n)])
                assert await pair.to_server.until_frames(16) == list(range(16))
                received = await pair.to_client.until_frames(32)
                assert received == [number for n in range(16) for number in (n, 100 + n)]

        run(main())

    def test_every_kind_of_buffer_can_be_sent(self, run, transport, address):
        async def main() -> None:
            async with self.connected(transport, address) as pair:
                pair.client.send([bytes(event_frame(0)), event_frame(1), memoryview(event_frame(2))])
                pair.client.send((memoryview(event_frame(3)),))
                pair.client.send_now(memoryview(event_frame(4)))
                pair.client.send([])
                assert await pair.to_server.until_frames(5) == [0, 1, 2, 3, 4]

        run(main())

    def test_the_receiver_owns_its_frames(self, run, transport, address):
        async def main() -> None:
            async with self.connected(transport, address) as pair:
                sent = event_frame(7)
                pair.client.send([sent])
                pair.client.send([sent])
                await pair.to_server.until_frames(2)
                first, second = pair.to_server.frames
                first[:] = bytes(len(first))
                assert numbers([sent, second]) == [7, 7]

        run(main())

    def test_send_now_keeps_the_order_of_what_was_sent(self, run, transport, address):
        async def main() -> None:
            async with self.connected(transport, address) as pair:
                pair.raise_limits()
                for n in range(0, 60, 3):
                    pair.client.send_now(event_frame(n))
                    pair.client.send([event_frame(n + 1, LARGE_BYTES)])
                    pair.client.send_now(event_frame(n + 2, LARGE_BYTES))
                assert await pair.to_server.until_frames(60) == list(range(60))

        run(main())

    # Backpressure.

    def test_a_sender_is_paused_while_the_peer_takes_nothing_and_resumed_after(self, run, transport, address):
        async def main() -> None:
            async with self.connected(transport, address) as pair:
                pair.server.pause_reading()
                pair.server.pause_reading()
                sent = 0
                while not pair.to_client.pauses:
                    pair.client.send([event_frame(sent, 30000)])
                    sent += 1
                    await asyncio.sleep(0)
                    assert sent < 2000, "60 MB are buffered, and nobody is told"
                await turns()
                assert pair.client.unsent_bytes > 0
                assert pair.to_server.frames == []
                # The other direction is not held up.
                pair.server.send([event_frame(1)])
                assert await pair.to_client.until_frames(1) == [1]
                pair.server.resume_reading()
                pair.server.resume_reading()
                assert await pair.to_server.until_frames(sent) == list(range(sent))
                await pair.to_client.until(lambda recorder: recorder.pauses == ["paused", "resumed"])
                assert pair.client.unsent_bytes == 0

        run(main())

    def test_a_receiver_that_pauses_as_it_takes_frames_gets_no_others(self, run, transport, address):
        async def main() -> None:
            async with self.connected(transport, address) as pair:
                pair.to_server.on_frames = lambda frames: pair.server.pause_reading()
                pair.client.send([event_frame(0)])
                await pair.to_server.until_frames(1)
                pair.client.send([event_frame(1)])
                await turns()
                assert numbers(pair.to_server.frames) == [0]
                pair.server.resume_reading()
                assert await pair.to_server.until_frames(2) == [0, 1]

        run(main())

    def test_a_receiver_that_pauses_at_once_gets_no_frames_until_it_resumes(self, run, transport, address):
        async def main() -> None:
            paused = Recorder()

            def on_connection(connection: Connection) -> Recorder:
                connection.pause_reading()
                return paused

            async with self.listening(transport, address) as (_, accepted):
                client = await transport.connect(address, on_connection)
                async with asyncio.timeout(DEADLINE_S):
                    while not accepted:
                        await asyncio.sleep(0.001)
                server = accepted[0].connection
                assert server is not None
                server.send([event_frame(0), event_frame(1)])
                await turns()
                server.send([event_frame(2)])
                await turns()
                assert paused.frames == []
                client.resume_reading()
                assert await paused.until_frames(3) == [0, 1, 2]
                client.close()
                await paused.until(lambda recorder: recorder.lost)

        run(main())

    # The end.

    def test_close_sends_what_was_sent_before_it(self, run, transport, address):
        async def main() -> None:
            async with self.connected(transport, address) as pair:
                pair.raise_limits()
                for n in range(8):
                    pair.client.send([event_frame(n, LARGE_BYTES)])
                pair.client.close()
                pair.client.send([event_frame(8)])
                assert await pair.to_server.until_frames(8) == list(range(8))
                await pair.until_lost()
                assert len(pair.to_server.frames) == 8
                assert (pair.to_client.lost, pair.to_server.lost) == ([None], [None])

        run(main())

    def test_abort_ends_both_sides_at_once(self, run, transport, address):
        async def main() -> None:
            async with self.connected(transport, address) as pair:
                pair.raise_limits()
                pair.server.pause_reading()
                pair.client.send([event_frame(n, LARGE_BYTES) for n in range(8)])
                pair.client.abort()
                await pair.to_client.until(lambda recorder: recorder.lost == [None])
                pair.server.resume_reading()
                await pair.until_lost()
                assert numbers(pair.to_server.frames) == list(range(len(pair.to_server.frames)))
                assert len(pair.to_server.frames) < 8

        run(main())

    @pytest.mark.parametrize("calls", [("close", "close"), ("abort", "abort"), ("close", "abort"), ("abort", "close")])
    def test_the_end_is_told_once_and_nothing_has_an_effect_after_it(self, run, transport, address, calls):
        async def main() -> None:
            async with self.connected(transport, address) as pair:
                for call in calls:
                    getattr(pair.server, call)()
                await pair.until_lost()
                for connection in (pair.client, pair.server):
                    connection.send([event_frame(0)])
                    connection.send([event_frame(1), event_frame(2)])
                    connection.send_now(event_frame(3))
                    connection.pause_reading()
                    connection.resume_reading()
                    connection.close()
                    connection.abort()
                    assert connection.unsent_bytes == 0
                await pair.until_lost()

        run(main())

    def test_both_sides_may_close_at_once(self, run, transport, address):
        async def main() -> None:
            async with self.connected(transport, address) as pair:
                pair.client.close()
                pair.server.close()
                await pair.until_lost()

        run(main())

    def test_what_the_peer_said_before_it_closed_is_received_by_one_that_is_sending(self, run, transport, address):
        async def main() -> None:
            async with self.connected(transport, address) as pair:
                pair.server.send([event_frame(1)])
                pair.server.close()
                pair.client.send([event_frame(2)])
                await turns(2)
                pair.client.send([event_frame(3)])
                await pair.until_lost()
                assert numbers(pair.to_client.frames) == [1]

        run(main())

    def test_open_connections_stay_when_the_listener_closes(self, run, transport, address):
        async def main() -> None:
            async with self.connected(transport, address) as pair:
                await pair.listener.close()
                await pair.listener.close()
                pair.client.send([event_frame(1)])
                assert await pair.to_server.until_frames(1) == [1]
                with pytest.raises(TransportError):
                    await transport.connect(address, lambda connection: Recorder())

        run(main())

    # Rules of the wire.

    @pytest.mark.parametrize(
        "garbage",
        [
            b"\xff" * 100,
            b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n" * 3,
            bytes(encode_frame(0)),
            bytes(encode_frame(200)),
            bytes(encode_frame(Kind.EVENTS, bytes(PRE_HELLO_BODY_BYTES + 1))),
        ],
        ids=["ones", "http", "kind 0", "kind 200", "too large"],
    )
    def test_garbage_is_refused_once_after_the_good_frames(self, run, transport, address, garbage):
        async def main() -> None:
            async with self.connected(transport, address) as pair:
                pair.client.send([event_frame(0), event_frame(1), garbage, event_frame(2)])
                await pair.to_server.until(lambda recorder: recorder.refused)
                pair.client.send([event_frame(3), garbage])
                await turns()
                assert numbers(pair.to_server.frames) == [0, 1]
                assert len(pair.to_server.refused) == 1
                assert isinstance(pair.to_server.refused[0], ProtocolError)
                pair.server.close()
                await pair.until_lost()

        run(main())

    def test_the_limit_of_a_body_can_be_raised(self, run, transport, address):
        async def main() -> None:
            async with self.connected(transport, address) as pair:
                pair.client.send([encode_frame(Kind.EVENTS, bytes(PRE_HELLO_BODY_BYTES))])
                await pair.to_server.until(lambda recorder: len(recorder.frames) == 1)
                pair.server.limit_body(100_000)
                pair.client.send([encode_frame(Kind.EVENTS, bytes(100_000))])
                await pair.to_server.until(lambda recorder: len(recorder.frames) == 2)
                pair.client.send([encode_frame(Kind.EVENTS, bytes(100_001))])
                await pair.to_server.until(lambda recorder: recorder.refused)
                assert "100001" in str(pair.to_server.refused[0])
                assert "100000" in str(pair.to_server.refused[0])

        run(main())

    # Receivers that fail.

    def test_a_receiver_that_raises_loses_its_connection_alone(self, run, transport, address, caplog):
        def fail(frames: list[bytearray]) -> None:
            raise ZeroDivisionError("on purpose")

        async def main() -> None:
            async with self.connected(transport, address) as pair:
                to_other = Recorder()
                other = await transport.connect(address, lambda connection: to_other)
                pair.to_client.on_frames = fail
                pair.server.send([event_frame(0)])
                await pair.until_lost()
                assert [record.name for record in caplog.records] == ["eventsh"]
                assert "on purpose" in caplog.text
                assert to_other.lost == []
                other.close()
                await to_other.until(lambda recorder: recorder.lost)

        with caplog.at_level(logging.ERROR):
            run(main())

    def test_on_connection_that_raises_reaches_the_caller_of_connect(self, run, transport, address):
        def fail(connection: Connection) -> Recorder:
            raise ZeroDivisionError("on purpose")

        async def main() -> None:
            async with self.listening(transport, address) as (_, accepted):
                with pytest.raises(ZeroDivisionError):
                    await transport.connect(address, fail)
                async with asyncio.timeout(DEADLINE_S):
                    while not (accepted and accepted[0].lost):
                        await asyncio.sleep(0.001)

        run(main())

    def test_on_connection_that_raises_in_a_listener_ends_that_connection(self, run, transport, address, caplog):
        def fail(connection: Connection) -> Recorder:
            raise ZeroDivisionError("on purpose")

        async def main() -> None:
            listener = await transport.listen(address, fail)
            recorder = Recorder()
            await transport.connect(address, lambda connection: recorder)
            await recorder.until(lambda recorder: recorder.lost)
            await turns(2)
            await listener.close()
            assert "on purpose" in caplog.text

        with caplog.at_level(logging.ERROR):
            run(main())

    # Endpoints.

    def test_who_is_at_the_other_end_is_known(self, run, transport, address):
        async def main() -> None:
            async with self.connected(transport, address) as pair:
                for connection in (pair.client, pair.server):
                    assert connection.peer.label
                    if transport.capabilities.peer_credentials:
                        assert connection.peer.pid is not None
                        assert connection.peer.uid is not None

        run(main())

    def test_many_clients_are_kept_apart(self, run, transport, address):
        async def main() -> None:
            async with self.listening(transport, address) as (_, accepted):
                recorders = [Recorder() for _ in range(50)]
                clients = [await transport.connect(address, lambda _, r=recorder: r) for recorder in recorders]
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

        run(main())

    def test_where_nobody_listens_the_error_says_so(self, run, transport, address):
        async def main() -> None:
            with pytest.raises(TransportError) as caught:
                await transport.connect(address, lambda connection: Recorder())
            assert isinstance(caught.value.__cause__, FileNotFoundError | ConnectionRefusedError)
            assert str(address) in str(caught.value)

        run(main())

    def test_a_listener_tells_an_address_that_can_be_connected_to(self, run, transport, address):
        async def main() -> None:
            from eventsh.address import parse_address

            async with self.listening(transport, address) as (listener, _):
                recorder = Recorder()
                client = await transport.connect(parse_address(listener.address), lambda connection: recorder)
                client.close()
                await recorder.until(lambda recorder: recorder.lost)

        run(main())

    def test_a_stale_endpoint_is_taken_over(self, run, transport, address):
        async def main() -> None:
            await self.leave_stale_endpoint(address)
            with pytest.raises(TransportError):
                await transport.connect(address, lambda connection: Recorder())
            async with self.connected(transport, address) as pair:
                pair.client.send([event_frame(1)])
                assert await pair.to_server.until_frames(1) == [1]

        run(main())

    def test_a_second_listener_is_refused_or_takes_the_address_over_whole(self, run, transport, address):
        """Who holds the lock of the address takes it over. Where there is no lock, the second one is refused."""

        async def main() -> None:
            async with self.listening(transport, address) as (first, to_first):
                to_second: list[Recorder] = []

                def on_connection(connection: Connection) -> Recorder:
                    to_second.append(Recorder(connection=connection))
                    return to_second[-1]

                try:
                    second: Listener | None = await transport.listen(address, on_connection)
                except TransportError:
                    second = None
                else:
                    # The first one must leave alone what is not its own any more.
                    await first.close()
                recorder = Recorder()
                client = await transport.connect(address, lambda connection: recorder)
                accepted = to_first if second is None else to_second
                async with asyncio.timeout(DEADLINE_S):
                    while not accepted:
                        await asyncio.sleep(0.001)
                client.close()
                await recorder.until(lambda recorder: recorder.lost)
                await accepted[0].until(lambda recorder: recorder.lost)
                if second is not None:
                    await second.close()

        run(main())

    def test_an_address_can_be_listened_at_again(self, run, transport, address):
        async def main() -> None:
            for _ in range(3):
                async with self.connected(transport, address) as pair:
                    pair.client.send([event_frame(1)])
                    assert await pair.to_server.until_frames(1) == [1]

        run(main())
