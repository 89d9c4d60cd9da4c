"""Peers that are stopped, that are killed in the midst of a frame, and that fork."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from eventsh.errors import TransportError
from eventsh.testing.bench import Bench, case
from eventsh.testing.recorder import LARGE_BYTES, Recorder, event_frame, numbers

if TYPE_CHECKING:
    from eventsh.transport import Connection

__all__ = ["ProcessCases"]

# Larger than what kernels hold for a socket, so that its sender is in the midst of it while nobody reads; and so many of
# them that shared memory is full.
TOO_LARGE_TO_SEND_AT_ONCE = 8 * LARGE_BYTES
TOO_MANY_TO_SEND_AT_ONCE = 10


class ProcessCases:
    """Part of TransportConformance. Skipped where a transport does not leave its process."""

    @case
    async def test_a_stopped_peer_holds_up_nobody_else_and_loses_nothing(self, bench: Bench) -> None:
        async with bench.listening() as (_, accepted):
            peer = await bench.connecting_peer()
            await bench.until_count(accepted, 1)
            stopped, to_stopped = accepted[0].connection, accepted[0]
            recorder = Recorder()
            client = await bench.connect(recorder)
            await bench.until_count(accepted, 2)
            other = accepted[1].connection
            assert stopped is not None
            assert other is not None
            peer.stop()
            sent = 0
            while not to_stopped.pauses:
                stopped.send([event_frame(sent, 30000)])
                other.send([event_frame(sent)])
                sent += 1
                await asyncio.sleep(0)
                assert sent < 2000, "60 MB are buffered, and nobody is told"
            assert stopped.unsent_bytes > 0
            assert await recorder.until_frames(sent) == list(range(sent))
            assert to_stopped.lost == []
            peer.go_on()
            assert await asyncio.to_thread(peer.call, "received", sent) == list(range(sent))
            await to_stopped.until(lambda recorder: recorder.pauses == ["paused", "resumed"])
            client.close()
            await recorder.until_lost()

    @case
    async def test_of_a_listener_killed_in_the_midst_of_a_frame_only_whole_frames_arrive(self, bench: Bench) -> None:
        peer = await bench.listening_peer()
        recorder = Recorder()

        def begin(connection: Connection) -> Recorder:
            connection.limit_body(2 * TOO_LARGE_TO_SEND_AT_ONCE)
            connection.pause_reading()
            return recorder

        client = await bench.transport.connect(bench.address, begin)
        await asyncio.to_thread(peer.call, "connected", 1)
        await asyncio.to_thread(peer.call, "send", 0, TOO_MANY_TO_SEND_AT_ONCE, TOO_LARGE_TO_SEND_AT_ONCE)
        await asyncio.to_thread(peer.call, "paused")
        peer.kill()
        client.resume_reading()
        await recorder.until_lost()
        assert numbers(recorder.frames) == list(range(len(recorder.frames)))
        assert recorder.refused == []
        client.send([event_frame(0)])
        client.abort()

    @case
    async def test_of_a_client_killed_in_the_midst_of_a_frame_only_whole_frames_arrive(self, bench: Bench) -> None:
        async with bench.listening() as (_, accepted):
            peer = await bench.connecting_peer()
            await bench.until_count(accepted, 1)
            recorder, connection = accepted[0], accepted[0].connection
            assert connection is not None
            connection.limit_body(2 * TOO_LARGE_TO_SEND_AT_ONCE)
            connection.pause_reading()
            await asyncio.to_thread(peer.call, "send", 0, TOO_MANY_TO_SEND_AT_ONCE, TOO_LARGE_TO_SEND_AT_ONCE)
            await asyncio.to_thread(peer.call, "paused")
            peer.kill()
            connection.resume_reading()
            await recorder.until_lost()
            assert numbers(recorder.frames) == list(range(len(recorder.frames)))
            assert recorder.refused == []
            # The listener serves whoever comes next.
            next_one = Recorder()
            client = await bench.connect(next_one)
            await bench.until_count(accepted, 2)
            client.send([event_frame(1)])
            assert await accepted[1].until_frames(1) == [1]
            client.close()
            await next_one.until_lost()

    @case
    async def test_a_killed_listener_is_noticed_and_can_be_followed(self, bench: Bench) -> None:
        peer = await bench.listening_peer()
        recorder = Recorder()
        client = await bench.connect(recorder)
        client.send([event_frame(1)])
        await asyncio.to_thread(peer.call, "connected", 1)
        assert await asyncio.to_thread(peer.call, "received", 1) == [1]
        peer.kill()
        await recorder.until_lost()
        with pytest.raises(TransportError):
            await bench.connect(Recorder())
        async with bench.connected() as pair:
            pair.server.send([event_frame(2)])
            assert await pair.to_client.until_frames(1) == [2]

    @case
    async def test_a_forked_child_connects_by_itself_and_hides_no_end_of_its_parent(self, bench: Bench) -> None:
        """It has what its parent had imported and opened: modules, and the descriptors of its parent's connection."""
        async with bench.listening() as (_, accepted):
            peer = await bench.connecting_peer()
            await bench.until_count(accepted, 1)
            await bench.fork(peer, "connecting")
            await bench.until_count(accepted, 2)
            assert await accepted[1].until_frames(1) == [1]
            await asyncio.to_thread(peer.call, "send", 5, 1, 100)
            assert await accepted[0].until_frames(1) == [5]
            peer.kill()
            await accepted[0].until_lost()
            assert accepted[1].lost == []

    @case
    async def test_a_child_of_a_listener_keeps_neither_its_connections_nor_its_address(self, bench: Bench) -> None:
        peer = await bench.listening_peer()
        recorder = Recorder()
        await bench.connect(recorder)
        await asyncio.to_thread(peer.call, "connected", 1)
        await bench.fork(peer, "idle")
        peer.kill()
        await recorder.until_lost()
        async with bench.connected() as pair:
            pair.client.send([event_frame(1)])
            assert await pair.to_server.until_frames(1) == [1]
