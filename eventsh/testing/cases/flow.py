"""Many senders at once, and a peer that takes nothing."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from eventsh.testing.bench import Bench, case
from eventsh.testing.recorder import Recorder, event_frame, numbers, turns

if TYPE_CHECKING:
    from eventsh.transport import Connection

__all__ = ["FlowCases"]


class FlowCases:
    """Part of TransportConformance."""

    @case
    async def test_many_senders_at_once_keep_their_own_order(self, bench: Bench) -> None:
        async with bench.listening() as (_, accepted):
            recorders = [Recorder() for _ in range(8)]
            clients = [await bench.connect(recorder) for recorder in recorders]
            await bench.until_count(accepted, len(clients))

            async def send(client: Connection, first: int) -> None:
                for number in range(first, first + 300):
                    client.send([event_frame(number, (number * 37) % 3000)])
                    await asyncio.sleep(0)

            def send_back(recorder: Recorder) -> None:
                connection = recorder.connection
                assert connection is not None
                recorder.on_frames = connection.send

            for recorder in accepted:
                send_back(recorder)
            await asyncio.gather(*(send(client, 1000 * n) for n, client in enumerate(clients)))
            for n, recorder in enumerate(recorders):
                assert await recorder.until_frames(300) == list(range(1000 * n, 1000 * n + 300))
            for n, client in enumerate(clients):
                client.close()
                await recorders[n].until_lost()

    @case
    async def test_many_processes_may_send_at_once(self, bench: Bench) -> None:
        async with bench.listening() as (_, accepted):
            peers = [await bench.connecting_peer() for _ in range(3)]
            await asyncio.gather(
                *(asyncio.to_thread(peer.call, "send", 1000 * n, 500, 2000) for n, peer in enumerate(peers))
            )
            await bench.until_count(accepted, 3)
            received = sorted([await recorder.until_frames(500) for recorder in accepted])
            assert received == [list(range(1000 * n, 1000 * n + 500)) for n in range(3)]

    @case
    async def test_a_sender_is_paused_while_the_peer_takes_nothing_and_resumed_after(self, bench: Bench) -> None:
        async with bench.connected() as pair:
            pair.raise_limits()
            pair.server.pause_reading()
            pair.server.pause_reading()
            sent = 0
            while not pair.to_client.pauses:
                pair.client.send([event_frame(sent, 30000)])
                sent += 1
                await asyncio.sleep(0)
                assert sent < 5000, "150 MB are buffered, and nobody is told"
            await turns()
            assert pair.client.unsent_bytes > 0
            assert pair.to_server.frames == []
            # The other direction is not held up.
            pair.server.send([event_frame(1)])
            assert await pair.to_client.until_frames(1) == [1]
            pair.server.resume_reading()
            pair.server.resume_reading()
            assert await pair.to_server.until_frames(sent) == list(range(sent))
            # More than once, where what it buffers itself leaves before the peer takes it.
            await pair.to_client.until(lambda recorder: recorder.pauses[-1] == "resumed")
            assert pair.to_client.pauses == ["paused", "resumed"] * (len(pair.to_client.pauses) // 2)
            assert pair.client.unsent_bytes == 0

    @case
    async def test_a_receiver_that_pauses_as_it_takes_frames_gets_no_others(self, bench: Bench) -> None:
        async with bench.connected() as pair:
            pair.to_server.on_frames = lambda frames: pair.server.pause_reading()
            pair.client.send([event_frame(0)])
            await pair.to_server.until_frames(1)
            pair.client.send([event_frame(1)])
            await turns()
            assert numbers(pair.to_server.frames) == [0]
            pair.server.resume_reading()
            assert await pair.to_server.until_frames(2) == [0, 1]

    @case
    async def test_a_receiver_that_pauses_at_once_gets_no_frames_until_it_resumes(self, bench: Bench) -> None:
        paused = Recorder()

        def on_connection(connection: Connection) -> Recorder:
            connection.pause_reading()
            return paused

        async with bench.listening() as (_, accepted):
            client = await bench.transport.connect(bench.address, on_connection)
            await bench.until_count(accepted, 1)
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
